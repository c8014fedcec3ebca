//! `scale`: the number of replicas alone, as `autoscaling/v1` Scale.

use bytes::Bytes;
use hawser_api::decode::{self, Dropped};
use hawser_api::kinds::Kind;
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

/// Where a row keeps what a Scale shows; paths are dotted.
struct Paths<'a> {
    spec: &'a str,
    status: &'a str,
    /// None for the label selector of built-in kinds, which is no text.
    selector: Option<&'a str>,
    /// Whether a missing number of replicas is an error.
    strict: bool,
}

fn paths(kind: &Kind) -> Paths<'_> {
    match kind.custom.as_ref().and_then(|c| c.scale.as_ref()) {
        Some(scale) => Paths {
            spec: scale.spec_replicas.trim_start_matches('.'),
            status: scale.status_replicas.trim_start_matches('.'),
            selector: Some(scale.label_selector.trim_start_matches('.')),
            strict: true,
        },
        None => Paths { spec: "spec.replicas", status: "status.replicas", selector: None, strict: false },
    }
}

/// The text of an object's label selector; empty without one.
fn selector_of(object: &Value, paths: &Paths<'_>) -> Result<String, Status> {
    if let Some(path) = paths.selector {
        let found = if path.is_empty() { None } else { object.at(path).and_then(Value::as_str) };
        return Ok(found.unwrap_or_default().to_owned());
    }
    let selector = match object.at("spec.selector") {
        Some(s) if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            LabelSelector::from_object(Some(s)).map_err(Status::from)?
        }
        other => LabelSelector::from_map(other),
    };
    Ok(if selector.nothing { String::new() } else { selector.to_string() })
}

/// The Scale of an object.
fn scale_of(kind: &Kind, object: &Value) -> Result<Value, Status> {
    let paths = paths(kind);
    let mut meta = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get_path(&["metadata", field]) {
            meta[field] = value.clone();
        }
    }
    let mut status = json!({"replicas": object.int_at(paths.status).unwrap_or(0)});
    let text = selector_of(object, &paths)?;
    if !text.is_empty() {
        status["selector"] = json!(text);
    }
    let mut spec = json!({});
    match object.int_at(paths.spec) {
        Some(replicas) => spec["replicas"] = json!(replicas),
        None if paths.strict => {
            let text = format!("the spec replicas field \".{}\" does not exist", paths.spec);
            return Err(Status::internal(text));
        }
        None => {}
    }
    Ok(json!({"kind": KIND, "apiVersion": API_VERSION, "metadata": meta, "spec": spec, "status": status}))
}

impl Registry {
    /// GET.
    pub(super) async fn get_scale(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let entry = self.current(call, &call.info.name).await?;
        let object = self.converter.object(&call.row, &entry).await?;
        Ok(Answer::Object(200, scale_of(&call.row.kind, &object)?))
    }

    /// PUT and PATCH.
    pub(super) async fn set_scale(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let (name, kind) = (&call.info.name, &*call.row.kind);
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
                        let mut target = scale_of(kind, &current.object)?;
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
                let at: Vec<&str> = paths(kind).spec.split('.').collect();
                object.set_path(&at, json!(replicas));
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
                let object = crate::convert::from_stored(&call.row, object);
                Ok(Answer::Object(code, scale_of(kind, &object)?))
            }
            Answer::Object(code, object) => Ok(Answer::Object(code, scale_of(kind, &object)?)),
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
            let kind = hawser_api::kinds::find("apps", "v1", "deployments").expect("row");
            let scale = scale_of(kind, &object).expect("scale");
            assert_eq!((&scale["status"]["selector"], &scale["spec"]["replicas"]), (&want, &json!(3)));
        }
    }
}
