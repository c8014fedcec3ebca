//! Pod Security Standards: the policy that a namespace's labels ask for, and what a pod does against it (KEP-2579).

mod checks;
mod spec;

use std::fmt;

use crate::object::Labels;
use crate::status::{FieldError, Path};

pub use spec::PodView;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How much a pod may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        [Self::Privileged, Self::Baseline, Self::Restricted].into_iter().find(|l| l.name() == text)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// The minor version of Kubernetes 1 whose rules hold; `None` is the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(Option<u32>);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self(None));
        }
        let minor = text.strip_prefix("v1.")?;
        let plain = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
        minor.parse().ok().filter(|_| plain).map(|n| Self(Some(n)))
    }
}

/// A level at a version, written `restricted:latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

impl Standard {
    const NONE: Standard = Standard { level: Level::Privileged, version: Version(None) };
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version.0 {
            None => write!(f, "{}:latest", self.level.name()),
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
        }
    }
}

/// What a namespace asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Pods against it are refused.
    pub enforce: Standard,
    /// Pods against it are noted.
    pub audit: Standard,
    /// Who makes pods against it is told.
    pub warn: Standard,
}

impl Policy {
    /// The policy in a namespace's labels, and what is wrong with the labels. What cannot be read is restricted where
    /// it is enforced, and nothing elsewhere.
    pub fn of(labels: Labels<'_>) -> (Self, Vec<FieldError>) {
        let mut errors = Vec::new();
        let mut wrong = |label: &str, value: &str, why: &str| {
            let at = Path::new("metadata.labels");
            errors.push(FieldError::invalid(at.key(&format!("{PREFIX}{label}")), value, why));
        };
        let mut read = |mode: &str, otherwise: Level| {
            let mut standard = Standard::NONE;
            let (level, version) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
            let mut level_read = false;
            if let Some(text) = labels.get(&level) {
                level_read = Level::parse(text).is_some();
                standard.level = Level::parse(text).unwrap_or(otherwise);
                if !level_read {
                    wrong(mode, text, "must be one of privileged, baseline, restricted");
                }
            }
            if let Some(text) = labels.get(&version) {
                standard.version = Version::parse(text).unwrap_or(Version(None));
                if Version::parse(text).is_none() {
                    wrong(&format!("{mode}-version"), text, "must be \"latest\" or \"v1.x\"");
                }
            }
            (standard, level_read)
        };
        let (enforce, enforced) = read("enforce", Level::Restricted);
        let (audit, _) = read("audit", Level::Privileged);
        let (mut warn, _) = read("warn", Level::Privileged);
        // Who enforces and says nothing of warnings is warned of the same.
        if !labels.contains_key(&format!("{PREFIX}warn")) && enforced && enforce.level > warn.level {
            warn.level = enforce.level;
            if !labels.contains_key(&format!("{PREFIX}warn-version")) {
                warn.version = enforce.version;
            }
        }
        (Self { enforce, audit, warn }, errors)
    }
}

/// One thing that a pod does against a standard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `host namespaces`.
    pub reason: String,
    /// `hostNetwork=true`; may be empty.
    pub detail: String,
}

/// What a pod does against a standard, baseline's rules first.
pub fn violations(standard: Standard, pod: &PodView<'_>) -> Vec<Violation> {
    checks::of(standard.level, standard.version.0.unwrap_or(u32::MAX))
        .filter_map(|check| check(pod))
        .collect()
}

/// `host namespaces (hostNetwork=true), privileged (…)`.
pub fn detail(violations: &[Violation]) -> String {
    let one = |v: &Violation| match v.detail.as_str() {
        "" => v.reason.clone(),
        detail => format!("{} ({detail})", v.reason),
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `host namespaces, privileged`.
pub fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(labels: Value) -> (String, String, Vec<String>) {
        let (policy, errors) = Policy::of(Labels::new(labels.as_object()));
        (
            policy.enforce.to_string(),
            policy.warn.to_string(),
            errors.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn labels() {
        let (enforce, warn, errors) = policy(
            json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.24"}),
        );
        assert_eq!((enforce.as_str(), warn.as_str()), ("baseline:v1.24", "baseline:v1.24"));
        assert!(errors.is_empty());
        let (enforce, warn, errors) = policy(
            json!({"pod-security.kubernetes.io/enforce": "odd", "pod-security.kubernetes.io/warn-version": "v1.07"}),
        );
        assert_eq!(
            (enforce.as_str(), warn.as_str(), errors.len()),
            ("restricted:latest", "privileged:latest", 2)
        );
    }

    #[test]
    fn what_a_careless_pod_does() {
        let pod = json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]}});
        let view = PodView::of(&pod);
        let at = |level, minor| detail(&violations(Standard { level, version: Version(minor) }, &view));
        assert_eq!(
            at(Level::Restricted, None),
            "host namespaces (hostNetwork=true), privileged (container \"c\" must not set securityContext.privileged=true), \
             allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert_eq!(
            at(Level::Baseline, Some(0)),
            "host namespaces (hostNetwork=true), privileged (container \"c\" must not set securityContext.privileged=true)"
        );
        assert_eq!(at(Level::Privileged, None), "");
    }
}
