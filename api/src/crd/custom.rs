//! What a row of the kinds table knows when it was defined at run time.
//!
//! The schema is read when the first request needs it, and shared by all; a definition that nobody uses costs its row
//! and nothing more.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::embedded::Malformed;
use super::rules::Rules;
use super::schema::Schema;
use super::{defaulting, embedded, lists, prune, values};
use crate::managed::model::Model;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, FieldErrorType, Path};

/// The bytes of a stored definition, whoever holds them.
pub type Source = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Paths of the scale subresource, as the definition writes them: `.spec.replicas`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    /// Empty when there is none.
    pub label_selector: String,
}

/// How the versions of a resource are converted into each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversion {
    /// `apiVersion` is replaced.
    None,
    /// A webhook is called.
    Webhook(Arc<Webhook>),
}

/// A conversion webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Whole URL; empty when a Service is called.
    pub url: String,
    /// Namespace, name, path and port of a Service.
    pub service: Option<(String, String, String, u16)>,
    /// PEM; empty for the system's roots.
    pub ca_bundle: Vec<u8>,
    /// Versions of ConversionReview that the webhook understands, preferred ones first.
    pub review_versions: Vec<String>,
}

/// One version of a custom resource.
pub struct Custom {
    /// Equal for equal rows: [`Custom::content`], names and whether instances are being deleted.
    pub identity: String,
    /// UID and generation of the definition, and the version: what objects of the version look like.
    pub content: String,
    /// Name of the definition.
    pub definition: String,
    /// Name of the version.
    pub version: String,
    /// Whether the version has a status subresource.
    pub status: bool,
    pub scale: Option<Scale>,
    pub conversion: Conversion,
    /// Instances are being deleted: none can be created.
    pub terminating: bool,
    /// What users of a deprecated version are told.
    pub deprecation: Option<String>,
    /// The definition.
    pub source: Source,
    /// What is made of it.
    pub compiled: OnceLock<Compiled>,
}

/// A schema made ready.
#[derive(Debug)]
pub struct Compiled {
    pub schema: Schema,
    pub rules: Rules,
    /// Whether unknown fields are dropped.
    pub prunes: bool,
    /// How instances are merged by server-side apply.
    pub model: Model,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.identity)
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Custom {}

impl Custom {
    /// The schema, made ready at the first call.
    pub fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| {
            let crd: Value = serde_json::from_slice((*self.source).as_ref()).unwrap_or_default();
            let props = self.props(&crd);
            let schema = props.map_or_else(|| Ok(Schema::default()), Schema::parse);
            // Only definitions from before structural schemas are not readable; they keep everything.
            let prunes = schema.is_ok() && crd.bool_at("spec.preserveUnknownFields") != Some(true);
            let schema =
                schema.unwrap_or_else(|_| Schema { preserve_unknown_fields: true, ..Schema::default() });
            let model = Model::of_kind(props.unwrap_or(&Value::Null), !prunes);
            Compiled { rules: Rules::compile(&schema), schema, prunes, model }
        })
    }

    /// The schema.
    pub fn schema(&self) -> &Schema {
        &self.compiled().schema
    }

    /// Whether the definition has a version of that name, served or not.
    pub fn has_version(&self, name: &str) -> bool {
        let crd: Value = serde_json::from_slice((*self.source).as_ref()).unwrap_or_default();
        crd.items_at("spec.versions").iter().any(|v| v.str_at("name") == name)
    }

    /// `openAPIV3Schema` as the definition has it, documentation included; None without a schema.
    pub fn open_api_schema(&self) -> Option<Value> {
        let crd: Value = serde_json::from_slice((*self.source).as_ref()).ok()?;
        self.props(&crd).cloned()
    }

    fn props<'v>(&self, crd: &'v Value) -> Option<&'v Value> {
        let version = crd.items_at("spec.versions").iter().find(|v| v.str_at("name") == self.version)?;
        version.at("schema.openAPIV3Schema")
    }

    /// Makes a decoded body an object of the version: nulls and defaults, canonical metadata, no unknown fields.
    /// Answers the positions of the fields that were dropped.
    ///
    /// # Errors
    /// Metadata of the wrong type.
    pub fn admit(&self, object: &mut Value) -> Result<Vec<String>, FieldError> {
        let compiled = self.compiled();
        defaulting::apply(object, &compiled.schema);
        let mut dropped = embedded::coerce(object, &compiled.schema, true, Malformed::Refuse)?;
        if compiled.prunes {
            dropped.extend(prune::prune(object, &compiled.schema, true));
        }
        Ok(dropped)
    }

    /// Makes a stored object one of this version, which is the stored one, as it is now. What was stored in another
    /// version and needs a webhook to be converted stays as it is.
    pub fn read(&self, kind: &crate::kinds::Kind, object: &mut Value) {
        let api_version = kind.api_version();
        if object.api_version() != api_version {
            if self.conversion != Conversion::None {
                return;
            }
            object.set_api_version_kind(&api_version, &kind.kind);
        }
        self.refresh(object);
    }

    /// Makes an object that was stored, or converted, one of the version as it is now.
    pub fn refresh(&self, object: &mut Value) {
        let compiled = self.compiled();
        // With malformed metadata dropped there is no error.
        let _ = embedded::coerce(object, &compiled.schema, true, Malformed::Drop);
        if compiled.prunes {
            prune::prune(object, &compiled.schema, true);
        }
        defaulting::apply(object, &compiled.schema);
    }

    /// What is wrong with a new object, its metadata apart.
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let schema = self.schema();
        let mut errors = values::validate("", schema, object, None);
        self.scale_spec(object, &mut errors);
        self.scale_status(object, &mut errors);
        errors.extend(embedded::validate(Path::ROOT, object, schema, false));
        errors.extend(lists::validate(Path::ROOT, schema, object));
        self.rules(object, None, &mut errors);
        errors
    }

    /// What is wrong with a changed object, its metadata apart, and what was wrong with parts of it before that stay as
    /// they are.
    pub fn validate_update(&self, new: &Value, old: &Value) -> (Vec<FieldError>, Vec<String>) {
        let schema = self.schema();
        let mut errors = values::validate("", schema, new, Some(old));
        self.scale_spec(new, &mut errors);
        self.scale_status(new, &mut errors);
        errors.extend(embedded::validate(Path::ROOT, new, schema, false));
        self.lists(new, old, &mut errors);
        let warnings = self.rules(new, Some(old), &mut errors);
        (errors, warnings)
    }

    /// What is wrong with a changed status, as [`Custom::validate_update`].
    pub fn validate_status(&self, new: &Value, old: &Value) -> (Vec<FieldError>, Vec<String>) {
        let schema = self.schema();
        let mut errors = Vec::new();
        if let (Some(status), Some(of_status)) = (new.get("status"), schema.properties.get("status")) {
            errors.extend(values::validate("status", of_status, status, old.get("status")));
        }
        self.scale_status(new, &mut errors);
        errors.extend(embedded::validate(Path::ROOT, new, schema, false));
        self.lists(new, old, &mut errors);
        let warnings = self.rules(new, Some(old), &mut errors);
        (errors, warnings)
    }

    /// Lists that were broken before may stay so.
    fn lists(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let schema = self.schema();
        if lists::validate(Path::ROOT, schema, old).is_empty() {
            errors.extend(lists::validate(Path::ROOT, schema, new));
        }
    }

    /// The CEL rules, which need an object that is well-typed and of bounded size. Answers warnings.
    fn rules(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) -> Vec<String> {
        use FieldErrorType as T;
        let compiled = self.compiled();
        if compiled.rules.is_empty() {
            return Vec::new();
        }
        let blocking = |e: &FieldError| {
            matches!(e.r#type, T::NotSupported | T::Required | T::TooLong | T::TooMany | T::TypeInvalid)
        };
        if errors.iter().any(blocking) {
            let detail = "some validation rules were not checked because the object was invalid; correct the \
                          existing errors to complete validation";
            errors.push(FieldError::invalid(Path::ROOT, Value::Null, detail));
            return Vec::new();
        }
        let verdict = compiled.rules.judge(&compiled.schema, object, old);
        errors.extend(verdict.errors);
        verdict.warnings
    }

    fn scale_spec(&self, object: &Value, errors: &mut Vec<FieldError>) {
        if let Some(scale) = &self.scale {
            replicas(object, &scale.spec_replicas, errors);
        }
    }

    fn scale_status(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let Some(scale) = &self.scale else { return };
        replicas(object, &scale.status_replicas, errors);
        let path = &scale.label_selector;
        if !path.is_empty()
            && let Some(value) = object.at(path.trim_start_matches('.'))
            && !value.is_string()
        {
            errors.push(FieldError::invalid(path, "", accessor_error(path, value, "string")));
        }
    }
}

fn replicas(object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(value) = object.at(path.trim_start_matches('.')) else {
        if let Some(inside) = no_object(object, path) {
            let detail = accessor_error(path, inside, "map[string]interface{}");
            errors.push(FieldError::invalid(path, 0, detail));
        }
        return;
    };
    match value.as_i64() {
        None => errors.push(FieldError::invalid(path, 0, accessor_error(path, value, "int64"))),
        Some(n) if n < 0 => errors.push(FieldError::invalid(path, n, "should be a non-negative integer")),
        Some(n) if n > i64::from(i32::MAX) => {
            errors.push(FieldError::invalid(
                path,
                n,
                format!("should be less than or equal to {}", i32::MAX),
            ));
        }
        Some(_) => {}
    }
}

/// The first value on the way to a field that has no fields.
fn no_object<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut at = object;
    for name in path.trim_start_matches('.').split('.') {
        if !at.is_object() {
            return Some(at);
        }
        at = at.get(name)?;
    }
    None
}

/// Go's text for a value that is not of the type that was asked for.
fn accessor_error(path: &str, value: &Value, wanted: &str) -> String {
    let found = match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    let shown = crate::text::go_value(value);
    format!("{path} accessor error: {shown} is of the type {found}, expected {wanted}")
}
