//! PodTopologyLabels: a pod carries the zone and the region of the node that it is put on (KEP-4742).

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde_json::json;

use super::{Labelled, Lookup};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopologyLabels {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create
            && info.group.is_empty()
            && info.resource == "pods"
            && matches!(info.subresource.as_str(), "" | "binding")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let node = match request.info.subresource.as_str() {
            "" => object.str_at("spec.nodeName"),
            _ if object.str_at("target.kind") == "Node" => object.str_at("target.name"),
            _ => "",
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = self.reader.get_as::<Labelled>("", "nodes", "", node).await? else { return Ok(()) };
        for label in LABELS {
            if let Some(value) = node.metadata.labels.get(label) {
                object.set_path(&["metadata", "labels", label], json!(value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn pods_and_bindings_take_the_labels_of_their_node() {
        let world = World::new();
        let labels = json!({"topology.kubernetes.io/zone": "z", "other": "x"});
        world.put("", "nodes", json!({"metadata": {"name": "n", "labels": labels}}));
        let plugin = PodTopologyLabels { reader: world.lookup() };
        let pod = world.post("/api/v1/namespaces/a/pods", json!({"spec": {"nodeName": "n"}}));
        let expected = json!({"topology.kubernetes.io/zone": "z"});
        assert_eq!(pod.admit(&plugin).await.expect("admitted")["metadata"]["labels"], expected);
        let binding = json!({"target": {"kind": "Node", "name": "n"}});
        let binding = world.post("/api/v1/namespaces/a/pods/p/binding", binding);
        assert_eq!(binding.admit(&plugin).await.expect("admitted")["metadata"]["labels"], expected);
        let pod = world.post("/api/v1/namespaces/a/pods", json!({"spec": {}}));
        assert!(pod.admit(&plugin).await.expect("admitted").get("metadata").is_none());
    }
}
