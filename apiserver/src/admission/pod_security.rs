//! PodSecurity: pods keep to the standard that their namespace's labels name.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use hawser_api::object::{Labels, ObjectExt};
use hawser_api::podsecurity::{self, Level, PodView, Policy, Standard};
use hawser_api::status::Status;
use serde_json::Value;

use super::{Labelled, Lookup, forbidden, is, name_of};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

/// Pods that are looked at when a namespace gets a stricter standard, as in Kubernetes.
const MAX_PODS: usize = 3000;
/// Parts of a pod whose writing does not change what it may do.
const HARMLESS: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

pub(super) struct PodSecurity {
    pub(super) reader: Lookup,
}

/// Where a kind has its pod template.
fn template(group: &str, resource: &str) -> Option<&'static [&'static str]> {
    Some(match (group, resource) {
        ("", "podtemplates") => &["template"],
        ("", "replicationcontrollers") => &["spec", "template"],
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => &["spec", "template"],
        ("batch", "jobs") => &["spec", "template"],
        ("batch", "cronjobs") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    })
}

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        if !matches!(operation, Operation::Create | Operation::Update) {
            return false;
        }
        let pods = info.group.is_empty()
            && info.resource == "pods"
            && !HARMLESS.contains(&info.subresource.as_str());
        let templates = info.subresource.is_empty() && template(&info.group, &info.resource).is_some();
        pods || templates || is(info, "", "namespaces")
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        match request.info.resource.as_str() {
            "namespaces" => self.namespace(request, object).await,
            "pods" => self.pod(request, object).await,
            _ => self.workload(request, object).await,
        }
    }
}

impl PodSecurity {
    async fn policy(&self, request: &AdmissionRequest<'_>) -> Result<Policy, Status> {
        let name = &request.info.namespace;
        let found = self.reader.get_as::<Labelled>("", "namespaces", "", name).await?;
        let labels = found.ok_or_else(|| Status::internal(format!("failed to lookup namespace {name:?}")))?;
        Ok(Policy::of(Labels::new(Some(&labels.metadata.labels))).0)
    }

    async fn pod(&self, request: &AdmissionRequest<'_>, pod: &Value) -> Result<(), Status> {
        if request.old_object.is_some_and(|old| !is_significant(pod, old)) {
            return Ok(());
        }
        let policy = self.policy(request).await?;
        let view = PodView::of(pod);
        let found = podsecurity::violations(policy.enforce, &view);
        if !found.is_empty() {
            let detail = podsecurity::detail(&found);
            return Err(forbidden(request, format!("violates PodSecurity \"{}\": {detail}", policy.enforce)));
        }
        warn(request, policy.warn, &view);
        Ok(())
    }

    async fn workload(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<(), Status> {
        let at = template(&request.info.group, &request.info.resource).unwrap_or_default();
        let Some(template) = object.get_path(at) else { return Ok(()) };
        let policy = self.policy(request).await?;
        warn(request, policy.warn, &PodView::of(template));
        Ok(())
    }

    async fn namespace(&self, request: &AdmissionRequest<'_>, namespace: &Value) -> Result<(), Status> {
        let (policy, errors) = Policy::of(namespace.labels());
        let invalid = || Status::invalid("", "Namespace", &name_of(request), &errors);
        let Some(old) = request.old_object else {
            return if errors.is_empty() { Ok(()) } else { Err(invalid()) };
        };
        let (before, old_errors) = Policy::of(old.labels());
        if !errors.is_empty() && errors != old_errors {
            return Err(invalid());
        }
        let (new, old) = (policy.enforce, before.enforce);
        let looser = new.version == old.version && new.level <= old.level;
        if new != old && new.level != Level::Privileged && !looser {
            self.existing_pods(request, namespace.name(), new).await?;
        }
        Ok(())
    }

    /// Warns of pods that are there already and would be refused now.
    async fn existing_pods(
        &self,
        request: &AdmissionRequest<'_>,
        namespace: &str,
        standard: Standard,
    ) -> Result<(), Status> {
        let pods = self.reader.list_in("", "pods", namespace).await?;
        // One pod of each controller first.
        let (mut owners, mut copies, mut first) = (HashSet::new(), Vec::new(), Vec::new());
        for pod in &pods {
            match pod.controller_ref() {
                Some(owner) if !owners.insert(owner.uid.clone()) => copies.push(pod),
                _ => first.push(pod),
            }
        }
        first.append(&mut copies);
        if first.len() > MAX_PODS {
            request.warn(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
                first.len()
            ));
            first.truncate(MAX_PODS);
        }
        let mut found: BTreeMap<String, (&str, usize)> = BTreeMap::new();
        for pod in first {
            let violations = podsecurity::violations(standard, &PodView::of(pod));
            if !violations.is_empty() {
                let (name, count) = found.entry(podsecurity::reasons(&violations)).or_insert((pod.name(), 0));
                *name = (*name).min(pod.name());
                *count += 1;
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        request.warn(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{standard}\""
        ));
        let mut texts: Vec<String> = found
            .into_iter()
            .map(|(reasons, (name, count))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                n => format!("{name} (and {} other pods): {reasons}", n - 1),
            })
            .collect();
        texts.sort();
        texts.into_iter().for_each(|text| request.warn(text));
        Ok(())
    }
}

fn warn(request: &AdmissionRequest<'_>, standard: Standard, pod: &PodView<'_>) {
    let found = podsecurity::violations(standard, pod);
    if !found.is_empty() {
        let detail = podsecurity::detail(&found);
        request.warn(format!("would violate PodSecurity \"{standard}\": {detail}"));
    }
}

/// Whether an update of a pod changes what runs: another image, or another container.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let images = |o: &Value, list: &str| -> Vec<(String, String)> {
        let of = |c: &Value| (c.str_at("name").to_owned(), c.str_at("image").to_owned());
        o.items_at(list).iter().map(of).collect()
    };
    let by_place = |list: &str| {
        let (new, old) = (images(pod, list), images(old, list));
        new.len() != old.len() || new.iter().zip(&old).any(|(a, b)| a.1 != b.1)
    };
    let ephemeral = images(old, "spec.ephemeralContainers");
    by_place("spec.containers")
        || by_place("spec.initContainers")
        || images(pod, "spec.ephemeralContainers").iter().any(|c| !ephemeral.contains(c))
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;
    use serde_json::json;

    fn namespace(level: &str) -> Value {
        json!({"metadata": {"name": "a", "labels": {"pod-security.kubernetes.io/enforce": level}}})
    }

    #[tokio::test]
    async fn pods_are_refused_and_workloads_warned_of() {
        let world = World::new();
        world.put("", "namespaces", namespace("baseline"));
        let plugin = PodSecurity { reader: world.lookup() };
        let spec = json!({"hostPID": true, "containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        let refused = world.post("/api/v1/namespaces/a/pods", pod.clone()).answer(&plugin).await;
        assert_eq!(
            refused,
            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)"
        );
        // What was there before may go on.
        let put = world.put_request("/api/v1/namespaces/a/pods/p", pod.clone(), pod);
        assert_eq!(put.answer(&plugin).await, "ok");
        let workload = json!({"metadata": {"name": "d"}, "spec": {"template": {"spec": spec}}});
        let post = world.post("/apis/apps/v1/namespaces/a/deployments", workload);
        let expected = "would violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";
        assert_eq!(post.warnings(&plugin).await, [expected]);
    }

    #[tokio::test]
    async fn namespaces_are_warned_of_their_pods() {
        let world = World::new();
        let plugin = PodSecurity { reader: world.lookup() };
        for name in ["p1", "p2"] {
            let spec = json!({"hostPID": true, "containers": [{"name": "c"}]});
            world.put("", "pods", json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec}));
        }
        let put =
            |new: &str, old: &str| world.put_request("/api/v1/namespaces/a", namespace(new), namespace(old));
        assert_eq!(
            put("baseline", "privileged").warnings(&plugin).await,
            [
                "existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "p1 (and 1 other pod): host namespaces"
            ]
        );
        assert!(put("baseline", "restricted").warnings(&plugin).await.is_empty());
        let answer = put("odd", "baseline").answer(&plugin).await;
        assert_eq!(
            answer,
            "Namespace \"a\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"odd\": must be one of privileged, baseline, restricted"
        );
    }
}
