//! NamespaceLifecycle: nothing is made in a namespace that is missing or going away; some namespaces stay.

use async_trait::async_trait;
use hawser_api::status::Status;
use serde::Deserialize;

use super::{Lookup, forbidden};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The part of a Namespace that counts: it is read for every write of a namespaced object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespace {
    status: NamespaceStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamespaceStatus {
    phase: String,
}

pub(super) struct NamespaceLifecycle {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        match operation {
            Operation::Delete => info.resource == "namespaces" && info.group.is_empty(),
            Operation::Connect => false,
            // Access may be asked about in any namespace.
            _ => {
                !info.namespace.is_empty()
                    && info.resource != "namespaces"
                    && !(info.group == "authorization.k8s.io" && info.resource == "localsubjectaccessreviews")
            }
        }
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation == Operation::Delete {
            if IMMORTAL.contains(&request.info.name.as_str()) {
                return Err(forbidden(request, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let name = &request.info.namespace;
        let Some(namespace) = self.reader.get_as::<Namespace>("", "namespaces", "", name).await? else {
            return Err(Status::not_found("", "namespaces", name));
        };
        // What is in a namespace that is going away may still change, so that it can end.
        if request.operation != Operation::Create || namespace.status.phase != "Terminating" {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let cause = format!("namespace {name} is being terminated");
        Err(forbidden(request, why).with_cause("NamespaceTerminating", cause, "metadata.namespace"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn missing_and_ending_namespaces() {
        let world = World::new();
        world.put("", "namespaces", json!({"metadata": {"name": "live"}, "status": {"phase": "Active"}}));
        world.put(
            "",
            "namespaces",
            json!({"metadata": {"name": "ending"}, "status": {"phase": "Terminating"}}),
        );
        let plugin = NamespaceLifecycle { reader: world.lookup() };
        let configmap = json!({"metadata": {"name": "a"}});
        let create = |ns: &str| world.post(&format!("/api/v1/namespaces/{ns}/configmaps"), configmap.clone());
        assert!(create("live").admit(&plugin).await.is_ok());
        let missing = create("nope").admit(&plugin).await.expect_err("refused");
        assert_eq!((missing.code, missing.message.as_str()), (404, "namespaces \"nope\" not found"));
        let ending = create("ending").admit(&plugin).await.expect_err("refused");
        assert_eq!(ending.code, 403);
        assert_eq!(
            ending.message,
            "configmaps \"a\" is forbidden: unable to create new content in namespace ending because it is being terminated"
        );
        assert_eq!(ending.details.expect("details").causes[0].reason, "NamespaceTerminating");
        let update =
            world.put_request("/api/v1/namespaces/ending/configmaps/a", configmap.clone(), configmap.clone());
        assert!(update.admit(&plugin).await.is_ok());
        let delete = world
            .delete("/api/v1/namespaces/kube-system", json!({}))
            .admit(&plugin)
            .await
            .expect_err("refused");
        assert_eq!(
            delete.message,
            "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
        );
        assert!(world.delete("/api/v1/namespaces/live", json!({})).admit(&plugin).await.is_ok());
    }
}
