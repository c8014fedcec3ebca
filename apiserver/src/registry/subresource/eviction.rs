//! `pods/eviction`: a deletion that respects disruption budgets.

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::selector::LabelSelector;
use hawser_api::status::Status;
use hawser_storage::{Error as StorageError, Precondition};
use serde_json::{Value, json};

use super::set_condition;
use crate::access::GroupResource;
use crate::cache::ResourceCache;
use crate::cache::entry::{Entry, Facts};
use crate::hooks;
use crate::options::{DeleteOptions, WriteOptions};
use crate::registry::delete::check_preconditions;
use crate::registry::{Answer, Call, Registry, feed_status, reloading, storage_status};

/// How often a budget is tried when others use it too.
const ATTEMPTS: usize = 16;
/// Pods evicted while the budget's controller does not look: beyond this it must catch up first.
const MAX_DISRUPTED: usize = 2000;

impl Registry {
    /// POST.
    pub(super) async fn evict(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let options = WriteOptions::parse(call.info, "CreateOptions")?;
        let mut eviction = call.decode_as(&body, "policy/v1", "Eviction", options.field_validation)?;
        self.set_namespace(call, &mut eviction)?;
        let name = call.info.name.clone();
        if !eviction.name().is_empty() && eviction.name() != name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut delete = DeleteOptions::parse(call.info, eviction.get("deleteOptions"))?;
        delete.dry_run |= options.dry_run;
        let pod = self.current(call, &name).await?.decode().map_err(Status::internal)?;
        self.admit_delete(call, &pod, &delete).await?;
        if !self.needs_no_budget(&pod) {
            self.use_budget(call, &pod, delete.dry_run).await?;
        }
        if !delete.dry_run {
            let marked = self.mark_evicted(call, &delete).await?;
            if delete.resource_version.is_some() {
                delete.resource_version = Some(marked.to_string());
            }
        }
        self.delete_one(call, &name, &delete).await?;
        let mut done = Status::failure(201, "", "");
        done.status = "Success".into();
        Ok(Answer::Done(Box::new(done)))
    }

    /// Notes in the pod that its end is a disruption and no failure of its own (KEP-3329). Answers its new revision.
    async fn mark_evicted(&self, call: &Call<'_>, options: &DeleteOptions) -> Result<u64, Status> {
        let (cache, kind, name) = (call.cache()?, call.row.stored_kind(), &call.info.name);
        let key = cache.storage_key(call.namespace(), name);
        for _ in 0..ATTEMPTS {
            let entry = self.current(call, name).await?;
            let mut pod = entry.decode().map_err(Status::internal)?;
            check_preconditions(kind, name, &entry, &pod, options)?;
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null});
            set_condition(&mut pod, condition);
            let (value, facts) = (cache.head().encode(&pod), Facts::of(cache.kind(), &pod));
            match self.feed.put(&key, value, facts, Precondition::ModRevision(entry.revision)).await {
                Ok(revision) => return Ok(revision),
                Err(StorageError::Conflict { .. }) => {}
                Err(e) => return Err(storage_status(&e)),
            }
        }
        Err(call.stale(name))
    }

    /// Pods that are over, have not begun, or are going already disturb nobody.
    fn needs_no_budget(&self, pod: &Value) -> bool {
        pod.deletion_timestamp().is_some()
            || matches!(pod.str_at("status.phase"), "Succeeded" | "Failed" | "Pending")
    }

    /// Takes one disruption from the budget of a pod, if it has one.
    async fn use_budget(&self, call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<(), Status> {
        let table = self.kinds.snapshot();
        let resource = GroupResource::new("policy", "poddisruptionbudgets");
        let Some(cache) = table.find_resource(&resource).and_then(|row| row.cache.clone()) else {
            return Ok(());
        };
        for _ in 0..ATTEMPTS {
            self.feed.consistent(&cache).await.map_err(|e| feed_status(&e))?;
            let budgets = budgets_of(&cache, call.namespace(), pod)?;
            let (entry, budget) = match budgets.as_slice() {
                [] => return Ok(()),
                [one] => one,
                _ => {
                    return Err(Status::internal(
                        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not \
                         support.",
                    ));
                }
            };
            if unhealthy_may_go(pod, budget) {
                return Ok(());
            }
            let changed = spend(pod, budget)?;
            if dry_run {
                return Ok(());
            }
            let value = cache.head().encode(&changed);
            let facts = Facts::of(cache.kind(), &changed);
            let key = cache.storage_key(call.namespace(), budget.name());
            match self.feed.put(&key, value, facts, Precondition::ModRevision(entry.revision)).await {
                Ok(_) => return Ok(()),
                Err(StorageError::Conflict { .. }) => {}
                Err(e) => return Err(storage_status(&e)),
            }
        }
        Err(too_many("couldn't update the disruption budget, it is changing too often"))
    }
}

fn too_many(text: &str) -> Status {
    Status::too_many_requests(text, 10)
}

fn budgets_of(
    cache: &ResourceCache,
    namespace: &str,
    pod: &Value,
) -> Result<Vec<(Arc<Entry>, Value)>, Status> {
    let (entries, _) = cache.entries(Some(namespace)).map_err(reloading)?;
    let mut out = Vec::new();
    for entry in entries {
        let budget = entry.decode().map_err(Status::internal)?;
        let selector = LabelSelector::from_object(budget.at("spec.selector")).map_err(Status::from)?;
        let labels = Labels::new(pod.at("metadata.labels").and_then(Value::as_object));
        if selector.matches(labels) {
            out.push((entry, budget));
        }
    }
    Ok(out)
}

fn is_ready(pod: &Value) -> bool {
    pod.items_at("status.conditions")
        .iter()
        .any(|c| c.str_at("type") == "Ready" && c.str_at("status") == "True")
}

/// A pod that is not ready may go without using the budget if the budget says so, or is healthy without it.
fn unhealthy_may_go(pod: &Value, budget: &Value) -> bool {
    if is_ready(pod) {
        return false;
    }
    if budget.str_at("spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return true;
    }
    let desired = budget.int_at("status.desiredHealthy").unwrap_or(0);
    desired > 0 && budget.int_at("status.currentHealthy").unwrap_or(0) >= desired
}

/// The budget with one disruption less.
fn spend(pod: &Value, budget: &Value) -> Result<Value, Status> {
    if budget.int_at("status.observedGeneration").unwrap_or(0) < budget.generation().unwrap_or(0) {
        return Err(too_many("Cannot evict pod as it would violate the pod's disruption budget.")
            .with_cause(
                "DisruptionBudget",
                format!("The disruption budget {} is still being processed by the server.", budget.name()),
                "",
            ));
    }
    let allowed = budget.int_at("status.disruptionsAllowed").unwrap_or(0);
    if allowed <= 0 {
        let healthy = budget.int_at("status.currentHealthy").unwrap_or(0);
        let desired = budget.int_at("status.desiredHealthy").unwrap_or(0);
        return Err(too_many("Cannot evict pod as it would violate the pod's disruption budget.")
            .with_cause(
                "DisruptionBudget",
                format!(
                    "The disruption budget {} needs {desired} healthy pods and has {healthy} currently",
                    budget.name()
                ),
                "",
            ));
    }
    let disrupted = budget.at("status.disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|d| d.len() > MAX_DISRUPTED) {
        return Err(Status::forbidden("policy", "poddisruptionbudgets", budget.name(), "too many evictions"));
    }
    let mut changed = budget.clone();
    changed.set_path(&["status", "disruptionsAllowed"], json!(allowed - 1));
    changed.set_path(&["status", "disruptedPods", pod.name()], json!(hooks::now()));
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_spent_one_by_one() {
        let pod = json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let budget = json!({"metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1}});
        let after = spend(&pod, &budget).expect("allowed");
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert!(after["status"]["disruptedPods"]["p"].is_string());
        assert_eq!(spend(&pod, &after).expect_err("spent").code, 429);
        let mut stale = budget.clone();
        stale["metadata"]["generation"] = json!(2);
        assert_eq!(spend(&pod, &stale).expect_err("stale").code, 429);
        assert!(!unhealthy_may_go(&pod, &budget));
        assert!(unhealthy_may_go(&json!({}), &budget));
    }
}
