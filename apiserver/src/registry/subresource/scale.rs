//! `scale`: the number of replicas alone, as `autoscaling/v1` Scale.

use bytes::Bytes;
use hawser_api::decode::{self, Dropped, Source};
use hawser_api::kinds::Kind;
use hawser_api::managed::apply::apply;
use hawser_api::managed::managers::Managed;
use hawser_api::managed::reset::Reset;
use hawser_api::managed::scale::{API_VERSION, to_object, to_scale};
use hawser_api::managed::update::{Writer, update};
use hawser_api::object::ObjectExt as _;
use hawser_api::patch::undecodable;
use hawser_api::schema;
use hawser_api::selector::LabelSelector;
use hawser_api::status::{FieldError, Status};
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::hooks;
use crate::managed::{Served, Single, nothing};
use crate::options::WriteOptions;
use crate::registry::apply::Configuration;
use crate::registry::create::check_name;
use crate::registry::modify::Manner;
use crate::registry::patch::{Patch, is_apply};
use crate::registry::{Answer, Call, Registry};

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

/// The fields of a dotted path.
fn steps(path: &str) -> Vec<String> {
    path.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect()
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

/// What an object of a kind defined at run time without a number of replicas means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// There is no Scale to read.
    Refused,
    /// A write may set it.
    Allowed,
}

/// The Scale of an object.
fn scale_of(kind: &Kind, object: &Value, absent: Absent) -> Result<Value, Status> {
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
        None if paths.strict && absent == Absent::Refused => {
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
        Ok(Answer::Object(200, scale_of(&call.row.kind, &object, Absent::Refused)?))
    }

    /// PUT and PATCH.
    pub(super) async fn set_scale(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let kind = &*call.row.kind;
        let patching = call.info.verb == "patch";
        let options_kind = if patching { "PatchOptions" } else { "UpdateOptions" };
        let content_type = call.header(CONTENT_TYPE);
        let applying = patching && is_apply(content_type);
        let options = if applying {
            WriteOptions::parse_apply(call.info)?
        } else {
            WriteOptions::parse(call.info, options_kind)?
        };
        let sent = if applying {
            Sent::Configuration(Configuration::parse(&body)?)
        } else if patching {
            Sent::Patch(Patch::parse(content_type, &body, true, &mut Dropped::default())?)
        } else {
            let mut sent = call.decode_as(&body, API_VERSION, KIND, options.field_validation)?;
            self.set_namespace(call, &mut sent)?;
            check_name(&mut sent, &call.info.name)?;
            Sent::Whole(sent)
        };
        let served = Served::new(self.kinds.snapshot(), call.row.clone());
        let replicas_paths: Vec<(String, Vec<String>)> =
            served.kinds().map(|k| (k.api_version(), steps(paths(k).spec))).collect();
        let manager = call.manager(&options);
        let manner =
            Manner { subresource: "scale", options_kind, unconditional: true, trusted: false, noted: true };
        let answer = self
            .modify(call, &options, manner, |current| {
                let now = hooks::now();
                let writer = Writer {
                    manager: &manager,
                    api_version: API_VERSION,
                    subresource: "scale",
                    now: &now,
                    reset: Reset::default(),
                    versions: &Single { api_version: API_VERSION, kind: KIND },
                };
                let managed =
                    Managed::parse(current.object.items_at("metadata.managedFields")).unwrap_or_default();
                let mut live = scale_of(kind, &current.object, Absent::Allowed)?;
                if let Some(entries) = to_scale(&managed, &replicas_paths).to_value() {
                    live.set_meta("managedFields", entries);
                }
                let scale = self.new_scale(call, &writer, &live, &sent, &options)?;
                let replicas = scale.int_at("spec.replicas");
                if let (None, true, Paths { strict: true, spec, .. }) = (replicas, patching, paths(kind)) {
                    let text = format!("the spec replicas field \".{spec}\" cannot be empty");
                    return Err(Status::bad_request(text));
                }
                let replicas = replicas.unwrap_or(0);
                if replicas < 0 {
                    let error =
                        FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                    return Err(Status::invalid("autoscaling", KIND, &call.info.name, &[error]));
                }
                let mut object = current.object.clone();
                let at: Vec<&str> = paths(kind).spec.split('.').collect();
                object.set_path(&at, json!(replicas));
                object.set_meta("resourceVersion", scale.resource_version().into());
                if !scale.uid().is_empty() {
                    object.set_meta("uid", scale.uid().into());
                }
                let of_scale = Managed::parse(scale.items_at("metadata.managedFields")).unwrap_or_default();
                let managed = to_object(&managed, of_scale, &replicas_paths, &call.row.kind.api_version());
                object.set_meta("managedFields", managed.to_value().unwrap_or(Value::Null));
                Ok(object)
            })
            .await?;
        match answer {
            Answer::Stored(code, value, revision) => {
                let object = crate::encode::decode(&value, revision).map_err(Status::internal)?;
                let object = crate::convert::from_stored(&call.row, object);
                Ok(Answer::Object(code, scale_of(kind, &object, Absent::Allowed)?))
            }
            Answer::Object(code, object) => {
                Ok(Answer::Object(code, scale_of(kind, &object, Absent::Allowed)?))
            }
            other => Ok(other),
        }
    }

    /// What a request makes of a Scale, its managers noted.
    fn new_scale(
        &self,
        call: &Call<'_>,
        writer: &Writer<'_>,
        live: &Value,
        sent: &Sent,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let ty = schema::find_kind(API_VERSION, KIND);
        let normalize = |source, mut scale: Value| match ty {
            Some(ty) => decode::normalize_from(source, ty, &mut scale, &mut Dropped::default())
                .map(|()| scale)
                .map_err(|e| e.0),
            None => Ok(scale),
        };
        let mut scale = match sent {
            Sent::Whole(scale) => scale.clone(),
            Sent::Patch(patch) => {
                // A patch says for itself which version it is for.
                let patched = patch.apply(ty, live)?;
                normalize(patch.source(), patched.clone())
                    .map_err(|why| patch.undecodable(ty, &patched, &why))?
            }
            Sent::Configuration(config) => {
                let empty = nothing(API_VERSION, KIND);
                let force = options.force.unwrap_or(false);
                let applied = apply(writer, KIND, live, &empty, &config.value, force)?;
                config.report(call, options.field_validation)?;
                let mut scale = normalize(Source::Json, applied.object)
                    .map_err(|why| undecodable(ty, &config.value, &config.value, &why))?;
                scale.set_meta("managedFields", applied.managed.to_value().unwrap_or(Value::Null));
                scale
            }
        };
        self.set_namespace(call, &mut scale)?;
        check_name(&mut scale, &call.info.name)?;
        if !matches!(sent, Sent::Configuration(_)) {
            update(writer, live, &mut scale);
        }
        Ok(scale)
    }
}

/// What a request wants a Scale to be.
enum Sent {
    Whole(Value),
    Patch(Patch),
    Configuration(Configuration),
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
            let scale = scale_of(kind, &object, Absent::Refused).expect("scale");
            assert_eq!((&scale["status"]["selector"], &scale["spec"]["replicas"]), (&want, &json!(3)));
        }
    }
}
