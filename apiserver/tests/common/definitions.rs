//! CustomResourceDefinitions for tests.

use std::sync::Arc;

use hawser_api::crd::definition::is_true;
use hawser_api::crd::rows::rows;
use hawser_api::kinds::Kind;
use serde_json::Value;

use super::common::{Kit, version};

/// Path of the definitions.
pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Makes a definition and waits until it says that it is established; answers the rows it serves.
pub async fn define(kit: &Kit, crd: &Value) -> Vec<Arc<Kind>> {
    let made = kit.post(DEFINITIONS, crd).await.expect(201);
    let crd = wait(kit, &made, |crd| is_true(crd, "Established")).await;
    let source = Arc::new(crd.to_string().into_bytes());
    let kinds = rows(&crd, &(source as _)).into_iter().map(Arc::new);
    kinds.filter(|k: &Arc<Kind>| !k.verbs.is_empty()).collect()
}

/// Watches a definition from a state on, until it is as wanted.
pub async fn wait(kit: &Kit, from: &Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let name = from["metadata"]["name"].as_str().expect("a name");
    let path = format!(
        "{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3D{name}&resourceVersion={}&timeoutSeconds=20",
        version(from)
    );
    let mut events = kit.watch(&path).await;
    loop {
        let event = events.next().await.expect("the definition changes");
        if wanted(&event["object"]) {
            return event["object"].clone();
        }
    }
}
