//! Subresources that are more than a part of their object.

pub mod binding;
pub mod eviction;
pub mod scale;

use bytes::Bytes;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use serde_json::{Value, json};

use super::{Answer, Call, Registry};
use crate::hooks;

impl Registry {
    /// Serves a verb on a subresource that the row has.
    ///
    /// # Errors
    /// Those of the verb; 405 for verbs that the subresource has not.
    pub async fn subresource(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let info = call.info;
        let sub = call.row.kind.subresource(&info.subresource).ok_or_else(Status::unknown_resource)?;
        if !sub.verbs.iter().any(|v| v == info.verb) {
            return Err(Status::method_not_allowed());
        }
        let core = info.group.is_empty();
        match (info.verb, info.subresource.as_str()) {
            ("get", "scale") => self.get_scale(call).await,
            ("update" | "patch", "scale") => self.set_scale(call, body).await,
            ("create", "binding") if core => self.bind(call, body).await,
            ("create", "eviction") if core => self.evict(call, body).await,
            ("create", _) => {
                let kind = sub.kind.clone();
                let api_version = match (&sub.group, &sub.version) {
                    (Some(g), Some(v)) => hawser_api::object::api_version(g, v),
                    _ => call.row.kind.api_version(),
                };
                let options = crate::options::WriteOptions::parse(info, "CreateOptions")?;
                let object = call.decode_as(&body, &api_version, &kind, options.field_validation)?;
                self.create_virtual_sub(call, object, &api_version, &kind, &options).await
            }
            ("get", _) => self.get(call).await,
            ("update", sub) => self.update(call, body, sub).await,
            ("patch", sub) => self.patch(call, body, sub).await,
            _ => Err(Status::method_not_allowed()),
        }
    }
}

/// Puts a condition into a status. The time of its last change stays when its status does.
fn set_condition(object: &mut Value, mut condition: Value) {
    let mut conditions = object.items_at("status.conditions").to_vec();
    condition.set_path(&["lastTransitionTime"], json!(hooks::now()));
    match conditions.iter_mut().find(|c| c.str_at("type") == condition.str_at("type")) {
        Some(held) => {
            if held.str_at("status") == condition.str_at("status")
                && let Some(since) = held.get("lastTransitionTime")
            {
                condition.set_path(&["lastTransitionTime"], since.clone());
            }
            *held = condition;
        }
        None => conditions.push(condition),
    }
    object.set_path(&["status", "conditions"], Value::Array(conditions));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_the_time_of_their_last_change() {
        let mut pod = json!({"status": {"conditions": [
            {"type": "A", "status": "True", "reason": "Old", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "B", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
        for kind in ["A", "B", "C"] {
            set_condition(&mut pod, json!({"type": kind, "status": "True"}));
        }
        let conditions = pod["status"]["conditions"].as_array().expect("conditions");
        let kept: Vec<bool> =
            conditions.iter().map(|c| c.str_at("lastTransitionTime").starts_with("2020")).collect();
        assert_eq!(kept, [true, false, false]);
        assert!(conditions[0].get("reason").is_none());
        assert!(conditions.iter().all(|c| c["status"] == "True"));
    }
}
