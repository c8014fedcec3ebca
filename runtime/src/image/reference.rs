//! Image names as Docker reads them: `busybox` is `docker.io/library/busybox:latest` (grammar: the `reference`
//! package of the distribution project documents it). Pure. Written by hand because a regular expression for it
//! costs megabytes and a good part of a second in an unoptimised build.

use oci_client::Reference;

use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// The longest repository, with its registry.
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;
/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A complete image name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// `host[:port]`.
    pub registry: String,
    /// Path in the registry.
    pub repository: String,
    /// Tag; `latest` when the name had neither tag nor digest.
    pub tag: Option<String>,
    /// Digest.
    pub digest: Option<Digest>,
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl ImageName {
    /// `registry/repository`.
    pub fn without_version(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`; `None` for a name by digest.
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.without_version())),
            _ => None,
        }
    }

    /// `registry/repository@digest`.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.without_version())
    }

    /// In the terms of the registry client.
    pub fn reference(&self) -> Reference {
        let (registry, repository) = (self.registry.clone(), self.repository.clone());
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Reference::with_digest(registry, repository, digest.to_string()),
            (None, Some(tag)) => Reference::with_tag(registry, repository, tag.clone()),
            (None, None) => Reference::with_tag(registry, repository, "latest".to_owned()),
        }
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_good = port.is_none_or(|p| !p.is_empty() && p.parse::<u16>().is_ok());
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let label = |l: &str| {
        let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        alphanumeric(l.chars().next())
            && alphanumeric(l.chars().next_back())
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    port_good
        && match address {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.split('.').all(label),
        }
}

/// Lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_path_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators_good = text
        .split(is_word)
        .filter(|s| !s.is_empty())
        .all(|s| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-'));
    text.starts_with(is_word) && text.ends_with(is_word) && separators_good
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= MAX_TAG
        && text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

/// Reads and completes an image name.
///
/// # Errors
/// `InvalidArgument` when it is none.
pub fn parse(name: &str) -> Result<ImageName> {
    let wrong = || Error::InvalidArgument(format!("{name:?} is not an image name"));
    let trimmed = name.trim();
    let (rest, digest) = match trimmed.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (trimmed, None),
    };
    // A colon after the last slash begins a tag; one before it, a port.
    let path_at = rest.rfind('/').map_or(0, |n| n + 1);
    let (rest, tag) = match rest[path_at..].find(':') {
        Some(at) => (&rest[..path_at + at], Some(&rest[path_at + at + 1..])),
        None => (rest, None),
    };
    if !tag.is_none_or(is_tag) {
        return Err(wrong());
    }
    let names_host = |first: &str| {
        first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
    };
    let (registry, path) = match rest.split_once('/') {
        Some((first, path)) if names_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, rest),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if !is_host(registry) || !path.split('/').all(is_path_component) {
        return Err(wrong());
    }
    let official = registry == DEFAULT_REGISTRY && !path.contains('/');
    let repository = if official { format!("library/{path}") } else { path.to_owned() };
    if registry.len() + repository.len() >= MAX_NAME {
        return Err(wrong());
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(ImageName { registry: registry.to_owned(), repository, tag, digest })
}

/// True when the registry may be spoken to without TLS: it is this machine's own, or configured (`host` or
/// `host:port`).
pub fn is_insecure(registry: &str, configured: &[String]) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || configured.iter().any(|c| c == registry || c == host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = format!("a/b:1@{digest}");
        let complete = format!("docker.io/a/b:1@{digest}");
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("a/b:1", "docker.io/a/b:1"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/x/y:v2", "127.0.0.1:5000/x/y:v2"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("registry.example/x:1", "registry.example/x:1"),
            ("HOST/x__y/z--a.b:A_1.2-3", "HOST/x__y/z--a.b:A_1.2-3"),
            ("test.com:tag", "docker.io/library/test.com:tag"),
            (&by_digest, &complete),
        ];
        for (name, want) in cases {
            assert_eq!(parse(name).map(|n| n.to_string()).ok().as_deref(), Some(want), "{name}");
        }
        let long = format!("a/{}", "b".repeat(300));
        let long_tag = format!("a:{}", "b".repeat(129));
        for bad in [
            "",
            "a/UPPER",
            "a b",
            "x@sha256:12",
            "../x",
            "/x",
            "x/",
            "a//b",
            "a:",
            "a:-x",
            "a___b",
            "a.-b",
            "-a",
            "host:port/x",
            "host:99999/x",
            "[::g]/x",
            "-h.com/x",
            &long,
            &long_tag,
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn complete_names_stay_as_they_are(text in "[a-zA-Z0-9./:@_ -]{0,24}") {
            if let Ok(name) = parse(&text) {
                let again = parse(&name.to_string());
                prop_assert_eq!(again.ok(), Some(name));
            }
        }

        #[test]
        fn we_read_names_as_the_registry_client_does(text in "([a-z0-9.]{1,6}(:[0-9]{1,3})?/)?[a-z0-9._/-]{1,12}(:[a-z0-9.-]{1,5})?") {
            let theirs = text.parse::<Reference>().ok().map(|r| r.whole());
            let ours = parse(&text).ok().map(|n| n.to_string());
            prop_assert_eq!(ours, theirs, "{}", text);
        }
    }

    #[test]
    fn plain_http_only_where_it_is_harmless_or_wanted() {
        let configured = ["reg.test:5000".to_owned(), "plain.test".to_owned()];
        for (registry, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("reg.test:5000", true),
            ("reg.test:5001", false),
            ("plain.test:80", true),
            ("docker.io", false),
            ("localhost.example", false),
        ] {
            assert_eq!(is_insecure(registry, &configured), want, "{registry}");
        }
    }
}
