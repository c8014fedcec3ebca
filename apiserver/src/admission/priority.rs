//! Priority: a pod's priority comes from its PriorityClass, never from the pod itself.

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Lookup, forbidden, is};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

const GROUP: &str = "scheduling.k8s.io";

/// What counts of a PriorityClass: they are read for every pod that is made.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Class {
    metadata: Named,
    value: i64,
    global_default: bool,
    preemption_policy: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

pub(super) struct Priority {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && (is(info, "", "pods") || is(info, GROUP, "priorityclasses"))
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.info.resource != "pods" {
            return Ok(());
        }
        if request.operation == Operation::Update {
            // Old clients send the pod without what was computed: it stays.
            let Some((object, old)) = request.object.as_deref_mut().zip(request.old_object) else {
                return Ok(());
            };
            for field in ["priority", "preemptionPolicy"] {
                let (path, dotted) = (["spec", field], format!("spec.{field}"));
                if object.at(&dotted).is_none_or(Value::is_null)
                    && let Some(value) = old.at(&dotted)
                {
                    object.set_path(&path, value.clone());
                }
            }
            return Ok(());
        }
        self.create_pod(request).await
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        if request.info.resource != "priorityclasses" || object.bool_at("globalDefault") != Some(true) {
            return Ok(());
        }
        match self.default_class().await? {
            Some(class) if class.metadata.name != object.name() => {
                let why = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    class.metadata.name
                );
                Err(forbidden(request, why))
            }
            _ => Ok(()),
        }
    }
}

impl Priority {
    /// The default class; of several (made at the same moment) the one with the lowest value.
    async fn default_class(&self) -> Result<Option<Class>, Status> {
        let classes: Vec<Class> = self.reader.list_as(GROUP, "priorityclasses").await?;
        Ok(classes.into_iter().filter(|class| class.global_default).min_by_key(|class| class.value))
    }

    async fn create_pod(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let name = request.object.as_deref().map_or("", |o| o.str_at("spec.priorityClassName")).to_owned();
        let class =
            if name.is_empty() {
                self.default_class().await?
            } else {
                let class: Option<Class> = self.reader.get_as(GROUP, "priorityclasses", "", &name).await?;
                Some(class.ok_or_else(|| {
                    forbidden(request, format!("no PriorityClass with name {name} was found"))
                })?)
            };
        let value = class.as_ref().map_or(0, |c| c.value);
        let policy = class.as_ref().map(|c| c.preemption_policy.as_str()).filter(|p| !p.is_empty());
        let policy = policy.unwrap_or("PreemptLowerPriority").to_owned();
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        if let Some(given) = object.int_at("spec.priority").filter(|given| *given != value) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name"
            );
            return Err(forbidden(request, why));
        }
        let given = object.str_at("spec.preemptionPolicy");
        if !given.is_empty() && given != policy {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            );
            return Err(forbidden(request, why));
        }
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        if let Some(class) = class.filter(|_| name.is_empty()) {
            object.set_path(&["spec", "priorityClassName"], json!(class.metadata.name));
        }
        object.set_path(&["spec", "priority"], json!(value));
        object.set_path(&["spec", "preemptionPolicy"], json!(policy));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn priorities_come_from_classes() {
        let world = World::new();
        let class = json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"});
        world.put(GROUP, "priorityclasses", class);
        let plugin = Priority { reader: world.lookup() };
        let pod = |spec: Value| {
            world.post("/api/v1/namespaces/a/pods", json!({"metadata": {"name": "p"}, "spec": spec}))
        };
        let plain = pod(json!({})).admit(&plugin).await.expect("admitted");
        assert_eq!(plain["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let high = pod(json!({"priorityClassName": "high"})).admit(&plugin).await.expect("admitted");
        assert_eq!(
            high["spec"],
            json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"})
        );
        for (spec, text) in [
            (
                json!({"priorityClassName": "nope"}),
                "pods \"p\" is forbidden: no PriorityClass with name nope was found",
            ),
            (
                json!({"priority": 5}),
                "pods \"p\" is forbidden: the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 0 from the given PriorityClass name",
            ),
        ] {
            assert_eq!(pod(spec).answer(&plugin).await, text);
        }
        let default = json!({"metadata": {"name": "mid"}, "value": 5, "globalDefault": true});
        world.put(GROUP, "priorityclasses", default.clone());
        let defaulted = pod(json!({})).admit(&plugin).await.expect("admitted");
        assert_eq!(
            (&defaulted["spec"]["priority"], &defaulted["spec"]["priorityClassName"]),
            (&json!(5), &json!("mid"))
        );
        let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
        let second = world.post(classes, json!({"metadata": {"name": "other"}, "globalDefault": true}));
        assert!(
            second
                .answer(&plugin)
                .await
                .ends_with("PriorityClass mid is already marked as default. Only one default can exist")
        );
        assert_eq!(
            world.put_request(&format!("{classes}/mid"), default.clone(), default).answer(&plugin).await,
            "ok"
        );
        let (new, old) = (json!({"spec": {}}), json!({"spec": {"priority": 7}}));
        let updated = world
            .put_request("/api/v1/namespaces/a/pods/p", new, old)
            .admit(&plugin)
            .await
            .expect("admitted");
        assert_eq!(updated["spec"]["priority"], 7);
    }
}
