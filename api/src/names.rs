//! Validators for names, labels and the like. Each returns every message that applies, in Kubernetes' words.

/// Longest DNS-1123 label.
pub const LABEL_MAX: usize = 63;
/// Longest DNS-1123 subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const SEARCH_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const WILDCARD_MSG: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_MSG: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const C_IDENT_MSG: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
const CONFIG_KEY_MSG: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER_MSG: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

/// How objects of a kind may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameRule {
    /// DNS-1123 subdomain: most kinds.
    #[default]
    Subdomain,
    /// DNS-1123 label: namespaces and services.
    Label,
    /// One path segment: RBAC's kinds and others whose names may hold `:` and capitals.
    PathSegment,
    /// An IP address in canonical form: IPAddress.
    IpAddress,
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn label_chars(s: &str) -> bool {
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(&f), Some(&l)) => {
            lower_alnum(f) && lower_alnum(l) && b.iter().all(|&c| lower_alnum(c) || c == b'-')
        }
        _ => false,
    }
}

fn max_len(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// The same where it counts bytes.
fn max_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A DNS-1123 label.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > LABEL_MAX {
        errs.push(max_len(LABEL_MAX));
    }
    if !label_chars(s) {
        // The label text only where the subdomain text would not say more.
        errs.push(if subdomain_chars(s) { "must not contain dots".into() } else { LABEL_MSG.into() });
    }
    errs
}

fn subdomain_chars(s: &str) -> bool {
    s.split('.').all(label_chars)
}

/// A DNS-1123 subdomain.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errs.push(max_len(SUBDOMAIN_MAX));
    }
    if !subdomain_chars(s) {
        errs.push(SUBDOMAIN_MSG.into());
    }
    errs
}

/// A domain that a resolver searches; underscores are let pass (KEP-4427).
pub fn search_path(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errs.push(max_len(SUBDOMAIN_MAX));
    }
    let label = |l: &str| {
        let l = l.strip_prefix('_').unwrap_or(l);
        let inner: Vec<u8> = l.bytes().map(|b| if b == b'_' { b'-' } else { b }).collect();
        !l.starts_with('_') && !l.ends_with('_') && std::str::from_utf8(&inner).is_ok_and(label_chars)
    };
    if !s.split('.').all(label) {
        errs.push(SEARCH_MSG.into());
    }
    errs
}

/// A wildcard DNS-1123 subdomain, `*.example.com`.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errs.push(max_len(SUBDOMAIN_MAX));
    }
    if !s.strip_prefix("*.").is_some_and(subdomain_chars) {
        errs.push(WILDCARD_MSG.into());
    }
    errs
}

/// A DNS-1035 label.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > LABEL_MAX {
        errs.push(max_len(LABEL_MAX));
    }
    if !label_chars(s) || !s.starts_with(|c: char| c.is_ascii_lowercase()) {
        errs.push(DNS1035_MSG.into());
    }
    errs
}

fn qualified_chars(s: &str) -> bool {
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(f), Some(l)) => {
            f.is_ascii_alphanumeric()
                && l.is_ascii_alphanumeric()
                && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

/// A label or annotation key: `[prefix/]name`.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errs.push("prefix part must be non-empty".into());
            } else {
                if prefix.len() > SUBDOMAIN_MAX {
                    errs.push(format!("prefix part {}", max_bytes(SUBDOMAIN_MAX)));
                }
                if !subdomain_chars(prefix) {
                    errs.push(format!("prefix part {SUBDOMAIN_MSG}"));
                }
            }
            *name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED_MSG} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errs.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        errs.push(format!("name part {}", max_bytes(LABEL_MAX)));
    }
    if !qualified_chars(name) {
        errs.push(format!("name part {QUALIFIED_MSG}"));
    }
    errs
}

/// A label's value.
pub fn label_value(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > LABEL_MAX {
        errs.push(max_bytes(LABEL_MAX));
    }
    if !s.is_empty() && !qualified_chars(s) {
        errs.push(VALUE_MSG.into());
    }
    errs
}

/// A C identifier.
pub fn c_identifier(s: &str) -> Vec<String> {
    let b = s.as_bytes();
    let good = b.first().is_some_and(|c| c.is_ascii_alphabetic() || *c == b'_')
        && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_');
    if good { Vec::new() } else { vec![C_IDENT_MSG.into()] }
}

/// An environment variable's name: printable ASCII without `=`.
pub fn env_var_name(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.is_empty() {
        errs.push("environment variable name must be non-empty".into());
    }
    if s.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        errs.push("a valid environment variable name must consist only of printable ASCII characters other than '='".into());
    }
    errs
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errs.push(max_len(SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        errs.push(CONFIG_KEY_MSG.into());
    }
    match s {
        "." => errs.push("must not be '.'".into()),
        ".." => errs.push("must not be '..'".into()),
        s if s.starts_with("..") => errs.push("must not start with '..'".into()),
        _ => {}
    }
    errs
}

/// An HTTP header's name.
pub fn http_header_name(s: &str) -> Vec<String> {
    let good = !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    if good { Vec::new() } else { vec![HTTP_HEADER_MSG.into()] }
}

/// The name of a container's or a service's port (IANA_SVC_NAME).
pub fn port_name(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > 15 {
        errs.push("must be no more than 15 characters".into());
    }
    if s.is_empty() || !s.bytes().all(|c| lower_alnum(c) || c == b'-') {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        errs.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

/// A port's number.
pub fn port_number(n: i64) -> Vec<String> {
    if (1..=65535).contains(&n) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

/// A name that stands for one segment of a path.
pub fn path_segment(s: &str) -> Vec<String> {
    match s {
        "." => return vec!["may not be '.'".into()],
        ".." => return vec!["may not be '..'".into()],
        _ => {}
    }
    let bad = ["/", "%"].into_iter().filter(|c| s.contains(c));
    bad.map(|c| format!("may not contain '{c}'")).collect()
}

/// An object's name by its kind's rule. With `prefix` the name is a `generateName`, which may end in a dash.
pub fn object_name(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let name = match name.strip_suffix('-') {
        Some(head) if prefix && !matches!(rule, NameRule::PathSegment) => {
            masked = format!("{head}a");
            &masked
        }
        _ => name,
    };
    match rule {
        NameRule::Subdomain => dns1123_subdomain(name),
        NameRule::Label => dns1123_label(name),
        NameRule::PathSegment => path_segment(name),
        NameRule::IpAddress => match name.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.to_string() == name => Vec::new(),
            Ok(ip) => vec![format!("must be in canonical form ({:?})", ip.to_string())],
            Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        type Rule = fn(&str) -> Vec<String>;
        let cases: &[(Rule, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "a-b", "0"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (dns1123_subdomain, &["a", "a.b-c.d"], &["", "a..b", ".a", "A.b", "a.-b"]),
            (dns1035_label, &["a", "a0"], &["0a", ""]),
            (qualified_name, &["a", "a/b", "example.com/My_Name.x"], &["", "/a", "a/", "a/b/c", "-a", "A/b"]),
            (label_value, &["", "a", "A.b_c"], &["-a", "a b"]),
            (port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "abcdefghijklmnop", "A"]),
            (config_map_key, &["a.b", "_"], &["", "..", ".", "..a", "a b"]),
            (env_var_name, &["A", "a.b c"], &["", "a=b", "é"]),
            (path_segment, &["system:x", "A"], &[".", "..", "a/b", "a%b"]),
            (wildcard_subdomain, &["*.a.b"], &["a.b", "*", "*.A"]),
        ];
        for (rule, good, bad) in cases {
            for s in *good {
                assert_eq!(rule(s), Vec::<String>::new(), "{s:?}");
            }
            for s in *bad {
                assert!(!rule(s).is_empty(), "{s:?}");
            }
        }
        assert!(object_name(NameRule::Subdomain, "web-", true).is_empty());
        assert!(!object_name(NameRule::Subdomain, "web-", false).is_empty());
        assert_eq!(qualified_name(&"a".repeat(64)), ["name part must be no more than 63 bytes"]);
    }
}
