//! Server-side apply: PATCH with `application/apply-patch+yaml` (KEP-555).

use bytes::Bytes;
use hawser_api::decode::{self, Dropped};
use hawser_api::managed::apply::{Applied, apply};
use hawser_api::managed::update::Writer;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use hawser_api::text::json_type;
use serde_json::{Value, json};

use super::body::canonical;
use super::create::check_name;
use super::modify::Manner;
use super::{Answer, Call, Registry};
use crate::hooks;
use crate::managed::{Served, nothing_of};
use crate::options::{FieldValidation, WriteOptions};

/// How often an object that comes and goes is tried.
const ATTEMPTS: usize = 8;

/// What a manager wants an object to be.
pub(crate) struct Configuration {
    /// As it was sent.
    pub value: Value,
    /// Fields that were given twice: [`decode::Yaml::duplicates`].
    twice: Vec<String>,
}

impl Configuration {
    /// Parses a body: YAML, of which JSON is a part.
    ///
    /// # Errors
    /// 400 for what is no object.
    pub(crate) fn parse(body: &Bytes) -> Result<Self, Status> {
        let mut dropped = Dropped::default();
        let (mut value, twice) = match decode::parse_json(body, &mut dropped) {
            // JSON is YAML, and its duplicates are told in YAML's words.
            Ok(value) if dropped.messages.is_empty() => (value, Vec::new()),
            Ok(value) => (value, decode::parse_yaml(body).map(|yaml| yaml.duplicates).unwrap_or_default()),
            Err(_) => {
                let yaml = decode::parse_yaml(body).map_err(|e| {
                    Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {e}"))
                })?;
                (yaml.value, yaml.duplicates)
            }
        };
        if value.is_null() {
            value = json!({});
        }
        if !value.is_object() {
            return Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go \
                 value of type map[string]interface {{}}",
                json_type(&value)
            )));
        }
        whole_numbers(&mut value);
        Ok(Self { value, twice })
    }

    /// Refuses, or warns about, what was given twice.
    ///
    /// # Errors
    /// 400 in strict mode.
    pub(crate) fn report(&self, call: &Call<'_>, validation: FieldValidation) -> Result<(), Status> {
        match validation {
            _ if self.twice.is_empty() => Ok(()),
            FieldValidation::Ignore => Ok(()),
            FieldValidation::Warn => {
                self.twice.iter().for_each(|line| call.warn(line.clone()));
                Ok(())
            }
            FieldValidation::Strict => Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: {}",
                decode::duplicates_error(&self.twice)
            ))),
        }
    }
}

/// A number without a fraction is whole, however it was written.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(n) if n.is_f64() => {
            let f = n.as_f64().unwrap_or(f64::NAN);
            #[allow(clippy::cast_possible_truncation)]
            if f.fract() == 0.0 && f.abs() < 9e15 {
                *value = json!(f as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

impl Registry {
    /// Applies a configuration to an object, or to its part that is a subresource of the row's own kind. An object that
    /// is not there is created.
    ///
    /// # Errors
    /// 400 for what is no configuration of the kind, 409 for what others own, and whatever creating and updating say.
    pub(super) async fn apply(
        &self,
        call: &Call<'_>,
        body: &Bytes,
        subresource: &str,
    ) -> Result<Answer, Status> {
        let options = WriteOptions::parse_apply(call.info)?;
        let config = Configuration::parse(body)?;
        let manner = Manner {
            subresource,
            options_kind: "PatchOptions",
            unconditional: true,
            trusted: false,
            noted: true,
        };
        let served = Served::new(self.kinds.snapshot(), call.row.clone());
        let manager = call.manager(&options);
        let mut last = call.not_found(&call.info.name);
        for _ in 0..ATTEMPTS {
            let there = self.known(call, &call.info.name).await?.is_some()
                || !subresource.is_empty()
                || match self.current(call, &call.info.name).await {
                    Ok(_) => true,
                    Err(status) if status.is_not_found() => false,
                    Err(status) => return Err(status),
                };
            let now = hooks::now();
            let writer = served.writer(&manager, subresource, &now);
            let outcome = if there {
                let change = |current: &super::modify::Current| {
                    let mut object = self.applied(call, &writer, &current.object, &config, &options)?;
                    self.set_namespace(call, &mut object)?;
                    check_name(&mut object, &call.info.name)?;
                    Ok(object)
                };
                self.modify(call, &options, manner, change).await
            } else {
                self.create_applied(call, &writer, &config, &options).await
            };
            match outcome {
                // Somebody else was quicker to delete it, or to make it.
                Err(status) if there && subresource.is_empty() && status.is_not_found() => last = status,
                Err(status) if !there && status.is_already_exists() => last = status,
                other => return other,
            }
        }
        Err(last)
    }

    /// What becomes of an object by a configuration: merged, decoded, defaulted, its managers noted.
    fn applied(
        &self,
        call: &Call<'_>,
        writer: &Writer<'_>,
        live: &Value,
        config: &Configuration,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let kind = &call.row.kind;
        let empty = nothing_of(kind);
        let force = options.force.unwrap_or(false);
        let Applied { mut object, managed, changed } =
            apply(writer, &kind.kind, live, &empty, &config.value, force)?;
        config.report(call, options.field_validation)?;
        if changed {
            canonical(kind, &mut object, &mut Dropped::default()).map_err(|e| {
                Status::plain_error(format!(
                    "failed to convert new object ({}/{}; {}/{}, Kind={}) to proper version: {e}",
                    object.namespace(),
                    object.name(),
                    kind.group,
                    kind.version,
                    kind.kind
                ))
            })?;
            hooks::defaults(kind, &mut object);
        }
        object.set_meta("managedFields", managed.to_value().unwrap_or(Value::Null));
        Ok(object)
    }

    async fn create_applied(
        &self,
        call: &Call<'_>,
        writer: &Writer<'_>,
        config: &Configuration,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let kind = &call.row.kind;
        let mut object = self.applied(call, writer, &nothing_of(kind), config, options)?;
        if !object.uid().is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                object.uid()
            );
            return Err(Status::conflict(&kind.group, &kind.plural, &call.info.name, why));
        }
        self.set_namespace(call, &mut object)?;
        check_name(&mut object, &call.info.name)?;
        self.authorize_create(call).await?;
        object.remove_path(&["metadata", "resourceVersion"]);
        self.place(call, object, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let parse = |text: &str| Configuration::parse(&Bytes::copy_from_slice(text.as_bytes()));
        let yaml = parse("a: 1.0\nb:\n- c: x\n  c: w\n---\nz: 1\n").expect("yaml");
        assert_eq!(yaml.value, json!({"a": 1, "b": [{"c": "w"}]}));
        assert_eq!(yaml.twice, ["line 4: key \"c\" already set in map"]);
        let json = parse(r#"{"a": {"b": 1, "b": 2}}"#).expect("json");
        assert_eq!(json.value, json!({"a": {"b": 2}}));
        assert_eq!(json.twice, ["line 1: key \"b\" already set in map"]);
        assert_eq!(parse("").expect("nothing").value, json!({}));
        for (text, want) in
            [("[1]", "cannot unmarshal array"), ("a: [", "error decoding YAML"), ("x", "string")]
        {
            let e = parse(text).err().expect("refused");
            assert!(e.code == 400 && e.message.contains(want), "{text}: {}", e.message);
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)) {
            let _ = Configuration::parse(&Bytes::from(bytes));
        }
    }
}
