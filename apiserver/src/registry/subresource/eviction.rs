//! `pods/eviction`: a deletion that respects disruption budgets.

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::selector::LabelSelector;
use hawser_api::status::Status;
use hawser_api::text::quote;
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
/// The condition of a budget.
const ALLOWED: &str = "DisruptionAllowed";

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
        let first = self.current(call, &name).await?.decode().map_err(Status::internal)?;
        self.admit_delete(call, &first, &delete).await?;
        let mut conflict = None;
        for _ in 0..ATTEMPTS {
            let entry = self.current(call, &name).await?;
            let pod = entry.decode().map_err(Status::internal)?;
            let leave = match without_budget(&pod) {
                Some(leave) => leave,
                None => self.use_budget(call, &pod, delete.dry_run).await?,
            };
            let mut wish = delete.clone();
            // It may go as what it is now: if it has become healthy meanwhile, that uses the budget.
            let as_it_is =
                matches!(leave, Leave::NotBegun | Leave::Unhealthy(_)) && wish.resource_version.is_none();
            if as_it_is {
                wish.resource_version = Some(entry.revision.to_string());
            }
            match (self.delete_evicted(call, &name, wish).await, leave) {
                (Err(status), Leave::NotBegun) if as_it_is && status.is("Conflict") => {
                    conflict = Some(status)
                }
                (Err(status), Leave::Unhealthy(budget)) if as_it_is && status.is("Conflict") => {
                    return Err(still_processed(&budget));
                }
                (result, _) => {
                    result?;
                    let mut done = Status::failure(201, "", "");
                    done.status = "Success".into();
                    return Ok(Answer::Done(Box::new(done)));
                }
            }
        }
        Err(conflict.unwrap_or_else(|| call.stale(&name)))
    }

    async fn delete_evicted(
        &self,
        call: &Call<'_>,
        name: &str,
        mut delete: DeleteOptions,
    ) -> Result<(), Status> {
        if !delete.dry_run {
            let marked = self.mark_evicted(call, &delete).await?;
            if delete.resource_version.is_some() {
                delete.resource_version = Some(marked.to_string());
            }
        }
        self.delete_one(call, name, &delete).await.map(drop)
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

    /// Takes one disruption from the budget of a pod, if it has one.
    async fn use_budget(&self, call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<Leave, Status> {
        let table = self.kinds.snapshot();
        let resource = GroupResource::new("policy", "poddisruptionbudgets");
        let Some(cache) = table.find_resource(&resource).and_then(|row| row.cache.clone()) else {
            return Ok(Leave::Granted);
        };
        let mut tried = String::new();
        for _ in 0..ATTEMPTS {
            self.feed.consistent(&cache).await.map_err(|e| feed_status(&e))?;
            let budgets = budgets_of(&cache, call.namespace(), pod)?;
            let (entry, budget) = match budgets.as_slice() {
                [] => return Ok(Leave::Granted),
                [one] => one,
                _ => {
                    return Err(Status::plain_error(
                        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not \
                         support.",
                    ));
                }
            };
            if unhealthy_may_go(pod, budget) {
                return Ok(Leave::Unhealthy(budget.name().to_owned()));
            }
            let changed = spend(pod, budget)?;
            if dry_run {
                return Ok(Leave::Granted);
            }
            let value = cache.head().encode(&changed);
            let facts = Facts::of(cache.kind(), &changed);
            let key = cache.storage_key(call.namespace(), budget.name());
            match self.feed.put(&key, value, facts, Precondition::ModRevision(entry.revision)).await {
                Ok(_) => return Ok(Leave::Granted),
                Err(StorageError::Conflict { .. }) => budget.name().clone_into(&mut tried),
                Err(e) => return Err(storage_status(&e)),
            }
        }
        let why = format!("couldn't update PodDisruptionBudget {} due to conflicts", quote(&tried));
        Err(Status::timeout(why, 10))
    }
}

/// Why a pod may go.
enum Leave {
    /// It is over, or going already.
    Over,
    /// It has not begun.
    NotBegun,
    /// It is not ready, and this budget lets such pods go.
    Unhealthy(String),
    /// Its budget has one disruption less now, or it has none.
    Granted,
}

/// Pods that are over, have not begun, or are going already disturb nobody.
fn without_budget(pod: &Value) -> Option<Leave> {
    match pod.str_at("status.phase") {
        "Succeeded" | "Failed" => Some(Leave::Over),
        _ if pod.deletion_timestamp().is_some() => Some(Leave::Over),
        "Pending" => Some(Leave::NotBegun),
        _ => None,
    }
}

/// The refusal, with the seconds after which a client should ask again: those of client-go do so by themselves, so a budget
/// that is used up, for nobody knows how long, names none.
fn refused(retry_after_seconds: u32, why: String) -> Status {
    let text = "Cannot evict pod as it would violate the pod's disruption budget.";
    Status::too_many_requests(text, retry_after_seconds).with_cause("DisruptionBudget", why, "")
}

fn still_processed(budget: &str) -> Status {
    refused(10, format!("The disruption budget {budget} is still being processed by the server."))
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
    let name = budget.name();
    if budget.int_at("status.observedGeneration").unwrap_or(0) < budget.generation().unwrap_or(0) {
        return Err(still_processed(name));
    }
    let forbidden = |why: &str| Err(Status::forbidden("policy", "poddisruptionbudget", name, why));
    let allowed = budget.int_at("status.disruptionsAllowed").unwrap_or(0);
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = budget.at("status.disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|d| d.len() > MAX_DISRUPTED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        return Err(refused(0, used_up(budget)));
    }
    let mut changed = budget.clone();
    changed.set_path(&["status", "disruptionsAllowed"], json!(allowed - 1));
    if allowed == 1 {
        let generation = budget.at("status.observedGeneration").cloned().unwrap_or_default();
        let condition = json!({"type": ALLOWED, "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": generation});
        set_condition(&mut changed, condition);
    }
    changed.set_path(&["status", "disruptedPods", pod.name()], json!(hooks::now()));
    Ok(changed)
}

/// Why a budget allows nothing.
fn used_up(budget: &Value) -> String {
    let name = budget.name();
    let conditions = budget.items_at("status.conditions");
    let told = conditions
        .iter()
        .find(|c| c.str_at("type") == ALLOWED && c.str_at("status") == "False")
        .map(|c| (c.str_at("reason"), c.str_at("message")))
        .filter(|(_, message)| !message.is_empty());
    let healthy = budget.int_at("status.currentHealthy").unwrap_or(0);
    let desired = budget.int_at("status.desiredHealthy").unwrap_or(0);
    match told {
        // The counts are worth nothing then.
        Some(("SyncFailed", message)) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
        ),
        _ if healthy <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        }
        Some((reason, message)) => {
            format!(
                "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
            )
        }
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
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
        let condition = &after["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("InsufficientPods"))
        );
        let mut stale = budget.clone();
        stale["metadata"]["generation"] = json!(2);
        assert_eq!(spend(&pod, &stale).expect_err("stale").code, 429);
        assert!(!unhealthy_may_go(&pod, &budget));
        assert!(unhealthy_may_go(&json!({}), &budget));
    }

    #[test]
    fn a_refusal_says_why_and_when_to_ask_again() {
        let pod = json!({"metadata": {"name": "p"}});
        let budget = |status: Value| json!({"metadata": {"name": "b", "generation": 1}, "status": status});
        let insufficient = |message: &str| json!([{"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": message}]);
        let cases = [
            (json!({}), 10, "The disruption budget b is still being processed by the server."),
            (
                json!({"observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 2}),
                0,
                "The disruption budget b needs 2 healthy pods and has 1 currently",
            ),
            (
                json!({"observedGeneration": 1, "conditions": [{"type": "DisruptionAllowed", "status": "False",
                    "reason": "SyncFailed", "message": "no"}]}),
                0,
                "The disruption budget b does not allow evicting pods currently because it failed sync: no",
            ),
            (
                json!({"observedGeneration": 1, "currentHealthy": 3, "desiredHealthy": 2, "conditions": insufficient("m")}),
                0,
                "The disruption budget b does not allow evicting pods currently (InsufficientPods): m",
            ),
            (
                json!({"observedGeneration": 1, "currentHealthy": 3, "desiredHealthy": 2, "conditions": insufficient("")}),
                0,
                "The disruption budget b does not allow evicting pods currently",
            ),
        ];
        for (status, seconds, why) in cases {
            let refused = spend(&pod, &budget(status)).expect_err(why);
            let details = refused.details.expect("details");
            assert_eq!(
                (refused.code, details.retry_after_seconds, &*details.causes[0].message),
                (429, seconds, why)
            );
        }
        let negative = json!({"observedGeneration": 1, "disruptionsAllowed": -1});
        assert_eq!(
            spend(&pod, &budget(negative)).expect_err("negative").message,
            "poddisruptionbudget.policy \"b\" is forbidden: pdb disruptions allowed is negative"
        );
    }
}
