//! Validation of the profiles that a security context names: AppArmor, Windows.

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use serde_json::Value;

/// Longest path of an AppArmor profile, in bytes (PATH_MAX without the closing zero).
const PROFILE_MAX: usize = 4095;
/// Longest GMSA credential spec, in KiB.
const GMSA_KIB: usize = 64;
const DOMAIN_MAX: usize = 256;
const USER_MAX: usize = 104;

/// `appArmorProfile` of a security context.
pub fn app_armor(context: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(profile) = context.get("appArmorProfile").filter(|p| !p.is_null()) else { return };
    let local = profile.get("localhostProfile").and_then(Value::as_str);
    let path = at.child("localhostProfile");
    match (profile.str_at("type"), local) {
        ("Localhost", None) => e.required(path, "must be set when AppArmor type is Localhost"),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                e.invalid(path, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                e.required(path, "must be set when AppArmor type is Localhost");
            }
            if name.len() > PROFILE_MAX {
                e.push(FieldError::too_long(path, PROFILE_MAX));
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            e.invalid(path, name, "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => e.required(at.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => e.unsupported(at.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

/// `windowsOptions` of a security context.
pub fn windows(context: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(options) = context.get("windowsOptions").filter(|o| !o.is_null()) else { return };
    let text = |field: &str| options.get(field).and_then(Value::as_str);
    if let Some(name) = text("gmsaCredentialSpecName") {
        e.all(at.child("gmsaCredentialSpecName"), name, names::dns1123_subdomain(name));
    }
    if let Some(spec) = text("gmsaCredentialSpec") {
        if spec.is_empty() {
            e.invalid(at.child("gmsaCredentialSpec"), spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > GMSA_KIB * 1024 {
            let detail = format!("gmsaCredentialSpec size must be under {GMSA_KIB} KiB");
            e.invalid(at.child("gmsaCredentialSpec"), spec, detail);
        }
    }
    if let Some(name) = text("runAsUserName") {
        for detail in user_name(name) {
            e.invalid(at.child("runAsUserName"), name, detail);
        }
    }
}

/// What is wrong with `DOMAIN\user`.
fn user_name(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".into()];
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".into()];
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return vec!["runAsUserName cannot contain more than one backslash".into()],
    };
    let mut found = Vec::new();
    if domain.is_some_and(|d| d.len() >= DOMAIN_MAX) {
        found.push(format!("runAsUserName's Domain length must be under {DOMAIN_MAX} characters"));
    }
    if domain.is_some_and(|d| !is_net_bios(d) && !is_dns(d)) {
        found.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".into());
    }
    if user.is_empty() {
        found.push("runAsUserName's User cannot be empty".into());
    } else if user.len() > USER_MAX {
        found.push(format!("runAsUserName's User length must not be longer than {USER_MAX} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        found.push("runAsUserName's User cannot contain only periods or spaces".into());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        found.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".into());
    }
    found
}

fn is_net_bios(domain: &str) -> bool {
    let bad = |c: char| matches!(c, '\\' | '/' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    let count = domain.chars().count();
    (1..=15).contains(&count) && !domain.starts_with('.') && !domain.chars().any(bad)
}

fn is_dns(domain: &str) -> bool {
    let label = |l: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let b = l.as_bytes();
        b.len() <= 63
            && edge(b.first())
            && edge(b.last())
            && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
    };
    domain.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_windows() {
        for (name, count) in [
            ("Administrator", 0),
            ("CORP\\me", 0),
            ("a.example.com\\me", 0),
            ("", 1),
            ("a\\b\\c", 1),
            ("a\\..", 1),
            ("x@y", 1),
            ("CORP\\", 1),
        ] {
            assert_eq!(user_name(name).len(), count, "{name}");
        }
    }
}
