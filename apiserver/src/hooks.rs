//! What differs between kinds, asked of the api crate in one place; and the clock.

use hawser_api::decode;
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use hawser_api::strategy::{self, CreateContext, DefaultPropagation};
use hawser_api::time::rfc3339;
use hawser_api::{defaults as api_defaults, validation};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Told to who deletes a Job without saying what becomes of its pods.
pub const ORPHAN_WARNING: &str = "child pods are preserved by default when jobs are deleted; set \
                                  propagationPolicy=Background to remove them or set propagationPolicy=Orphan to \
                                  suppress this warning";

/// How long a token holds when the request does not say.
const TOKEN_SECONDS: i64 = 3600;

/// Rules of a kind that the verbs ask for.
#[derive(Debug, Clone, Copy)]
pub struct Strategy {
    /// PUT of a missing object creates it.
    pub create_on_update: bool,
    /// An update without resourceVersion overwrites.
    pub unconditional_update: bool,
    /// Deletion waits for a grace period.
    pub graceful: bool,
    /// Dependents stay when the request does not say.
    pub orphan_by_default: bool,
    /// Who deletes is warned that dependents stay.
    pub warns_of_orphans: bool,
    /// A deletion answers with the object rather than with a Status.
    pub returns_deleted: bool,
}

/// The rules of a row.
pub fn strategy(kind: &Kind) -> Strategy {
    let rules = strategy::rules(kind);
    Strategy {
        create_on_update: rules.allow_create_on_update,
        unconditional_update: rules.allow_unconditional_update,
        graceful: rules.graceful_deletion,
        warns_of_orphans: kind.group == "batch" && kind.kind == "Job",
        orphan_by_default: rules.default_propagation == DefaultPropagation::Orphan,
        returns_deleted: matches!(
            (kind.group.as_str(), kind.plural.as_str()),
            (
                "",
                "pods"
                    | "services"
                    | "persistentvolumes"
                    | "persistentvolumeclaims"
                    | "serviceaccounts"
                    | "podtemplates"
                    | "resourcequotas"
            ) | (
                "storage.k8s.io",
                "storageclasses"
                    | "volumeattachments"
                    | "csinodes"
                    | "csidrivers"
                    | "volumeattributesclasses"
            ) | ("resource.k8s.io", _)
        ),
    }
}

/// Fills in defaults, in the row's version.
pub fn defaults(kind: &Kind, object: &mut Value) {
    if kind.group.is_empty() && kind.kind == "Pod" {
        strategy::pod_addresses(object);
    }
    api_defaults::apply(kind, object);
}

/// Fills in the defaults of what is sent to a subresource.
pub fn subresource_defaults(kind: &str, object: &mut Value) {
    if kind == "TokenRequest" && object.int_at("spec.expirationSeconds").is_none() {
        object.set_path(&["spec", "expirationSeconds"], TOKEN_SECONDS.into());
    }
}

/// This moment, RFC 3339 with seconds.
pub fn now() -> String {
    rfc3339(Timestamp::now())
}

/// A moment in the future.
pub fn now_plus(seconds: i64) -> String {
    let now = Timestamp::now();
    rfc3339(now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now))
}

/// A moment relative to another one; that one itself if it cannot be read.
pub fn shift(time: &str, seconds: i64) -> String {
    match hawser_api::time::parse(time) {
        Some(t) => rfc3339(t.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(t)),
        None => time.to_owned(),
    }
}

/// Seconds that a pod has for its end.
pub fn pod_grace(pod: &Value, wanted: Option<i64>) -> i64 {
    let own = pod.int_at("spec.terminationGracePeriodSeconds").unwrap_or(30);
    let grace = wanted.unwrap_or(own);
    if pod.str_at("spec.nodeName").is_empty() || matches!(pod.str_at("status.phase"), "Failed" | "Succeeded")
    {
        return 0;
    }
    // A negative period means the shortest one.
    if grace < 0 { 1 } else { grace }
}

/// Sets what the server sets on a new object. The stored version.
pub fn prepare_create(kind: &Kind, object: &mut Value, namespace: &str, suffix: &str) {
    let uid = uuid::Uuid::new_v4().to_string();
    let ctx = CreateContext { now: Timestamp::now(), uid: &uid, suffix, namespace };
    strategy::prepare_for_create(kind, object, &ctx);
}

/// Keeps what an update may not change. The stored version.
pub fn prepare_update(kind: &Kind, subresource: &str, new: &mut Value, old: &Value) {
    let now = Timestamp::now();
    let managed = new.get_path(&["metadata", "managedFields"]).cloned();
    match subresource {
        "" => strategy::prepare_for_update(kind, new, old, now),
        sub => strategy::prepare_for_subresource_update(kind, sub, new, old, now),
    }
    // Whatever part is written, its writer is noted.
    new.set_meta("managedFields", managed.unwrap_or(Value::Null));
}

/// Judges a new object in the stored version, which came in another one perhaps.
///
/// # Errors
/// 422 with all causes.
pub fn validate_create(
    served: &Kind,
    stored: &Kind,
    object: &Value,
    empties: &Empties,
) -> Result<(), Status> {
    refuse(stored, object, validation::validate_create_as(served, stored, object), empties)
}

/// Judges a changed object, or its changed part; answers what a client should know.
///
/// # Errors
/// 422 with all causes.
pub fn validate_update(
    served: &Kind,
    kind: &Kind,
    subresource: &str,
    new: &Value,
    old: &Value,
    empties: &Empties,
) -> Result<Vec<String>, Status> {
    let mut errors = match subresource {
        "" => validation::validate_update_as(served, kind, new, old),
        sub => validation::validate_subresource_update(kind, sub, new, old),
    };
    let (wrong, warnings) = validation::custom_update(kind, subresource, new, old);
    errors.extend(wrong);
    refuse(kind, new, errors, empties)?;
    Ok(warnings)
}

/// Lists and maps that a body has empty (see [`decode::Dropped`]).
type Empties = [(String, &'static str)];

fn refuse(kind: &Kind, object: &Value, mut errors: Vec<FieldError>, empties: &Empties) -> Result<(), Status> {
    decode::as_sent(&mut errors, empties);
    validation::to_status(kind, object.name(), &errors).map_or(Ok(()), Err)
}

/// What a client should know about an accepted object.
pub fn warnings(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<String> {
    validation::warnings(kind, object, old)
}
