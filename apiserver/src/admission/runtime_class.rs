//! RuntimeClass: what a pod's runtime costs and where it runs.

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde_json::{Value, json};

use super::{Lookup, array_mut, forbidden, is, unaskable};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

pub(super) struct RuntimeClass {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, "", "pods")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let class = self.class(request).await?;
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        match apply(object, class.as_ref()) {
            Ok(()) => Ok(()),
            Err(why) => Err(forbidden(request, why)),
        }
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let class = self.class(request).await?;
        let pod = request.object.as_deref();
        match pod.map_or(Ok(()), |pod| overhead_agrees(pod, class.as_ref())) {
            Ok(()) => Ok(()),
            Err(why) => Err(forbidden(request, why)),
        }
    }
}

impl RuntimeClass {
    /// The class that the pod names.
    async fn class(&self, request: &AdmissionRequest<'_>) -> Result<Option<Value>, Status> {
        let named = request.object.as_deref().and_then(|o| o.at("spec.runtimeClassName"));
        let Some(name) = named.and_then(Value::as_str) else { return Ok(None) };
        if let Some(why) = unaskable(name) {
            return Err(Status::plain_error(why));
        }
        let class = self.reader.get("node.k8s.io", "runtimeclasses", "", name).await?;
        class.map(Some).ok_or_else(|| {
            forbidden(request, format!("pod rejected: RuntimeClass {} not found", quote(name)))
        })
    }
}

/// The overhead that the pod and its class have.
fn overheads<'v>(pod: &'v Value, class: Option<&'v Value>) -> (Option<&'v Value>, Option<&'v Value>) {
    let given = pod.at("spec.overhead").filter(|o| o.as_object().is_some_and(|o| !o.is_empty()));
    (given, class.and_then(|c| c.at("overhead.podFixed")))
}

fn overhead_agrees(pod: &Value, class: Option<&Value>) -> Result<(), String> {
    match overheads(pod, class) {
        (Some(_), None) => {
            Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
                .to_owned())
        }
        (Some(given), Some(fixed)) if given != fixed => Err(UNEQUAL.to_owned()),
        _ => Ok(()),
    }
}

const UNEQUAL: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn apply(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    match overheads(pod, class) {
        (Some(given), Some(fixed)) if given != fixed => return Err(UNEQUAL.to_owned()),
        (None, Some(fixed)) => {
            let fixed = fixed.clone();
            pod.set_path(&["spec", "overhead"], fixed);
        }
        _ => {}
    }
    let Some(scheduling) = class.and_then(|c| c.get("scheduling")) else { return Ok(()) };
    for (key, wanted) in scheduling.get("nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        match pod.get_path(&["spec", "nodeSelector", key]) {
            Some(given) if given != wanted => {
                let (wanted, given) = (wanted.as_str().unwrap_or(""), given.as_str().unwrap_or(""));
                return Err(format!(
                    "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {given}"
                ));
            }
            Some(_) => {}
            None => pod.set_path(&["spec", "nodeSelector", key], wanted.clone()),
        }
    }
    let wanted = scheduling.items_at("tolerations");
    if !wanted.is_empty()
        && let Some(tolerations) = array_mut(pod, &["spec", "tolerations"])
    {
        for toleration in wanted {
            if !tolerations.contains(toleration) {
                tolerations.push(json!(toleration));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn classes_shape_pods() {
        let world = World::new();
        let toleration = json!({"key": "rt", "operator": "Exists"});
        world.put(
            "node.k8s.io",
            "runtimeclasses",
            json!({"metadata": {"name": "rc"}, "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"rt": "yes"}, "tolerations": [toleration]}}),
        );
        let plugin = RuntimeClass { reader: world.lookup() };
        let pod = |spec: Value| {
            world.post("/api/v1/namespaces/a/pods", json!({"metadata": {"name": "p"}, "spec": spec}))
        };
        let shaped = pod(json!({"runtimeClassName": "rc"})).admit(&plugin).await.expect("admitted");
        assert_eq!(
            shaped["spec"],
            json!({"runtimeClassName": "rc", "overhead": {"cpu": "10m"}, "nodeSelector": {"rt": "yes"}, "tolerations": [toleration]})
        );
        for (spec, text) in [
            (json!({}), "ok"),
            (
                json!({"runtimeClassName": "no"}),
                "pods \"p\" is forbidden: pod rejected: RuntimeClass \"no\" not found",
            ),
            (
                json!({"overhead": {"cpu": "1"}}),
                "pods \"p\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            (json!({"runtimeClassName": ""}), "resource name may not be empty"),
            (json!({"runtimeClassName": "../x"}), "invalid resource name \"../x\": [may not contain '/']"),
            (
                json!({"runtimeClassName": "rc", "overhead": {"cpu": "1"}}),
                "pods \"p\" is forbidden: pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ),
            (
                json!({"runtimeClassName": "rc", "nodeSelector": {"rt": "no"}}),
                "pods \"p\" is forbidden: pod rejected: conflict: runtimeClass.scheduling.nodeSelector[rt] = yes; pod.spec.nodeSelector[rt] = no",
            ),
        ] {
            assert_eq!(pod(spec).answer(&plugin).await, text);
        }
        // Whether the overhead agrees is said once everybody has changed the pod.
        let mut early = pod(json!({"overhead": {"cpu": "1"}}));
        early.admitted(&plugin).await.expect("admitted");
    }
}
