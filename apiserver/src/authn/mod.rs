//! Authentication: client certificates, ServiceAccount tokens, bootstrap tokens, and acting as someone else.

pub mod bearer;
pub mod impersonation;
pub mod x509;

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;

use crate::access::{Authenticator, AuthnError, Identity, UserInfo};
use bearer::{Bearer, BearerError};

/// Paths that may be read without credentials: health and version.
pub fn is_public_path(path: &str) -> bool {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    matches!(trimmed, "/healthz" | "/livez" | "/readyz" | "/version")
}

/// The server's authenticator.
#[derive(Debug, Clone)]
pub struct RequestAuthenticator {
    /// Knows tokens.
    pub bearer: Arc<Bearer>,
}

#[async_trait]
impl Authenticator for RequestAuthenticator {
    fn connection(&self, chain: &[CertificateDer<'static>]) -> Option<Arc<UserInfo>> {
        match x509::user_of(chain.first()?) {
            Ok(user) => Some(Arc::new(user)),
            Err(error) => {
                tracing::warn!(%error, "client certificate names no user");
                None
            }
        }
    }

    async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        connection: Option<&Arc<UserInfo>>,
    ) -> Result<Option<Identity>, AuthnError> {
        // A certificate comes before a token, as in Kubernetes.
        if let Some(user) = connection {
            return Ok(Some(Identity { user: Arc::clone(user), warning: None }));
        }
        let Some(token) =
            bearer_token(headers).map(Cow::Borrowed).or_else(|| protocol_token(headers).map(Cow::Owned))
        else {
            return Ok(None);
        };
        let now = jiff::Timestamp::now().as_second();
        match self.bearer.authenticate(&token, self.bearer.audiences(), now).await {
            Ok(verified) => Ok(Some(Identity { user: Arc::new(verified.user), warning: verified.warning })),
            Err(BearerError::Lookup(why)) => Err(AuthnError::Internal(why)),
            Err(error) => Err(AuthnError::Invalid(error.to_string())),
        }
    }
}

/// What a WebSocket client without control of its headers puts the token into, base64url after this.
const PROTOCOL_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of an `Authorization: Bearer` header. Other schemes are no credentials (Kubernetes knows none).
fn bearer_token(headers: &http::HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The token among a WebSocket's subprotocols.
fn protocol_token(headers: &http::HeaderMap) -> Option<String> {
    let websocket = headers.get(http::header::UPGRADE)?.to_str().ok()?.eq_ignore_ascii_case("websocket");
    let offered =
        headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let encoded = offered.flat_map(|v| v.split(',')).find_map(|p| p.trim().strip_prefix(PROTOCOL_PREFIX))?;
    let decoded = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok().filter(|_| websocket)?;
    String::from_utf8(decoded).ok().filter(|token| !token.is_empty())
}

/// Whether a WebSocket subprotocol carries credentials and must not be passed on.
pub fn is_credential_protocol(protocol: &str) -> bool {
    protocol.trim().starts_with(PROTOCOL_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_headers() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic YTpi", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("abc", None),
        ] {
            let headers =
                http::HeaderMap::from_iter([(http::header::AUTHORIZATION, value.parse().expect("header"))]);
            assert_eq!(bearer_token(&headers), token, "{value:?}");
        }
        assert_eq!(bearer_token(&http::HeaderMap::new()), None);
    }

    #[test]
    fn websocket_protocols() {
        let headers = |upgrade: &str, protocols: &str| {
            http::HeaderMap::from_iter([
                (http::header::UPGRADE, upgrade.parse().expect("header")),
                (http::header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().expect("header")),
            ])
        };
        let offered = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0";
        assert_eq!(protocol_token(&headers("websocket", offered)).as_deref(), Some("secret"));
        assert_eq!(protocol_token(&headers("SPDY/3.1", offered)), None);
        assert_eq!(protocol_token(&headers("websocket", "v5.channel.k8s.io")), None);
        assert_eq!(protocol_token(&headers("websocket", "base64url.bearer.authorization.k8s.io.!")), None);
    }

    #[test]
    fn public_paths_are_health_and_version_only() {
        for path in ["/healthz", "/livez", "/readyz", "/version", "/version/"] {
            assert!(is_public_path(path), "{path}");
        }
        for path in ["/", "/api", "/metrics", "/healthz/etcd", "/versions", "/healthz//"] {
            assert!(!is_public_path(path), "{path}");
        }
    }
}
