//! Bearer tokens: ServiceAccount tokens of this server, those in Secrets, and bootstrap tokens.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::object::ObjectExt;
use jiff::Timestamp;
use serde_json::Value;

use crate::access::{GroupResource, ObjectReader, UserInfo};
use crate::tokens::legacy::LegacyTokens;
use crate::tokens::node_token::{
    BootstrapToken, GROUP_BOOTSTRAPPERS, TOKEN_NAMESPACE, TOKEN_SECRET_PREFIX, TOKEN_SECRET_TYPE,
};
use crate::tokens::{ServiceAccountTokens, TokenError, Verified};

/// Why a bearer token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// Nobody knows the token.
    #[error("invalid bearer token")]
    Unknown,
    /// A ServiceAccount token that does not hold.
    #[error("{0}")]
    Token(TokenError),
    /// The store cannot be read.
    #[error("{0}")]
    Lookup(String),
}

/// Knows bearer tokens.
#[derive(Debug)]
pub struct Bearer {
    tokens: Arc<ServiceAccountTokens>,
    legacy: LegacyTokens,
    reader: ReaderBox,
}

struct ReaderBox(Arc<dyn ObjectReader>);

impl std::fmt::Debug for ReaderBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectReader")
    }
}

impl Bearer {
    /// Tokens by `tokens` and, those in Secrets, by `legacy`; bootstrap tokens by their Secrets.
    pub fn new(
        tokens: Arc<ServiceAccountTokens>,
        legacy: LegacyTokens,
        reader: Arc<dyn ObjectReader>,
    ) -> Self {
        Self { tokens, legacy, reader: ReaderBox(reader) }
    }

    /// The API server's own audiences.
    pub fn audiences(&self) -> &[String] {
        self.tokens.audiences()
    }

    /// Finds out whose token it is, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// When it is nobody's, does not hold, or cannot be looked up.
    pub async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Result<Verified, BearerError> {
        if let Some(token) = BootstrapToken::parse(token) {
            let user = self.bootstrap(&token, now).await?.ok_or(BearerError::Unknown)?;
            // Bootstrap tokens know no audiences: they are for the API server alone.
            let audiences: Vec<_> =
                audiences.iter().filter(|a| self.audiences().contains(a)).cloned().collect();
            return if audiences.is_empty() {
                Err(BearerError::Unknown)
            } else {
                Ok(Verified { user, audiences, warning: None })
            };
        }
        let verified = if self.tokens.is_own(token) {
            self.tokens.verify(token, audiences, now).await
        } else if LegacyTokens::is_own(token) {
            self.legacy.verify(token, audiences, Timestamp::from_second(now).unwrap_or_default()).await
        } else {
            return Err(BearerError::Unknown);
        };
        verified.map_err(|error| match error {
            TokenError::Lookup(why) => BearerError::Lookup(why),
            other => BearerError::Token(other),
        })
    }

    async fn bootstrap(&self, token: &BootstrapToken, now: i64) -> Result<Option<UserInfo>, BearerError> {
        let name = format!("{TOKEN_SECRET_PREFIX}{}", token.id);
        let secrets = GroupResource::new("", "secrets");
        // Cached first; a token that was made a moment ago is looked for in the store.
        let mut found = None;
        for fresh in [false, true] {
            let object = self.reader.0.get(&secrets, TOKEN_NAMESPACE, &name, fresh).await;
            found = object.map_err(|error| BearerError::Lookup(error.to_string()))?;
            if found.is_some() {
                break;
            }
        }
        let Some(found) = found else { return Ok(None) };
        let secret: Value = found.decode().map_err(|error| BearerError::Lookup(error.to_string()))?;
        Ok(bootstrap_user(&secret, token, now))
    }
}

/// The user that a bootstrap token's Secret speaks for; None when the Secret does not make the token valid.
fn bootstrap_user(secret: &Value, token: &BootstrapToken, now: i64) -> Option<UserInfo> {
    let field = |key: &str| {
        let encoded =
            secret.get("data").map_or("", |data| data.get(key).and_then(Value::as_str).unwrap_or(""));
        STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    if secret.deletion_timestamp().is_some() || secret.str_at("type") != TOKEN_SECRET_TYPE {
        return None;
    }
    let same = same_secret(field("token-secret").as_bytes(), token.secret.as_bytes());
    if !same || field("token-id") != token.id || field("usage-bootstrap-authentication") != "true" {
        return None;
    }
    let expiration = field("expiration");
    // A malformed end is an end.
    if !expiration.is_empty() && hawser_api::time::parse(&expiration).is_none_or(|end| end.as_second() <= now)
    {
        return None;
    }
    let mut groups = vec![GROUP_BOOTSTRAPPERS.to_owned()];
    for group in field("auth-extra-groups").split(',').map(str::trim).filter(|g| !g.is_empty()) {
        // Other groups cannot be had by writing a Secret.
        group.strip_prefix(GROUP_BOOTSTRAPPERS).filter(|rest| rest.starts_with(':') && rest.len() > 1)?;
        if !groups.iter().any(|g| g == group) {
            groups.push(group.to_owned());
        }
    }
    Some(UserInfo::new(format!("system:bootstrap:{}", token.id), groups))
}

/// Equality in constant time for equal lengths.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bootstrap_secrets_decide() {
        let token = BootstrapToken::generate();
        let good = token.secret_object();
        let set = |key: &str, value: &str| {
            let mut secret = good.clone();
            secret["data"][key] = json!(STANDARD.encode(value));
            secret
        };
        let deleted = {
            let mut secret = good.clone();
            secret["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            secret
        };
        let now = 1_800_000_000;
        let cases = [
            (good.clone(), true),
            (set("token-secret", "0123456789abcdef"), false),
            (set("token-id", "zzzzzz"), false),
            (set("usage-bootstrap-authentication", "false"), false),
            (set("expiration", "2020-01-01T00:00:00Z"), false),
            (set("expiration", "2099-01-01T00:00:00Z"), true),
            (set("expiration", "tomorrow"), false),
            (set("auth-extra-groups", "system:masters"), false),
            (set("auth-extra-groups", "system:bootstrappers:a,system:bootstrappers:b"), true),
            (set("auth-extra-groups", ""), true),
            (deleted, false),
            (json!({"type": "Opaque", "data": good["data"]}), false),
            (json!({}), false),
        ];
        for (secret, valid) in cases {
            assert_eq!(bootstrap_user(&secret, &token, now).is_some(), valid, "{secret}");
        }
        let user = bootstrap_user(&good, &token, now).expect("user");
        assert_eq!(user.username, format!("system:bootstrap:{}", token.id));
        assert_eq!(
            user.groups,
            [
                "system:bootstrappers",
                "system:bootstrappers:hawser:default-node-token",
                "system:authenticated"
            ]
        );
    }
}
