//! What the scheduler tells about its decisions: events and the PodScheduled condition, worded as kube-scheduler's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinSet;

use crate::events::{Notice, Recorder};
use crate::pod::{PodInfo, PodKey};

/// How many reports may be under way. They never hold up scheduling.
const MAX_REPORTS: usize = 16;
/// For so many events of bound pods that wait, one more is under way: pods come before what is told of them, and
/// nothing that waits grows without end.
const PATIENCE: usize = 4096;

/// Something to tell about a pod.
pub enum Report {
    /// It was bound.
    Scheduled { pod: Arc<PodInfo>, node: Arc<str> },
    /// It has a node, and waits for devices there.
    Waits { pod: Arc<PodInfo>, node: Arc<str> },
    /// It could not be placed.
    Failed {
        pod: Arc<PodInfo>,
        /// `Unschedulable`, or `SchedulerError` when the attempt itself failed.
        reason: &'static str,
        message: String,
        /// Where room is being made for it; empty: nowhere any more; `None`: nothing has changed.
        nominated: Option<String>,
    },
}

/// Reports that wait and that are under way.
pub struct Reports {
    client: Client,
    recorder: Recorder,
    waiting: Waiting,
    tasks: JoinSet<()>,
}

/// Reports that wait, of one pod only the newest. PURE.
#[derive(Default)]
struct Waiting {
    reports: HashMap<Arc<str>, Report>,
    /// Pods that somebody has to do something about, and whose condition is to be set.
    failed: VecDeque<Arc<str>>,
    /// Pods of which there is only an event to write.
    bound: VecDeque<Arc<str>>,
}

impl Waiting {
    fn add(&mut self, report: Report) {
        let (Report::Scheduled { pod, .. } | Report::Waits { pod, .. } | Report::Failed { pod, .. }) =
            &report;
        let uid = pod.key.uid.clone();
        let kind = std::mem::discriminant(&report);
        let order = if matches!(report, Report::Failed { .. }) { &mut self.failed } else { &mut self.bound };
        // Who waits in that order already is told of with the newest.
        if self.reports.insert(uid.clone(), report).is_none_or(|old| std::mem::discriminant(&old) != kind) {
            order.push_back(uid);
        }
    }

    /// The next one, when `running` are under way.
    fn next(&mut self, running: usize) -> Option<Report> {
        let patience = (1 + self.bound.len() / PATIENCE).min(MAX_REPORTS);
        for (order, most) in [(&mut self.failed, MAX_REPORTS), (&mut self.bound, patience)] {
            while running < most
                && let Some(uid) = order.pop_front()
            {
                if let Some(report) = self.reports.remove(&uid) {
                    return Some(report);
                }
            }
        }
        None
    }
}

impl Reports {
    /// None yet.
    pub fn new(client: Client, recorder: Recorder) -> Self {
        Reports { client, recorder, waiting: Waiting::default(), tasks: JoinSet::new() }
    }

    /// Tells this as soon as may be.
    pub fn add(&mut self, report: Report) {
        self.waiting.add(report);
        self.start();
    }

    /// Waits until one of them is done; for ever if none is under way.
    pub async fn join_next(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.start();
    }

    fn start(&mut self) {
        while let Some(report) = self.waiting.next(self.tasks.len()) {
            self.tasks.spawn(tell(self.client.clone(), self.recorder.clone(), report));
        }
    }
}

async fn tell(client: Client, recorder: Recorder, report: Report) {
    match report {
        Report::Scheduled { pod, node } => {
            recorder.publish(Notice::scheduled(&pod.key, &node), &pod.scheduler_name, &pod.key).await;
        }
        Report::Waits { pod, node } => {
            recorder.publish(Notice::waits(&node), &pod.scheduler_name, &pod.key).await;
        }
        Report::Failed { pod, reason, message, nominated } => {
            let told = set_condition(client, &pod, reason, &message, nominated, Timestamp::now()).await;
            if let Err(error) = told {
                tracing::debug!(%error, namespace = %pod.key.namespace, pod = %pod.key.name, "condition not set");
            }
            recorder.publish(Notice::failed(&message), &pod.scheduler_name, &pod.key).await;
        }
    }
}

/// Tells the victim why it has to go and deletes it. A victim that is gone already is as good.
pub async fn evict(
    client: Client,
    victim: &PodKey,
    scheduler: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client, &victim.namespace);
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let patch = json!({"metadata": {"uid": *victim.uid}, "status": {"conditions": [condition]}});
    let told = pods.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    let options = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(victim.uid.to_string()), resource_version: None }),
        ..DeleteParams::default()
    };
    let gone = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
    let deleted = match told {
        Ok(_) => pods.delete(&victim.name, &options).await.map(|_| ()),
        Err(error) => Err(error),
    };
    deleted.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
}

/// Notes on a pod that no room is being made for it any more.
pub async fn clear_nomination(client: Client, pod: &PodKey) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"uid": *pod.uid}, "status": {"nominatedNodeName": null}});
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

/// Sets the condition PodScheduled=False, and the node on which room is being made, unless all is said already.
async fn set_condition(
    client: Client,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    nominated: Option<String>,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let known = pod.condition.as_deref();
    let same = known.is_some_and(|(r, m)| r == reason && m == message);
    let before = pod.nominated_node.as_deref().unwrap_or_default();
    let nominated = nominated.filter(|node| *node != *before);
    if same && nominated.is_none() {
        return Ok(());
    }
    let mut condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "observedGeneration": pod.generation,
    });
    if known.is_none() {
        let second = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        condition["lastTransitionTime"] = second.into();
        condition["lastProbeTime"] = serde_json::Value::Null;
    }
    let mut patch = json!({"metadata": {"uid": *pod.key.uid}, "status": {"conditions": [condition]}});
    if let Some(node) = nominated {
        patch["status"]["nominatedNodeName"] =
            if node.is_empty() { serde_json::Value::Null } else { node.into() };
    }
    let pods: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
    pods.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: usize) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": uid.to_string()}, "spec": {}});
        Arc::new(crate::plugins::tests::whole_pod(pod))
    }

    fn bound(uid: usize) -> Report {
        Report::Scheduled { pod: pod(uid), node: "node".into() }
    }

    fn failed(uid: usize, message: &str) -> Report {
        Report::Failed { pod: pod(uid), reason: "Unschedulable", message: message.into(), nominated: None }
    }

    #[test]
    fn failures_come_first_and_of_a_pod_the_newest() {
        let mut waiting = Waiting::default();
        waiting.add(bound(1));
        waiting.add(failed(2, "old"));
        waiting.add(failed(2, "new"));
        assert!(
            matches!(waiting.next(MAX_REPORTS - 1), Some(Report::Failed { message, .. }) if message == "new")
        );
        assert!(waiting.failed.is_empty(), "a pod waits once");
        assert!(waiting.next(1).is_none(), "one event at a time");
        assert!(matches!(waiting.next(0), Some(Report::Scheduled { .. })));
        assert!(waiting.next(0).is_none());
    }

    #[test]
    fn many_events_that_wait_are_written_by_more() {
        let mut waiting = Waiting::default();
        (0..=PATIENCE).for_each(|uid| waiting.add(bound(uid)));
        assert!(waiting.next(1).is_some(), "one more for so many");
        assert!(waiting.next(2).is_none());
        (0..PATIENCE * MAX_REPORTS).for_each(|uid| waiting.add(bound(uid)));
        assert!(waiting.next(MAX_REPORTS).is_none());
    }
}
