//! LimitRanger: containers get the defaults of their namespace's LimitRanges, and pods and claims stay within bounds.

use async_trait::async_trait;
use hawser_api::limits;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde_json::Value;

use super::{Lookup, forbidden, is};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

pub(super) struct LimitRanger {
    pub(super) reader: Lookup,
}

impl LimitRanger {
    async fn ranges(&self, request: &AdmissionRequest<'_>) -> Result<Vec<Value>, Status> {
        // What is being deleted may change until it is gone.
        let leaving = request.operation == Operation::Update
            && request.object.as_deref().is_some_and(|o| o.deletion_timestamp().is_some());
        if leaving {
            Ok(Vec::new())
        } else {
            self.reader.list_in("", "limitranges", &request.info.namespace).await
        }
    }
}

#[async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        match operation {
            Operation::Create => is(info, "", "pods") || is(info, "", "persistentvolumeclaims"),
            Operation::Update => {
                is(info, "", "persistentvolumeclaims")
                    || (info.group.is_empty() && info.resource == "pods" && info.subresource == "resize")
            }
            _ => false,
        }
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if request.info.resource != "pods" {
            return Ok(());
        }
        let ranges = self.ranges(request).await?;
        if let Some(pod) = request.object.as_deref_mut() {
            ranges.iter().for_each(|range| limits::fill_in(range, pod));
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        for range in self.ranges(request).await? {
            let found = match request.info.resource.as_str() {
                "pods" => limits::check_pod(&range, object),
                _ => limits::check_claim(&range, object),
            };
            if !found.is_empty() {
                return Err(forbidden(request, limits::aggregate(found)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn defaults_come_before_bounds() {
        let world = World::new();
        let plugin = LimitRanger { reader: world.lookup() };
        let pod = |cpu: Option<&str>| {
            let limits = cpu.map_or(json!({}), |cpu| json!({"limits": {"cpu": cpu}}));
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": limits}]}});
            world.post("/api/v1/namespaces/a/pods", pod)
        };
        assert_eq!(pod(Some("3")).answer(&plugin).await, "ok");
        let range = json!({"metadata": {"name": "lr", "namespace": "a"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "2"}}]}});
        world.put("", "limitranges", range);
        let admitted = pod(None).admit(&plugin).await.expect("admitted");
        assert_eq!(
            admitted["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod(Some("3")).answer(&plugin).await,
            "pods \"p\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"
        );
    }
}
