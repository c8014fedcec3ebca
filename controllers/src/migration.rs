//! Storage version migration (KEP-4192): every object of a resource is written once more, as it is, so that the server
//! stores it in the version and with the key of today.
//!
//! Of the migrations of one resource one runs at a time, the oldest first. It notes the resourceVersion that its look
//! began at, then patches nothing into every object that was not written since, page by page, and says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::ListParams;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;

use crate::cache::Caches;
use crate::discovery::{Resource, discover};
use crate::object::{self, Key};
use crate::plan::{Act, Action, Plan, Step, Target};
use crate::runner::{Controller, Failure, Queue, ViewError};

const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
/// Condition of a definition whose objects are migrated.
const STORAGE_MIGRATING: &str = "StorageMigrating";
/// What a resource must serve to be migrated, in the order in which a refusal names it.
const VERBS: [&str; 3] = ["update", "patch", "list"];
/// Objects per page.
const PAGE: u32 = 500;
/// A resource that is not there may be about to come for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// There is more to do, and nothing will say so.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Others of its resource come first.
    Waiting,
    /// It runs, and has not noted yet where it begins.
    Beginning,
    /// Its objects are written.
    Writing,
    /// It succeeded or failed, and is still marked as running.
    Ending,
    /// Nothing is left to do.
    Over,
}

/// An object that is to be written once more.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Where it is.
    pub target: Target,
    /// Its uid: another object of its name is none of ours.
    pub uid: String,
    /// The version that it was seen at.
    pub version: String,
}

/// What a decision about a migration rests on.
pub struct View {
    /// The migration.
    pub migration: Arc<StorageVersionMigration>,
    /// The others of the same resource.
    pub others: Vec<Arc<StorageVersionMigration>>,
    /// The definition of its resource, if it is a custom one and it matters.
    pub definition: Option<CustomResourceDefinition>,
    /// The resource, as discovery tells it.
    pub resource: Option<Resource>,
    /// The newest resourceVersion.
    pub newest: Option<String>,
    /// The next objects; `None`: there are no more.
    pub page: Option<Vec<Item>>,
    /// A write that the server refused for good.
    pub refused: Option<Failure>,
}

fn condition<'a>(migration: &'a StorageVersionMigration, kind: &str) -> Option<&'a Condition> {
    let conditions = migration.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

fn stage(migration: &StorageVersionMigration) -> Stage {
    let over = condition(migration, SUCCEEDED).is_some() || condition(migration, FAILED).is_some();
    let noted = migration.status.as_ref().and_then(|s| s.resource_version.as_deref());
    match (condition(migration, RUNNING).is_some(), over) {
        (true, true) => Stage::Ending,
        (false, true) => Stage::Over,
        (false, false) => Stage::Waiting,
        (true, false) if noted.is_none_or(str::is_empty) => Stage::Beginning,
        (true, false) => Stage::Writing,
    }
}

/// The resource's group and plural.
fn resource_of(migration: &StorageVersionMigration) -> (&str, &str) {
    match migration.spec.as_ref().map(|spec| &spec.resource) {
        Some(resource) => (&resource.group, &resource.resource),
        None => ("", ""),
    }
}

fn age(migration: &StorageVersionMigration) -> (Option<&Time>, &str) {
    (migration.metadata.creation_timestamp.as_ref(), object::name(migration))
}

/// A copy with a condition set. One that is there with another status is changed in its place.
fn with(
    migration: &StorageVersionMigration,
    (kind, status): (&str, &str),
    reason: &str,
    message: &str,
    now: Timestamp,
) -> StorageVersionMigration {
    let mut new = migration.clone();
    let conditions = new.status.get_or_insert_default().conditions.get_or_insert_default();
    let observed = (status == "False").then_some(migration.metadata.generation).flatten();
    let condition = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: observed,
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(held) => *held = condition,
        None => conditions.push(condition),
    }
    new
}

/// What a definition's conditions are to say of a migration; nothing where they say so already.
fn tell_definition(
    definition: &CustomResourceDefinition,
    (status, reason, message): (&str, &str, String),
    stored: Option<&str>,
    now: Timestamp,
) -> Option<Act> {
    let conditions = definition.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let held = conditions.iter().find(|c| c.type_ == STORAGE_MIGRATING);
    if held.is_some_and(|c| c.status == status && c.message.as_deref() == Some(&message)) {
        return None;
    }
    let told = CustomResourceDefinitionCondition {
        type_: STORAGE_MIGRATING.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
        observed_generation: definition.metadata.generation,
    };
    let conditions: Vec<_> =
        conditions.into_iter().filter(|c| c.type_ != STORAGE_MIGRATING).chain([told]).collect();
    let mut patch = json!({
        "metadata": {"resourceVersion": definition.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    if let Some(version) = stored {
        patch["status"]["storedVersions"] = json!([version]);
    }
    Some(Act::patch(definition, Some("status"), patch).may_be_absent())
}

/// What a definition is told when a migration of its objects is over.
fn end_definition(definition: &CustomResourceDefinition, succeeded: bool, now: Timestamp) -> Option<Act> {
    let conditions = definition.status.as_ref().and_then(|s| s.conditions.as_ref());
    let held = conditions.into_iter().flatten().find(|c| c.type_ == STORAGE_MIGRATING)?;
    if held.status != "True" {
        return None;
    }
    // Another storage version since the migration began: its objects may be of either.
    let same = held.observed_generation == definition.metadata.generation;
    let (reason, message) = match (succeeded, same) {
        (false, _) => ("MigrationFailed", "The migration has failed".to_owned()),
        (true, true) => (
            "MigrationSucceeded",
            "The migration has succeeded and the stored versions have been updated".to_owned(),
        ),
        (true, false) => (
            "MigrationSucceeded",
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch"
                .to_owned(),
        ),
    };
    let storage = definition.spec.versions.iter().find(|v| v.storage).map(|v| v.name.as_str());
    tell_definition(definition, ("False", reason, message), storage.filter(|_| succeeded && same), now)
}

/// Decides about a migration.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let migration = view.migration.as_ref();
    if object::is_deleting(migration) {
        return plan;
    }
    let set = |kind, reason, message: &str| with(migration, (kind, "True"), reason, message, now);
    let fail = |message: &str| set(FAILED, "StorageVersionMigrationFailed", message);
    let new = match stage(migration) {
        Stage::Over => return plan,
        Stage::Ending => {
            let succeeded = condition(migration, SUCCEEDED).is_some();
            let told = view.definition.as_ref().and_then(|d| end_definition(d, succeeded, now));
            if let Some(act) = told {
                plan.push(act);
                plan.requeue(AT_ONCE);
                return plan;
            }
            with(migration, (RUNNING, "False"), "MigrationCompleted", "Migration completed", now)
        }
        Stage::Waiting => {
            let first = view.others.iter().all(|other| match stage(other) {
                Stage::Beginning | Stage::Writing => false,
                Stage::Waiting => age(migration) < age(other),
                Stage::Ending | Stage::Over => true,
            });
            if !first {
                return plan;
            }
            let message = format!("Migration {} is running", object::name(migration));
            let told = view
                .definition
                .as_ref()
                .and_then(|d| tell_definition(d, ("True", "MigrationRunning", message), None, now));
            if let Some(act) = told {
                plan.push(act);
                plan.requeue(AT_ONCE);
                return plan;
            }
            set(RUNNING, "MigrationRunning", "The migration is running")
        }
        Stage::Beginning => match (&view.resource, &view.newest) {
            (None, _) => {
                let since = migration.metadata.creation_timestamp.as_ref().map(|t| now.duration_since(t.0));
                if since.is_some_and(|since| since.unsigned_abs() < PATIENCE) {
                    plan.requeue(LOOK_AGAIN);
                    return plan;
                }
                fail("resource does not exist in discovery")
            }
            (Some(resource), _) if !resource.can(&VERBS) => fail(&format!(
                "resource \"{}, Resource={}\" does not support discovery operations: [{}]",
                resource.api.api_version,
                resource.api.plural,
                VERBS.join(" ")
            )),
            (Some(_), None) => return plan,
            (Some(_), Some(newest)) => {
                let mut new = migration.clone();
                new.status.get_or_insert_default().resource_version = Some(newest.clone());
                new
            }
        },
        Stage::Writing => match (&view.refused, &view.page) {
            (Some(refused), _) => {
                fail(&format!("migration encountered unhandled error: {}", refused.message))
            }
            (None, None) => set(SUCCEEDED, "StorageVersionMigrationSucceeded", ""),
            (None, Some(items)) => {
                let begun = migration.status.as_ref().and_then(|s| s.resource_version.as_deref());
                let begun = begun.and_then(object::version_number).unwrap_or(0);
                let older =
                    items.iter().filter(|i| object::version_number(&i.version).is_some_and(|v| v <= begun));
                let writes: Vec<Act> = older.map(rewrite).collect();
                if !writes.is_empty() {
                    plan.actions.push(Step::Parallel(writes));
                }
                plan.requeue(AT_ONCE);
                return plan;
            }
        },
    };
    plan.update_status(migration, &new);
    plan
}

/// Nothing, into this very object: the server writes it if what it stores is not what it would store today. Whoever wrote
/// it or deleted it meanwhile has done the same.
fn rewrite(item: &Item) -> Act {
    let patch = json!({"metadata": {"uid": item.uid, "resourceVersion": item.version}});
    Act::new(Action::Patch { target: item.target.clone(), subresource: None, patch })
        .may_be_absent()
        .may_have_changed()
}

/// Whether a refusal may be none the next time.
fn is_passing(failure: &Failure) -> bool {
    matches!(failure.code, 0 | 429 | 500 | 503 | 504)
}

/// How far a migration has come in the list of its objects.
#[derive(Clone, Default)]
struct Cursor {
    /// The resource, as discovery told it.
    resource: Option<Resource>,
    /// Where the page begins that was looked at last, and where it ends.
    begin: Option<String>,
    end: Option<String>,
    /// It was looked at.
    looked: bool,
}

/// The controller. Keys are migrations.
pub struct Migrations {
    caches: Arc<Caches>,
    client: Client,
    /// By uid of the migration. Lost with the process, which then begins anew.
    cursors: Mutex<HashMap<String, Cursor>>,
}

impl Migrations {
    /// A controller on these caches; the client lists what is to be migrated.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone(), cursors: Mutex::default() }
    }

    async fn definition(
        &self,
        (group, plural): (&str, &str),
    ) -> Result<Option<CustomResourceDefinition>, ViewError> {
        Ok(Api::all(self.client.clone()).get_opt(&format!("{plural}.{group}")).await?)
    }

    async fn resource(&self, (group, plural): (&str, &str)) -> Result<Option<Resource>, ViewError> {
        let found = discover(&self.client).await?;
        Ok(found.resources.into_iter().find(|r| r.api.group == group && r.api.plural == plural))
    }

    async fn list(
        &self,
        resource: &Resource,
        limit: u32,
        from: Option<&str>,
    ) -> Result<kube::core::ObjectList<PartialObjectMeta<DynamicObject>>, kube::Error> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource.api);
        let mut params = ListParams::default().limit(limit);
        params.continue_token = from.map(str::to_owned);
        api.list_metadata(&params).await
    }

    /// The page after the last one; the last one once more after a failure.
    async fn page(
        &self,
        migration: &StorageVersionMigration,
        again: bool,
    ) -> Result<Option<Vec<Item>>, ViewError> {
        let uid = object::uid(migration).to_owned();
        let mut cursor = self.cursors.lock().get(&uid).cloned().unwrap_or_default();
        let known = match cursor.resource.take() {
            Some(resource) => Some(resource),
            None => self.resource(resource_of(migration)).await?,
        };
        // It was there when the migration began; without it nothing is left to be written.
        let Some(resource) = known else { return Ok(None) };
        if cursor.looked && !again {
            if cursor.end.is_none() {
                return Ok(None);
            }
            cursor.begin = cursor.end.take();
        }
        let list = match self.list(&resource, PAGE, cursor.begin.as_deref()).await {
            // The list is too old to go on with.
            Err(kube::Error::Api(status)) if status.code == 410 => {
                cursor.begin = None;
                self.list(&resource, PAGE, None).await?
            }
            // It is gone, or served in another version: discovery tells at the next look, which begins anew.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.cursors.lock().remove(&uid);
                return Err(ViewError::NotReady(format!("{} is not served", resource.api.plural)));
            }
            other => other?,
        };
        cursor.end = list.metadata.continue_.filter(|token| !token.is_empty());
        cursor.looked = true;
        let item = |o: PartialObjectMeta<DynamicObject>| Item {
            target: Target {
                resource: resource.api.clone(),
                namespace: o.metadata.namespace.unwrap_or_default(),
                name: o.metadata.name.unwrap_or_default(),
            },
            uid: o.metadata.uid.unwrap_or_default(),
            version: o.metadata.resource_version.unwrap_or_default(),
        };
        let items = list.items.into_iter().map(item).collect();
        cursor.resource = Some(resource);
        self.cursors.lock().insert(uid, cursor);
        Ok(Some(items))
    }
}

#[async_trait]
impl Controller for Migrations {
    type View = View;

    fn name(&self) -> &'static str {
        "storage-version-migrator"
    }

    fn component(&self) -> &'static str {
        "storage-version-migrator-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (queue, this) = (queue.clone(), Arc::downgrade(&self));
        self.caches.migrations.on_change(move |change| {
            let (Some(this), Some(about)) = (this.upgrade(), change.new.or(change.old)) else { return };
            if change.new.is_none() {
                this.cursors.lock().remove(object::uid(about.as_ref()));
            }
            // One that is over lets the next one begin.
            for other in this.caches.migrations.all() {
                if resource_of(&other) == resource_of(about) {
                    queue.add(Key::of(other.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(migration) = self.caches.migrations.get(key) else { return Ok(None) };
        let of = resource_of(&migration);
        let others = self.caches.migrations.all();
        let others = others.into_iter().filter(|o| resource_of(o) == of && Key::of(o.as_ref()) != *key);
        let mut view = View {
            others: others.collect(),
            definition: None,
            resource: None,
            newest: None,
            page: None,
            refused: prior.filter(|f| f.plural == of.1 && !is_passing(f) && !f.is_conflict()).cloned(),
            migration: migration.clone(),
        };
        match stage(&migration) {
            Stage::Over => drop(self.cursors.lock().remove(object::uid(migration.as_ref()))),
            Stage::Waiting | Stage::Ending => view.definition = self.definition(of).await?,
            Stage::Beginning => {
                view.resource = self.resource(of).await?;
                if let Some(resource) = view.resource.as_ref().filter(|r| r.can(&VERBS)) {
                    view.newest = self.list(resource, 1, None).await?.metadata.resource_version;
                }
            }
            Stage::Writing if view.refused.is_some() => {}
            Stage::Writing => view.page = self.page(&migration, prior.is_some()).await?,
        }
        Ok(Some(view))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::discovery::ApiResource;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("a time")
    }

    fn migration(
        name: &str,
        created: i64,
        met: &[(&str, &str)],
        version: &str,
    ) -> Arc<StorageVersionMigration> {
        let conditions: Vec<_> = met
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": at(0)}))
            .collect();
        let object = json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "9", "creationTimestamp": at(created)},
            "spec": {"resource": {"group": "example.com", "resource": "things"}},
            "status": {"conditions": conditions, "resourceVersion": version},
        });
        Arc::new(serde_json::from_value(object).expect("a migration"))
    }

    fn view(migration: &Arc<StorageVersionMigration>) -> View {
        View {
            migration: migration.clone(),
            others: Vec::new(),
            definition: None,
            resource: None,
            newest: None,
            page: None,
            refused: None,
        }
    }

    fn things(verbs: &[&str]) -> Resource {
        let api = ApiResource {
            group: "example.com".into(),
            version: "v2".into(),
            api_version: "example.com/v2".into(),
            kind: "Thing".into(),
            plural: "things".into(),
        };
        Resource::for_tests(api, true, verbs)
    }

    /// The status that a plan writes: resourceVersion, and conditions as type, status, reason and message.
    fn written(plan: &Plan) -> (String, Vec<[String; 4]>) {
        let Some(act) = plan.status.as_deref() else { panic!("no status: {plan:?}") };
        let Action::Update { subresource: Some("status"), body, .. } = &act.action else { panic!("{act:?}") };
        let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        let conditions = body["status"]["conditions"].as_array().into_iter().flatten();
        let of = |c: &serde_json::Value| ["type", "status", "reason", "message"].map(|field| text(&c[field]));
        (text(&body["status"]["resourceVersion"]), conditions.map(of).collect())
    }

    fn last(plan: &Plan) -> [String; 4] {
        written(plan).1.pop().expect("a condition")
    }

    #[test]
    fn one_of_a_resource_runs_at_a_time_and_the_oldest_first() {
        let (old, new) = (migration("b", 1, &[], ""), migration("a", 2, &[], ""));
        let mut waits = view(&new);
        waits.others = vec![old.clone()];
        assert_eq!(reconcile(&waits, at(3)), Plan::new());
        let mut begins = view(&old);
        begins.others = vec![new.clone(), migration("c", 0, &[(RUNNING, "False"), (FAILED, "True")], "5")];
        let plan = reconcile(&begins, at(3));
        assert_eq!(last(&plan), ["Running", "True", "MigrationRunning", "The migration is running"]);
        begins.others.push(migration("d", 4, &[(RUNNING, "True")], ""));
        assert_eq!(reconcile(&begins, at(3)), Plan::new());
        // Of the same age the first by name.
        let mut first = view(&migration("a", 1, &[], ""));
        first.others = vec![old];
        assert!(reconcile(&first, at(3)).status.is_some());
    }

    #[test]
    fn it_begins_at_the_newest_version_of_a_resource_that_can_be_written() {
        let begins = migration("a", 0, &[(RUNNING, "True")], "");
        let mut v = view(&begins);
        let plan = reconcile(&v, at(59));
        assert_eq!(
            (plan.is_empty(), plan.requeue_after),
            (true, Some(LOOK_AGAIN)),
            "it may be about to come"
        );
        let failed = ["Failed", "True", "StorageVersionMigrationFailed"].map(str::to_owned);
        let gone = last(&reconcile(&v, at(60)));
        assert_eq!((&gone[..3], gone[3].as_str()), (&failed[..], "resource does not exist in discovery"));
        v.resource = Some(things(&["list", "create"]));
        let refused = last(&reconcile(&v, at(1)));
        assert_eq!(
            refused[3],
            "resource \"example.com/v2, Resource=things\" does not support discovery operations: [update patch list]"
        );
        v.resource = Some(things(&["list", "update", "patch"]));
        v.newest = Some("77".into());
        assert_eq!(written(&reconcile(&v, at(1))).0, "77");
    }

    #[test]
    fn what_was_not_written_since_is_written_and_then_it_is_over() {
        let writing = migration("a", 0, &[(RUNNING, "True")], "77");
        let item = |name: &str, version: &str| Item {
            target: Target { resource: things(&[]).api, namespace: "ns".into(), name: name.into() },
            uid: format!("uid-{name}"),
            version: version.into(),
        };
        let mut v = view(&writing);
        v.page = Some(vec![item("old", "5"), item("now", "77"), item("later", "78")]);
        let plan = reconcile(&v, at(1));
        let acts: Vec<&Act> = plan.acts().collect();
        let names: Vec<&str> = acts.iter().map(|act| act.action.target().name.as_str()).collect();
        assert_eq!((names, plan.requeue_after), (vec!["old", "now"], Some(AT_ONCE)));
        let Action::Patch { patch, subresource: None, .. } = &acts[0].action else { panic!("{acts:?}") };
        assert_eq!(*patch, json!({"metadata": {"uid": "uid-old", "resourceVersion": "5"}}));
        assert!(acts[0].may_be_absent && acts[0].may_have_changed);
        // An empty page is none at the end.
        v.page = Some(Vec::new());
        let plan = reconcile(&v, at(1));
        assert_eq!((plan.is_empty(), plan.requeue_after), (true, Some(AT_ONCE)));
        v.page = None;
        assert_eq!(
            last(&reconcile(&v, at(1)))[..3],
            ["Succeeded", "True", "StorageVersionMigrationSucceeded"]
        );
        v.refused = Some(Failure {
            verb: "patch",
            plural: "things".into(),
            key: Key::new("ns", "old"),
            code: 422,
            reason: "Invalid".into(),
            message: "it is not valid any more".into(),
        });
        let failed = last(&reconcile(&v, at(1)));
        assert_eq!(failed[0], "Failed");
        assert_eq!(failed[3], "migration encountered unhandled error: it is not valid any more");
    }

    fn definition(generation: i64, condition: serde_json::Value) -> CustomResourceDefinition {
        let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let object = json!({
            "metadata": {"name": "things.example.com", "uid": "d", "resourceVersion": "3", "generation": generation},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"kind": "Thing", "plural": "things"},
                "versions": [version("v1", false), version("v2", true)]},
            "status": {"conditions": condition, "storedVersions": ["v1", "v2"]},
        });
        serde_json::from_value(object).expect("a definition")
    }

    /// The patch of a plan that tells a definition something and nothing else.
    fn told(plan: &Plan) -> serde_json::Value {
        assert!(plan.status.is_none() && plan.requeue_after == Some(AT_ONCE), "{plan:?}");
        let [Step::One(act)] = plan.actions.as_slice() else { panic!("{plan:?}") };
        let Action::Patch { patch, subresource: Some("status"), .. } = &act.action else { panic!("{act:?}") };
        assert_eq!(patch["metadata"]["resourceVersion"], "3");
        patch["status"].clone()
    }

    #[test]
    fn a_definition_is_told_first_and_loses_the_versions_that_nothing_is_stored_in() {
        let mut v = view(&migration("a", 0, &[], ""));
        v.definition = Some(definition(4, json!([])));
        let begun = told(&reconcile(&v, at(1)));
        let condition = &begun["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["message"]),
            (&json!("True"), &json!("Migration a is running"))
        );
        assert!(begun.get("storedVersions").is_none());
        v.definition = Some(definition(4, begun["conditions"].clone()));
        assert_eq!(last(&reconcile(&v, at(1)))[0], RUNNING);

        for (kind, generation, stored, message) in [
            (
                SUCCEEDED,
                4,
                json!(["v2"]),
                "The migration has succeeded and the stored versions have been updated",
            ),
            (
                SUCCEEDED,
                5,
                json!(null),
                "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
            ),
            (FAILED, 4, json!(null), "The migration has failed"),
        ] {
            let mut v = view(&migration("a", 0, &[(RUNNING, "True"), (kind, "True")], "77"));
            v.definition = Some(definition(generation, begun["conditions"].clone()));
            let ended = told(&reconcile(&v, at(2)));
            assert_eq!(
                (&ended["conditions"][0]["message"], &ended["storedVersions"]),
                (&json!(message), &stored)
            );
            v.definition = Some(definition(generation, ended["conditions"].clone()));
            let (_, conditions) = written(&reconcile(&v, at(2)));
            assert_eq!(conditions[0], ["Running", "False", "MigrationCompleted", "Migration completed"]);
        }
        let over = migration("a", 0, &[(RUNNING, "False"), (SUCCEEDED, "True")], "77");
        assert_eq!(reconcile(&view(&over), at(3)), Plan::new());
    }
}
