//! AppArmor profiles that pods still give by annotation.

use crate::defaults::{absent, child, each, ensure, set, text};
use crate::object::Object;
use serde_json::{Value, json};

const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The annotation that AppArmor had before it had a field.
pub fn from_annotations(pod: &mut Object) {
    let profiles: Vec<(String, Value)> = pod
        .get("metadata")
        .and_then(|m| m.get("annotations"))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| {
            let profile = match v.as_str()? {
                "runtime/default" => json!({"type": "RuntimeDefault"}),
                "unconfined" => json!({"type": "Unconfined"}),
                other => json!({"type": "Localhost", "localhostProfile": other.strip_prefix("localhost/")?}),
            };
            Some((k.strip_prefix(APPARMOR_ANNOTATION)?.to_owned(), profile))
        })
        .collect();
    if profiles.is_empty() {
        return;
    }
    let Some(spec) = child(pod, "spec") else { return };
    for list in ["containers", "initContainers"] {
        each(spec, list, |c| {
            let name = text(c, "name").to_owned();
            if let Some((_, profile)) = profiles.iter().find(|(n, _)| *n == name)
                && let Some(context) = ensure(c, "securityContext")
                && absent(context, "appArmorProfile")
            {
                set(context, "appArmorProfile", profile.clone());
            }
        });
    }
}
