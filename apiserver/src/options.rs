//! Options of requests: read from the query (and DELETE's body), checked with Kubernetes' rules and texts.

use std::time::Duration;

use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use serde_json::{Map, Value, json};

use crate::request_info::RequestInfo;

/// Group that option kinds are reported under.
const META: &str = "meta.k8s.io";
const MAX_MANAGER: usize = 128;

/// How unknown and duplicate fields are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Dropped without a word.
    Ignore,
    /// Dropped with a `Warning:` header; the default.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// Exactly this state.
    Exact,
    /// This state or a newer one.
    NotOlderThan,
}

/// Options of list and watch.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// `labelSelector` as sent.
    pub label_selector: String,
    /// `fieldSelector` as sent.
    pub field_selector: String,
    /// `resourceVersion`: None when unset.
    pub resource_version: Option<String>,
    /// `resourceVersionMatch`.
    pub version_match: Option<VersionMatch>,
    /// Page size; 0 is everything.
    pub limit: usize,
    /// Token of the next page.
    pub continue_token: Option<String>,
    /// Watch: whether bookmarks are wanted.
    pub bookmarks: bool,
    /// Watch: whether to begin with all objects.
    pub send_initial_events: Option<bool>,
    /// How long a watch may last.
    pub timeout: Option<Duration>,
}

impl ListOptions {
    /// Reads the options of a list or watch.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for what does not fit together.
    pub fn parse(info: &RequestInfo, watch: bool) -> Result<Self, Status> {
        // `/api/v1/watch/…` makes a watch of what is read and checked as a list.
        let watch = watch && info.flag("watch");
        let mut version_match = info.param("resourceVersionMatch");
        let mut options = Self {
            label_selector: info.param("labelSelector").unwrap_or_default().to_owned(),
            field_selector: info.param("fieldSelector").unwrap_or_default().to_owned(),
            resource_version: info.param("resourceVersion").map(str::to_owned),
            version_match: None,
            limit: usize::try_from(integer(info, "limit")?.unwrap_or(0)).unwrap_or(0),
            continue_token: info.param("continue").map(str::to_owned),
            bookmarks: info.flag("allowWatchBookmarks"),
            send_initial_events: info
                .query
                .iter()
                .any(|(k, _)| k == "sendInitialEvents")
                .then(|| info.flag("sendInitialEvents")),
            timeout: integer(info, "timeoutSeconds")?
                .and_then(|s| u64::try_from(s).ok())
                .filter(|s| *s > 0)
                .map(Duration::from_secs),
        };
        // A watch from nowhere in particular begins with what there is (KEP-3157).
        let anywhere = matches!(options.resource_version.as_deref(), None | Some("0"));
        if watch && anywhere && options.send_initial_events.is_none() && version_match.is_none() {
            options.send_initial_events = Some(true);
            version_match = Some("NotOlderThan");
        }
        options.version_match = match version_match {
            Some("Exact") => Some(VersionMatch::Exact),
            Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
            _ => None,
        };
        let errors = options.check(version_match, watch);
        if errors.is_empty() { Ok(options) } else { Err(Status::invalid(META, "ListOptions", "", &errors)) }
    }

    fn check(&self, version_match: Option<&str>, watch: bool) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let field = "resourceVersionMatch";
        let forbidden = |text: &str| FieldError::forbidden(field, text);
        let with_continue = || forbidden("resourceVersionMatch is forbidden when continue is provided");
        if watch {
            if self.send_initial_events.is_some() && version_match != Some("NotOlderThan") {
                errors.push(forbidden(
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            let Some(m) = version_match else { return errors };
            if self.send_initial_events.is_none() {
                errors.push(forbidden(
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if m != "NotOlderThan" {
                errors.push(FieldError::not_supported(field, m, &["NotOlderThan"]));
            }
            if self.continue_token.is_some() {
                errors.push(with_continue());
            }
            return errors;
        }
        let version = self.resource_version.as_deref();
        if let Some(m) = version_match {
            if version.is_none() {
                errors
                    .push(forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if self.continue_token.is_some() {
                errors.push(with_continue());
            }
            if self.version_match.is_none() {
                errors.push(FieldError::not_supported(field, m, &["Exact", "NotOlderThan", ""]));
            }
            if self.version_match == Some(VersionMatch::Exact) && version == Some("0") {
                errors
                    .push(forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
        if self.send_initial_events.is_some() {
            errors
                .push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    /// The revision asked for; None when unset, 0 for "any".
    ///
    /// # Errors
    /// The text of a number that cannot be read.
    pub fn revision(&self) -> Result<Option<u64>, String> {
        self.resource_version.as_deref().map(parse_revision).transpose()
    }
}

/// Reads a resourceVersion.
///
/// # Errors
/// Kubernetes' text for what is no number.
pub fn parse_revision(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        let quoted = hawser_api::text::quote(text);
        format!(
            "resourceVersion: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: invalid syntax"
        )
    })
}

fn integer(info: &RequestInfo, name: &str) -> Result<Option<i64>, Status> {
    let Some(text) = info.param(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        Status::bad_request(format!(
            "strconv.ParseInt: parsing {}: invalid syntax",
            hawser_api::text::quote(text)
        ))
    })
}

/// Options of create, update and patch.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Whether nothing is to be stored.
    pub dry_run: bool,
    /// Who writes, for managedFields; None when unset.
    pub field_manager: Option<String>,
    /// How unknown fields are met.
    pub field_validation: FieldValidation,
    /// Server-side apply: take fields from others.
    pub force: Option<bool>,
}

impl WriteOptions {
    /// Reads the options; `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    ///
    /// # Errors
    /// 422 for what Kubernetes refuses.
    pub fn parse(info: &RequestInfo, kind: &str) -> Result<Self, Status> {
        let mut errors = Vec::new();
        if kind == "PatchOptions" && info.query.iter().any(|(k, _)| k == "force") {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        Self::parse_rest(info, kind, errors)
    }

    /// Reads the options of server-side apply, whose manager must be named.
    ///
    /// # Errors
    /// 422 for what Kubernetes refuses.
    pub fn parse_apply(info: &RequestInfo) -> Result<Self, Status> {
        let mut errors = Vec::new();
        if info.param("fieldManager").is_none_or(str::is_empty) {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        Self::parse_rest(info, "PatchOptions", errors)
    }

    fn parse_rest(info: &RequestInfo, kind: &str, mut errors: Vec<FieldError>) -> Result<Self, Status> {
        let manager = info.param("fieldManager");
        if let Some(m) = manager {
            if m.len() > MAX_MANAGER {
                errors.push(FieldError::too_long("fieldManager", MAX_MANAGER));
            }
            if let Some(at) = m.chars().position(|c| c.is_control()) {
                errors.push(FieldError::invalid(
                    "fieldManager",
                    m,
                    format!(
                        "invalid character U+{:04X} (at position {at})",
                        m.chars().nth(at).map_or(0, u32::from)
                    ),
                ));
            }
        }
        let dry: Vec<&str> = info.params("dryRun").filter(|v| !v.is_empty()).collect();
        check_dry_run(&dry, &mut errors);
        let field_validation = match info.param("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.push(FieldError::not_supported(
                    "fieldValidation",
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(Status::invalid(META, kind, "", &errors));
        }
        Ok(Self {
            dry_run: !dry.is_empty(),
            field_manager: manager.map(str::to_owned),
            field_validation,
            force: info.query.iter().any(|(k, _)| k == "force").then(|| info.flag("force")),
        })
    }

    /// The options as an object, for admission.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            out["dryRun"] = json!(["All"]);
        }
        if let Some(m) = &self.field_manager {
            out["fieldManager"] = json!(m);
        }
        out
    }
}

/// `["a","b"]`, the way Go prints the values of a wrong dryRun.
fn check_dry_run(values: &[&str], errors: &mut Vec<FieldError>) {
    if values.iter().any(|v| *v != "All") {
        errors.push(FieldError::not_supported("dryRun", json!(values), &["All"]));
    }
}

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Their owner references are removed.
    Orphan,
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds until the object may be removed by force.
    pub grace_period_seconds: Option<i64>,
    /// The UID that must be met.
    pub uid: Option<String>,
    /// The resourceVersion that must be met.
    pub resource_version: Option<String>,
    /// The older form of `propagation`.
    pub orphan_dependents: Option<bool>,
    /// What becomes of dependents.
    pub propagation: Option<Propagation>,
    /// Whether nothing is to be deleted.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options from the body, if there is one, else from the query.
    ///
    /// # Errors
    /// 400 for a body that is no DeleteOptions, 422 for what does not fit together.
    pub fn parse(info: &RequestInfo, body: Option<&Value>) -> Result<Self, Status> {
        match body {
            Some(body) => Self::from_body(body),
            None => Self::from_query(info),
        }
    }

    fn from_query(info: &RequestInfo) -> Result<Self, Status> {
        let flag = |name: &str| info.query.iter().any(|(k, _)| k == name).then(|| info.flag(name));
        let mut object = Map::new();
        let dry: Vec<&str> = info.params("dryRun").filter(|v| !v.is_empty()).collect();
        if !dry.is_empty() {
            object.insert("dryRun".into(), json!(dry));
        }
        if let Some(g) = integer(info, "gracePeriodSeconds")? {
            object.insert("gracePeriodSeconds".into(), g.into());
        }
        if let Some(orphan) = flag("orphanDependents") {
            object.insert("orphanDependents".into(), orphan.into());
        }
        if let Some(p) = info.param("propagationPolicy") {
            object.insert("propagationPolicy".into(), p.into());
        }
        Self::from_body(&Value::Object(object))
    }

    fn from_body(body: &Value) -> Result<Self, Status> {
        if !body.is_object() {
            return Err(Status::bad_request(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type \
                 struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                 \"json:\\\"kind,omitempty\\\"\" }}",
                hawser_api::text::json_type(body)
            )));
        }
        let kind = body.kind();
        if !matches!(kind, "" | "DeleteOptions") {
            return Err(Status::bad_request(format!(
                "no kind {} is registered for version {} in scheme \
                 \"pkg/apis/meta/internalversion/scheme/register.go:27\"",
                hawser_api::text::quote(kind),
                hawser_api::text::quote(body.api_version())
            )));
        }
        let mut errors = Vec::new();
        let dry: Vec<&str> = body.items_at("dryRun").iter().filter_map(Value::as_str).collect();
        let orphan_dependents = body.bool_at("orphanDependents");
        let policy = body.at("propagationPolicy").and_then(Value::as_str);
        let propagation = match policy {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.push(FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        if let (Some(policy), Some(_)) = (policy, orphan_dependents) {
            errors.insert(
                0,
                FieldError::invalid(
                    "propagationPolicy",
                    policy,
                    "orphanDependents and deletionPropagation cannot be both set",
                ),
            );
        }
        check_dry_run(&dry, &mut errors);
        if !errors.is_empty() {
            return Err(Status::invalid(META, "DeleteOptions", "", &errors));
        }
        let wish = |path: &str| Some(body.str_at(path)).filter(|s| !s.is_empty()).map(str::to_owned);
        Ok(Self {
            grace_period_seconds: body.int_at("gracePeriodSeconds"),
            uid: wish("preconditions.uid"),
            resource_version: wish("preconditions.resourceVersion"),
            orphan_dependents,
            propagation,
            dry_run: !dry.is_empty(),
        })
    }

    /// The options as an object, for admission.
    pub fn to_value(&self) -> Value {
        let mut out = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(g) = self.grace_period_seconds {
            out["gracePeriodSeconds"] = g.into();
        }
        if self.dry_run {
            out["dryRun"] = json!(["All"]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(query: &str) -> RequestInfo {
        let uri = format!("/api/v1/pods?{query}").parse().expect("uri");
        RequestInfo::parse(&http::Method::GET, &uri)
    }

    #[test]
    fn list_options_that_do_not_fit() {
        for (query, watch, code) in [
            ("limit=5", false, 0),
            ("limit=-1", false, 0),
            ("limit=abc", false, 400),
            ("resourceVersion=1&resourceVersionMatch=Exact", false, 0),
            ("resourceVersion=0&resourceVersionMatch=Exact", false, 422),
            ("resourceVersionMatch=Exact", false, 422),
            ("resourceVersion=1&resourceVersionMatch=Odd", false, 422),
            ("resourceVersion=1&resourceVersionMatch=NotOlderThan&continue=abc", false, 422),
            ("sendInitialEvents=true", false, 422),
            ("watch=1&sendInitialEvents=true", true, 422),
            ("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, 0),
            ("watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=9", true, 0),
            ("watch=1&resourceVersion=1&resourceVersionMatch=Exact", true, 422),
            ("watch=1&resourceVersion=1&resourceVersionMatch=NotOlderThan", true, 422),
            ("watch=1&continue=abc", true, 422),
            ("watch=1&continue=abc&resourceVersion=5", true, 0),
            // `/api/v1/watch/…` without `watch=1` is checked as a list.
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, 422),
            ("resourceVersion=1&resourceVersionMatch=Exact", true, 0),
        ] {
            let got = ListOptions::parse(&info(query), watch).map_or_else(|s| s.code, |_| 0);
            assert_eq!(got, code, "{query}");
        }
    }

    #[test]
    fn watches_from_nowhere_begin_with_what_there_is() {
        for (query, want) in [
            ("watch=1", Some(true)),
            ("watch=true&resourceVersion=0", Some(true)),
            ("watch=1&resourceVersion=5", None),
            ("watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Some(false)),
            ("", None),
        ] {
            let options = ListOptions::parse(&info(query), true).expect("options");
            assert_eq!(options.send_initial_events, want, "{query}");
        }
    }

    #[test]
    fn delete_options() {
        let body = json!({"kind": "DeleteOptions", "preconditions": {"uid": "u"}, "gracePeriodSeconds": 3,
            "propagationPolicy": "Foreground", "dryRun": ["All"]});
        let got = DeleteOptions::parse(&info(""), Some(&body)).expect("options");
        assert_eq!((got.grace_period_seconds, got.uid.as_deref(), got.dry_run), (Some(3), Some("u"), true));
        assert_eq!(got.propagation, Some(Propagation::Foreground));
        let got = DeleteOptions::parse(&info("gracePeriodSeconds=0&propagationPolicy=Orphan"), None);
        assert_eq!(got.expect("options").propagation, Some(Propagation::Orphan));
        for (body, code) in [
            (json!("hello"), 400),
            (json!({"kind": "ConfigMap", "apiVersion": "v1"}), 400),
            (json!({"propagationPolicy": "Background", "orphanDependents": true}), 422),
            (json!({"propagationPolicy": "Odd"}), 422),
            (json!({"dryRun": ["Odd"]}), 422),
        ] {
            assert_eq!(DeleteOptions::parse(&info(""), Some(&body)).map_or_else(|s| s.code, |_| 0), code);
        }
    }

    #[test]
    fn write_options() {
        let long = format!("fieldManager={}", "a".repeat(129));
        for (query, code) in [
            ("dryRun=All&fieldManager=me&fieldValidation=Strict", 0),
            ("dryRun=Odd", 422),
            (long.as_str(), 422),
            ("fieldValidation=Odd", 422),
        ] {
            let got = WriteOptions::parse(&info(query), "CreateOptions").map_or_else(|s| s.code, |_| 0);
            assert_eq!(got, code, "{query}");
        }
    }
}
