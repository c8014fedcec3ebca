//! Image names as Docker reads them: `busybox` is `docker.io/library/busybox:latest`. Pure.

use oci_client::Reference;

use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// Reads and completes an image name.
///
/// # Errors
/// `InvalidArgument` when it is none.
pub fn parse(name: &str) -> Result<Reference> {
    let reference: Reference =
        name.trim().parse().map_err(|e| Error::InvalidArgument(format!("image name {name:?}: {e}")))?;
    if let Some(digest) = reference.digest() {
        Digest::parse(digest)?;
    }
    Ok(reference)
}

/// `registry/repository`.
pub fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// `registry/repository:tag`; `None` for a name by digest.
pub fn tagged(reference: &Reference) -> Option<String> {
    match (reference.tag(), reference.digest()) {
        (Some(tag), None) => Some(format!("{}:{tag}", repository(reference))),
        _ => None,
    }
}

/// `registry/repository@digest`.
pub fn with_digest(reference: &Reference, digest: &Digest) -> String {
    format!("{}@{digest}", repository(reference))
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

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let cases = [
            ("busybox", Some("docker.io/library/busybox:latest")),
            ("a/b:1", Some("docker.io/a/b:1")),
            ("localhost:5000/x", Some("localhost:5000/x:latest")),
            ("127.0.0.1:5000/x/y:v2", Some("127.0.0.1:5000/x/y:v2")),
            ("registry.example/x:1", Some("registry.example/x:1")),
        ];
        for (name, want) in cases {
            let got = parse(name).ok().and_then(|r| tagged(&r));
            assert_eq!(got.as_deref(), want, "{name}");
        }
        let by_digest = parse(&format!("a/b:1@{digest}"));
        assert!(by_digest.as_ref().is_ok_and(|r| tagged(r).is_none() && repository(r) == "docker.io/a/b"));
        for bad in ["", "a/UPPER", "a b", "x@sha256:12", "../x"] {
            assert!(parse(bad).is_err(), "{bad:?}");
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
