//! Pod failure policy (KEP-3329, KEP-3850) and success policy (KEP-3998).

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};

use super::indexes;
use crate::cache::Pod;
use crate::object::Key;
use crate::pods;

/// What a failure of a pod means.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It counts.
    Count,
    /// It does not count.
    Ignore,
    /// The pod's index has failed for good.
    FailIndex,
    /// The Job has failed, for this reason.
    FailJob(String),
}

/// Judges a failed pod.
pub fn judge(job: &Job, pod: &Pod) -> Verdict {
    let rules = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref()).map(|p| p.rules.as_slice());
    for (at, rule) in rules.unwrap_or_default().iter().enumerate() {
        let Some(what) = matches(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// What of the pod a rule matches.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let key = Key::of(pod);
    if let Some(codes) = &rule.on_exit_codes {
        for container in &pod.status.containers {
            if codes.container_name.as_ref().is_some_and(|n| **n != *container.name) {
                continue;
            }
            let ended = container.ended.as_ref().map(|(code, _)| *code);
            let Some(code) = ended.filter(|code| *code != 0) else { continue };
            if codes.values.contains(&code) == (codes.operator == "In") {
                return Some(format!(
                    "Container {} for pod {key} failed with exit code {code}",
                    container.name
                ));
            }
        }
    }
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        if pods::condition(pod, &pattern.type_).is_some_and(|c| c.status == wanted) {
            return Some(format!("Pod {key} has condition {}", pattern.type_));
        }
    }
    None
}

/// The rule of the success policy that the succeeded indexes meet, as the condition's message.
pub fn success(job: &Job, succeeded: &BTreeSet<i32>, completions: i32) -> Option<String> {
    let policy = job.spec.as_ref()?.success_policy.as_ref()?;
    let met = policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(Some(text), completions));
        let (have, all) = match &wanted {
            Some(wanted) => (wanted.intersection(succeeded).count(), wanted.len()),
            None => (succeeded.len(), usize::MAX),
        };
        match rule.succeeded_count.and_then(|n| usize::try_from(n).ok()) {
            Some(count) => have >= count,
            None => wanted.is_some() && have == all,
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}
