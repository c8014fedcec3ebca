//! Keeping an index in step with a watch cache.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::index::{BindingObject, RbacIndex, RbacKind, RoleObject};
use super::node::graph::NodeGraph;
use crate::access::{Change, GroupResource, ObjectReader, ObjectRef, ReadError};

/// Becomes true once every followed resource has delivered its first list.
#[derive(Debug, Clone)]
pub struct Ready(watch::Receiver<bool>);

impl Ready {
    /// Waits for the first lists. Returns at once afterwards; also returns when the server stops before.
    pub async fn wait(&self) {
        if *self.0.borrow() {
            return;
        }
        // An error means that the followers ended with the server: the answer no longer matters, and an index
        // without entries allows nothing.
        let _ = self.0.clone().wait_for(|ready| *ready).await;
    }

    /// Whether the first lists are there.
    pub fn is(&self) -> bool {
        *self.0.borrow()
    }

    /// Ready from the start: for indexes that tests fill by hand.
    pub fn now() -> Self {
        let (sender, receiver) = watch::channel(true);
        drop(sender);
        Self(receiver)
    }
}

/// Counts first lists down to readiness.
struct Pending {
    left: AtomicUsize,
    ready: watch::Sender<bool>,
}

impl Pending {
    fn new(count: usize) -> (Arc<Self>, Ready) {
        let (ready, receiver) = watch::channel(count == 0);
        (Arc::new(Self { left: AtomicUsize::new(count), ready }), Ready(receiver))
    }

    fn one_done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ready.send_replace(true);
        }
    }
}

/// Follows one stream of changes, calling `apply` for each, until the stream or the server ends.
async fn run(
    mut changes: BoxStream<'static, Change>,
    pending: Arc<Pending>,
    stop: CancellationToken,
    mut apply: impl FnMut(Change) + Send,
) {
    let mut first = true;
    loop {
        let change = tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => change,
        };
        let Some(change) = change else { return };
        let reset = matches!(change, Change::Reset(_));
        apply(change);
        if reset && std::mem::take(&mut first) {
            pending.one_done();
        }
    }
}

/// What is done with each change of a resource.
pub type Apply = Box<dyn FnMut(Change) + Send>;

/// Follows resources, from what there is on. A resource that the reader does not know is said, and never ready.
pub fn follow(
    reader: &dyn ObjectReader,
    resources: Vec<(GroupResource, Apply)>,
    stop: &CancellationToken,
) -> Ready {
    let (pending, ready) = Pending::new(resources.len());
    for (resource, apply) in resources {
        match reader.changes(&resource) {
            Ok(changes) => {
                tokio::spawn(run(changes, Arc::clone(&pending), stop.clone(), apply));
            }
            Err(error) => {
                tracing::error!(%error, resource = resource.resource, "a resource cannot be followed")
            }
        }
    }
    ready
}

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

fn apply_rbac(index: &mut RbacIndex, kind: RbacKind, object: &ObjectRef, present: bool) {
    let (namespace, name) = (&*object.namespace, &*object.name);
    // An object that does not decode gives no rights, and is said once.
    let failed = |error: serde_json::Error| {
        tracing::error!(resource = kind.resource(), namespace, name, %error, "RBAC object does not decode; ignored");
    };
    match kind {
        RbacKind::Role | RbacKind::ClusterRole => {
            let role = present.then(|| object.decode::<RoleObject>().map_err(failed).ok()).flatten();
            match kind {
                RbacKind::Role => index.set_role(namespace, name, role),
                _ => index.set_cluster_role(name, role),
            }
        }
        RbacKind::RoleBinding | RbacKind::ClusterRoleBinding => {
            let binding = present.then(|| object.decode::<BindingObject>().map_err(failed).ok()).flatten();
            match kind {
                RbacKind::RoleBinding => index.set_binding(namespace, name, binding),
                _ => index.set_cluster_binding(name, binding),
            }
        }
    }
}

/// Applies one change to the RBAC index.
pub(super) fn change_rbac(index: &mut RbacIndex, kind: RbacKind, change: Change) {
    match change {
        Change::Applied(object) => apply_rbac(index, kind, &object, true),
        Change::Deleted(object) => apply_rbac(index, kind, &object, false),
        Change::Reset(objects) => {
            let present: HashSet<(&str, &str)> = objects.iter().map(|o| (&*o.namespace, &*o.name)).collect();
            for (namespace, name) in index.names(kind) {
                if present.contains(&(namespace.as_str(), name.as_str())) {
                    continue;
                }
                match kind {
                    RbacKind::Role => index.set_role(&namespace, &name, None),
                    RbacKind::ClusterRole => index.set_cluster_role(&name, None),
                    RbacKind::RoleBinding => index.set_binding(&namespace, &name, None),
                    RbacKind::ClusterRoleBinding => index.set_cluster_binding(&name, None),
                }
            }
            for object in &objects {
                apply_rbac(index, kind, object, true);
            }
        }
    }
}

/// Starts the tasks that keep an RBAC index in step.
///
/// # Errors
/// When the reader knows no RBAC resources.
pub fn follow_rbac(
    reader: &dyn ObjectReader,
    stop: &CancellationToken,
) -> Result<(Arc<RwLock<RbacIndex>>, Ready), ReadError> {
    let index = Arc::new(RwLock::new(RbacIndex::default()));
    let (pending, ready) = Pending::new(RbacKind::ALL.len());
    for kind in RbacKind::ALL {
        let changes = reader.changes(&GroupResource::new(RBAC_GROUP, kind.resource()))?;
        let index = Arc::clone(&index);
        let apply = move |change| change_rbac(&mut index.write(), kind, change);
        tokio::spawn(run(changes, Arc::clone(&pending), stop.clone(), apply));
    }
    Ok((index, ready))
}

/// A node graph with what tells of its state.
#[derive(Debug, Clone)]
pub struct FollowedGraph {
    /// Who needs what.
    pub graph: Arc<RwLock<NodeGraph>>,
    /// Set once the graph holds what the store held at start.
    pub ready: Ready,
    /// Counts the changes that the graph has seen.
    pub changes: watch::Receiver<u64>,
}

impl FollowedGraph {
    /// A graph that nothing changes any more.
    pub fn fixed(graph: NodeGraph) -> Self {
        let (sender, changes) = watch::channel(0);
        drop(sender);
        Self { graph: Arc::new(RwLock::new(graph)), ready: Ready::now(), changes }
    }
}

/// Starts the tasks that keep the node graph in step.
///
/// # Errors
/// When the reader knows one of the resources not.
pub fn follow_nodes(reader: &dyn ObjectReader, stop: &CancellationToken) -> Result<FollowedGraph, ReadError> {
    let graph = Arc::new(RwLock::new(NodeGraph::default()));
    let (counter, seen) = watch::channel(0u64);
    let counter = Arc::new(counter);
    let resources = [("", "pods"), ("", "persistentvolumes"), ("storage.k8s.io", "volumeattachments")];
    let (pending, ready) = Pending::new(resources.len());
    for (group, resource) in resources {
        let changes = reader.changes(&GroupResource::new(group, resource))?;
        let (graph, counter) = (Arc::clone(&graph), Arc::clone(&counter));
        let apply = move |change| {
            change_graph(&mut graph.write(), resource, change);
            counter.send_modify(|count| *count += 1);
        };
        tokio::spawn(run(changes, Arc::clone(&pending), stop.clone(), apply));
    }
    Ok(FollowedGraph { graph, ready, changes: seen })
}

/// What a pod can need on its node; nothing of one that is on none. Of all that changes pods change most, and what
/// makes up most of them is their status and their managers.
fn needed_of_pod(object: &ObjectRef) -> Result<Option<Value>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Bound {
        #[serde(default)]
        node_name: String,
    }
    #[derive(Deserialize)]
    struct Peek {
        spec: Option<Bound>,
    }
    #[derive(Default, Deserialize, Serialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Value,
    }
    #[derive(Default, Deserialize, Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Claims {
        #[serde(default)]
        resource_claim_statuses: Value,
        #[serde(default)]
        extended_resource_claim_status: Value,
    }
    #[derive(Default, Deserialize, Serialize)]
    #[serde(default)]
    struct Needed {
        metadata: Annotated,
        spec: Value,
        status: Claims,
    }
    let peek: Peek = object.decode()?;
    if peek.spec.is_none_or(|spec| spec.node_name.is_empty()) {
        return Ok(None);
    }
    serde_json::to_value(object.decode::<Needed>()?).map(Some)
}

fn set_graph(graph: &mut NodeGraph, resource: &str, object: &ObjectRef, present: bool) {
    let decoded =
        present.then(|| if resource == "pods" { needed_of_pod(object) } else { object.decode().map(Some) });
    let decoded = match decoded.transpose().map(Option::flatten) {
        Ok(decoded) => decoded,
        Err(error) => {
            tracing::error!(resource, name = &*object.name, %error, "object does not decode; ignored by the Node authorizer");
            None
        }
    };
    let (namespace, name) = (&*object.namespace, &*object.name);
    match resource {
        "pods" => graph.set_pod(namespace, name, decoded.as_ref()),
        "persistentvolumes" => graph.set_volume(name, decoded.as_ref()),
        _ => graph.set_attachment(name, decoded.as_ref()),
    }
}

/// Applies one change to the node graph.
pub(super) fn change_graph(graph: &mut NodeGraph, resource: &str, change: Change) {
    match change {
        Change::Applied(object) => set_graph(graph, resource, &object, true),
        Change::Deleted(object) => set_graph(graph, resource, &object, false),
        Change::Reset(objects) => {
            graph.clear(resource);
            for object in &objects {
                set_graph(graph, resource, object, true);
            }
        }
    }
}
