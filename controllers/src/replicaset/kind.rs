//! What the controller needs to know of a kind that replicates pods.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use crate::cache::{Caches, Store};
use crate::object::{self, Object};

/// A kind that keeps a number of pods of a template.
pub trait Replicates: Object {
    /// The controller's name in the configuration.
    const NAME: &'static str;
    /// The name under which events are recorded.
    const COMPONENT: &'static str;

    /// Where the kind's objects are cached.
    fn store(caches: &Caches) -> &Store<Self>;
    /// The selector, unless there is none or it is invalid: nothing is done then.
    fn selector(&self) -> Option<Selector>;
    /// How many pods are wanted.
    fn replicas(&self) -> i32;
    /// For how many seconds a pod must be ready to be available.
    fn min_ready_seconds(&self) -> i32;
    /// What the pods are made from.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The status as it is; absent is empty.
    fn status(&self) -> ReplicaSetStatus;
    /// A copy with another status. What the kind has no field for is left out.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicates for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";

    fn store(caches: &Caches) -> &Store<Self> {
        &caches.replica_sets
    }

    fn selector(&self) -> Option<Selector> {
        object::selector(&self.spec.as_ref()?.selector)
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicates for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    fn store(caches: &Caches) -> &Store<Self> {
        &caches.replication_controllers
    }

    fn selector(&self) -> Option<Selector> {
        // An empty map would select every pod; the server defaults it from the template's labels.
        let pairs = self.spec.as_ref()?.selector.clone().filter(|pairs| !pairs.is_empty())?;
        object::selector(&LabelSelector { match_labels: Some(pairs), match_expressions: None })
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaSetStatus {
        let Some(status) = self.status.clone() else { return ReplicaSetStatus::default() };
        let conditions = status.conditions.map(|all| all.into_iter().map(from_old).collect());
        ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions,
        }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(to_old).collect()),
        };
        Self { status: Some(status), ..self.clone() }
    }
}

fn from_old(c: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    }
}

fn to_old(c: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    }
}
