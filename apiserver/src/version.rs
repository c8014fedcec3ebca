//! Which Kubernetes this is, and which of its kinds are on their way out.

use hawser_api::kinds::Kind;
use serde_json::{Value, json};

/// Level of the API.
pub const MAJOR: &str = "1";
/// Level of the API.
pub const MINOR: &str = "36";
/// Patch of Kubernetes that behaviour was compared with.
const PATCH: &str = "2";

/// `v1.36.2+hawser.0.1.0`
pub fn git_version() -> String {
    format!("v{MAJOR}.{MINOR}.{PATCH}+hawser.{}", env!("CARGO_PKG_VERSION"))
}

/// The document at `/version`.
pub fn document() -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({"major": MAJOR, "minor": MINOR, "emulationMajor": MAJOR, "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR, "minCompatibilityMinor": "35", "gitVersion": git_version(),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("{}/{architecture}", std::env::consts::OS)})
}

/// What users of a deprecated kind are told with every request.
pub fn deprecation(kind: &Kind) -> Option<&str> {
    if let Some(custom) = &kind.custom {
        return custom.deprecation.as_deref();
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}
