//! ResourceQuota: what a namespace may use in all. Usage is charged to the quotas' status by compare-and-swap before
//! an object is stored, so that creates side by side never exceed a quota together.
//!
//! Requests of one namespace that arrive together are charged together: the first one takes all that wait, decides
//! about each in turn and writes every quota once.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::quota::{self, Item, Quota};
use hawser_api::resources::{self, ResourceList};
use hawser_api::status::Status;
use http::Method;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{Lookup, forbidden};
use crate::access::{Admission, AdmissionRequest, LocalApi, Operation, UserInfo};
use crate::request_info::RequestInfo;

/// How often a charge is tried when others write the same quotas.
const ATTEMPTS: usize = 8;

pub(super) struct ResourceQuota {
    pub(super) reader: Lookup,
    pub(super) local: Arc<dyn LocalApi>,
    pub(super) desks: Arc<Desks>,
}

/// Per namespace: who waits for a charge, and the turn to charge. A namespace is there only while somebody waits.
#[derive(Default)]
pub(super) struct Desks(Mutex<HashMap<String, Arc<Desk>>>);

#[derive(Default)]
struct Desk {
    waiting: Mutex<Vec<Waiter>>,
    turn: tokio::sync::Mutex<()>,
}

/// A request as far as quotas count it.
struct Charge {
    group: String,
    resource: String,
    subresource: String,
    object: Value,
    old: Option<Value>,
    dry_run: bool,
}

struct Waiter {
    charge: Charge,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

/// Why a charge was not made.
enum Refusal {
    /// Text of a 403.
    Forbidden(String),
    Failed(Status),
}

/// What a PUT of a quota's status needs, beside what is charged.
struct Held {
    object: Value,
    quota: Quota,
    before: ResourceList,
}

#[async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        if info.namespace.is_empty() || !quota::is_counted(&info.group, &info.resource) {
            return false;
        }
        let (group, resource, sub) = (info.group.as_str(), info.resource.as_str(), info.subresource.as_str());
        if group.is_empty() && resource == "namespaces" {
            return false;
        }
        match operation {
            Operation::Create => sub.is_empty(),
            Operation::Update => matches!(
                (group, resource, sub),
                ("", "pods", "" | "resize")
                    | ("", "services", "")
                    | ("", "persistentvolumeclaims", "" | "status")
                    | ("resource.k8s.io", "resourceclaims", "")
            ),
            _ => false,
        }
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        let info = request.info;
        if info.resource == "pods"
            && info.subresource.is_empty()
            && request.old_object.is_some_and(|old| same_end(object, old))
        {
            return Ok(());
        }
        if self.reader.is_empty_in("", "resourcequotas", &info.namespace).await? {
            return Ok(());
        }
        let charge = Charge {
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            object: object.clone(),
            old: request.old_object.cloned(),
            dry_run: request.dry_run,
        };
        match self.charge(&info.namespace, charge).await {
            Ok(()) => Ok(()),
            Err(Refusal::Forbidden(why)) => Err(forbidden(request, why)),
            Err(Refusal::Failed(status)) => Err(status),
        }
    }
}

/// Whether an update of a pod leaves it in the scopes Terminating and NotTerminating where it was.
fn same_end(new: &Value, old: &Value) -> bool {
    let ends = |pod: &Value| pod.int_at("spec.activeDeadlineSeconds").is_some_and(|s| s >= 0);
    ends(new) == ends(old)
}

impl ResourceQuota {
    async fn charge(&self, namespace: &str, charge: Charge) -> Result<(), Refusal> {
        let desk = self.desks.0.lock().entry(namespace.to_owned()).or_default().clone();
        let (answer, mut told) = oneshot::channel();
        desk.waiting.lock().push(Waiter { charge, answer });
        let turn = desk.turn.lock().await;
        let told = match told.try_recv() {
            Ok(told) => told,
            Err(_) => {
                let waiting = std::mem::take(&mut *desk.waiting.lock());
                self.charge_all(namespace, waiting).await;
                told.try_recv().unwrap_or_else(|_| {
                    Err(Refusal::Failed(Status::internal("the quota's charge was given up")))
                })
            }
        };
        drop(turn);
        let mut desks = self.desks.0.lock();
        // The map and this call hold it, and nobody can come to it while the map is locked.
        if Arc::strong_count(&desk) <= 2 {
            desks.remove(namespace);
        }
        told
    }

    /// Decides about all waiters, writes the quotas, and tells everyone.
    async fn charge_all(&self, namespace: &str, waiting: Vec<Waiter>) {
        let mut open: Vec<(Waiter, bool)> = waiting.into_iter().map(|w| (w, false)).collect();
        let mut failed = Status::internal("quotas change too often");
        for attempt in 0..ATTEMPTS {
            let mut held = match self.held(namespace, attempt > 0).await {
                Ok(held) => held,
                Err(status) => {
                    failed = status;
                    break;
                }
            };
            let mut charged = Vec::new();
            for (waiter, _) in open {
                match decide(&mut held, &waiter.charge) {
                    Ok(true) => charged.push((waiter, true)),
                    Ok(false) => drop(waiter.answer.send(Ok(()))),
                    Err(why) => drop(waiter.answer.send(Err(Refusal::Forbidden(why)))),
                }
            }
            if charged.is_empty() {
                return;
            }
            match self.write(namespace, &held).await {
                Ok(()) => {
                    charged.into_iter().for_each(|(w, _)| drop(w.answer.send(Ok(()))));
                    return;
                }
                Err(status) => {
                    let conflict = status.is_conflict() || status.is_not_found();
                    failed = status;
                    open = charged;
                    if !conflict {
                        break;
                    }
                }
            }
        }
        for (waiter, _) in open {
            drop(waiter.answer.send(Err(Refusal::Failed(failed.clone()))));
        }
    }

    async fn held(&self, namespace: &str, fresh: bool) -> Result<Vec<Held>, Status> {
        let objects = self.reader.list_in_as("", "resourcequotas", namespace, fresh).await?;
        Ok(objects
            .into_iter()
            .map(|object: Value| {
                let quota = Quota::charged(&object);
                Held { before: quota.used.clone(), object, quota }
            })
            .collect())
    }

    /// Writes what has changed. What was written before a failure stays charged too much until the controller
    /// counts again; it is never too little.
    async fn write(&self, namespace: &str, held: &[Held]) -> Result<(), Status> {
        let user = Arc::new(UserInfo::apiserver());
        for one in held.iter().filter(|h| h.quota.used != h.before) {
            let mut object = one.object.clone();
            object.set_path(&["status", "used"], resources::to_value(&one.quota.used));
            let path = format!("/api/v1/namespaces/{namespace}/resourcequotas/{}/status", one.quota.name);
            self.local.call(user.clone(), Method::PUT, &path, Some(object), None).await?;
        }
        Ok(())
    }
}

/// Charges one request to the quotas in memory: whether any of them has changed.
fn decide(held: &mut [Held], charge: &Charge) -> Result<bool, String> {
    let quotas: Vec<Quota> = held.iter().map(|h| h.quota.clone()).collect();
    let item = Item {
        group: &charge.group,
        resource: &charge.resource,
        object: &charge.object,
        now: Timestamp::now(),
    };
    let used = quota::check(&quotas, item, charge.old.as_ref(), &charge.subresource)?;
    let mut changed = false;
    if !charge.dry_run {
        for (one, used) in held.iter_mut().zip(used) {
            if let Some(used) = used {
                changed |= used != one.quota.used;
                one.quota.used = used;
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, World};
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A server that stores the status of quotas by compare-and-swap, with a rival that writes now and then.
    struct Server {
        objects: Arc<Objects>,
        version: AtomicU64,
    }

    #[async_trait]
    impl LocalApi for Server {
        async fn call(
            &self,
            _: Arc<UserInfo>,
            _: Method,
            _: &str,
            body: Option<Value>,
            _: Option<&str>,
        ) -> Result<Value, Status> {
            tokio::task::yield_now().await;
            let mut body = body.expect("body");
            let version = self.version.fetch_add(1, Ordering::SeqCst);
            let there = self.objects.find("", "resourcequotas", "a", body.name()).expect("quota");
            if version % 3 == 0 || there.resource_version() != body.resource_version() {
                let mut rival = there;
                rival.set_meta("resourceVersion", json!(format!("r{version}")));
                self.objects.put("", "resourcequotas", rival);
                return Err(Status::stale("", "resourcequotas", body.name()));
            }
            body.set_meta("resourceVersion", json!(format!("w{version}")));
            self.objects.put("", "resourcequotas", body.clone());
            Ok(body)
        }
    }

    #[tokio::test]
    async fn creates_side_by_side_never_exceed() {
        let world = World::new();
        let quota = json!({"metadata": {"name": "rq", "namespace": "a", "resourceVersion": "1"}, "spec": {},
            "status": {"hard": {"configmaps": "10"}, "used": {"configmaps": "0"}}});
        world.put("", "resourcequotas", quota);
        let server = Server { objects: world.objects.clone(), version: AtomicU64::new(0) };
        let plugin = ResourceQuota { reader: world.lookup(), local: Arc::new(server), desks: Arc::default() };
        let create = |i: usize| {
            let object = json!({"metadata": {"name": format!("c{i}")}});
            world.post("/api/v1/namespaces/a/configmaps", object).answer(&plugin)
        };
        let answers = futures::future::join_all((0..40).map(create)).await;
        assert_eq!(answers.iter().filter(|a| *a == "ok").count(), 10);
        let text = "exceeded quota: rq, requested: configmaps=1, used: configmaps=10, limited: configmaps=10";
        assert!(answers.iter().filter(|a| *a != "ok").all(|a| a.ends_with(text)), "{answers:?}");
        let after = world.objects.find("", "resourcequotas", "a", "rq").expect("quota");
        assert_eq!(after["status"]["used"], json!({"configmaps": "10"}));
        assert!(plugin.desks.0.lock().is_empty());
    }
}
