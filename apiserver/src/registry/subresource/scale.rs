//! `scale`: the number of replicas alone, as `autoscaling/v1` Scale.

use bytes::Bytes;
use hawser_api::decode::{self, Dropped};
use hawser_api::object::ObjectExt as _;
use hawser_api::schema;
use hawser_api::selector::LabelSelector;
use hawser_api::status::{FieldError, Status};
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::options::WriteOptions;
use crate::registry::create::check_name;
use crate::registry::modify::Manner;
use crate::registry::patch::Patch;
use crate::registry::{Answer, Call, Registry};

const API_VERSION: &str = "autoscaling/v1";
const KIND: &str = "Scale";

/// The Scale of an object.
fn scale_of(object: &Value) -> Result<Value, Status> {
    let selector = object.at("spec.selector");
    let selector = match selector {
        Some(s) if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            LabelSelector::from_object(Some(s)).map_err(Status::from)?
        }
        other => LabelSelector::from_map(other),
    };
    let mut meta = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get_path(&["metadata", field]) {
            meta[field] = value.clone();
        }
    }
    let mut status = json!({"replicas": object.int_at("status.replicas").unwrap_or(0)});
    let text = selector.to_string();
    if !text.is_empty() && !selector.nothing {
        status["selector"] = json!(text);
    }
    let mut spec = json!({});
    if let Some(replicas) = object.int_at("spec.replicas") {
        spec["replicas"] = json!(replicas);
    }
    Ok(json!({"kind": KIND, "apiVersion": API_VERSION, "metadata": meta, "spec": spec, "status": status}))
}

impl Registry {
    /// GET.
    pub(super) async fn get_scale(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let entry = self.current(call, &call.info.name).await?;
        let object = entry.decode().map_err(Status::internal)?;
        Ok(Answer::Object(200, scale_of(&object)?))
    }

    /// PUT and PATCH.
    pub(super) async fn set_scale(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let name = &call.info.name;
        let patching = call.info.verb == "patch";
        let options_kind = if patching { "PatchOptions" } else { "UpdateOptions" };
        let options = WriteOptions::parse(call.info, options_kind)?;
        let ty = schema::find_kind(API_VERSION, KIND);
        let mut dropped = Dropped::default();
        let (patch, sent) = if patching {
            (Some(Patch::parse(call.header(CONTENT_TYPE), &body, true, &mut dropped)?), Value::Null)
        } else {
            let mut sent = call.decode_as(&body, API_VERSION, KIND, options.field_validation)?;
            self.set_namespace(call, &mut sent)?;
            check_name(&mut sent, name)?;
            (None, sent)
        };
        let manner = Manner { subresource: "scale", options_kind, unconditional: true, trusted: false };
        let answer = self
            .modify(call, &options, manner, |current| {
                let scale = match &patch {
                    None => sent.clone(),
                    Some(patch) => {
                        let mut target = scale_of(&current.object)?;
                        // A patch says for itself which version it is for.
                        target.set_meta("resourceVersion", current.object.resource_version().into());
                        let mut scale = patch.apply(ty, &target)?;
                        if let Some(ty) = ty {
                            decode::normalize(ty, &mut scale, &mut Dropped::default())
                                .map_err(|e| hawser_api::patch::undecodable(&scale, &e.0))?;
                        }
                        check_name(&mut scale, name)?;
                        scale
                    }
                };
                let replicas = scale.int_at("spec.replicas").unwrap_or(0);
                if replicas < 0 {
                    let error =
                        FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                    return Err(Status::invalid("autoscaling", KIND, name, &[error]));
                }
                let mut object = current.object.clone();
                object.set_path(&["spec", "replicas"], json!(replicas));
                object.set_meta("resourceVersion", scale.resource_version().into());
                if !scale.uid().is_empty() {
                    object.set_meta("uid", scale.uid().into());
                }
                Ok(object)
            })
            .await?;
        match answer {
            Answer::Stored(code, value, revision) => {
                let object = crate::encode::decode(&value, revision).map_err(Status::internal)?;
                Ok(Answer::Object(code, scale_of(&object)?))
            }
            Answer::Object(code, object) => Ok(Answer::Object(code, scale_of(&object)?)),
            other => Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_of_both_forms() {
        for (selector, want) in
            [(json!({"matchLabels": {"app": "x"}}), json!("app=x")), (json!({"app": "x"}), json!("app=x"))]
        {
            let object = json!({"metadata": {"name": "a"}, "spec": {"replicas": 3, "selector": selector}});
            let scale = scale_of(&object).expect("scale");
            assert_eq!((&scale["status"]["selector"], &scale["spec"]["replicas"]), (&want, &json!(3)));
        }
    }
}
