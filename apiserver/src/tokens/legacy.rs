//! Tokens in Secrets of type `kubernetes.io/service-account-token`: they have no end of their own, hold as long as the
//! Secret says them, and their use is recorded there (KEP-2799).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_api::object::ObjectExt;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ServiceAccountTokens, TokenError, Verified, claims};
use crate::access::{LocalApi, UserInfo};
use crate::authz::index::SERVICE_ACCOUNT_PREFIX;

/// Who issues these tokens.
pub const ISSUER: &str = "kubernetes/serviceaccount";
/// Label: day on which the token was last used, UTC.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label: day from which on the token is no longer accepted, UTC.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Told to who uses a token that Kubernetes before 1.24 made on its own.
const AUTO_GENERATED: &str = "Use tokens from the TokenRequest API or manually created secret-based tokens instead of \
                              auto-generated secret-based tokens.";

/// Why such a token does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegacyError {
    /// A claim is not there.
    #[error("{0} claim is missing")]
    Missing(&'static str),
    /// The subject is another account.
    #[error("sub claim is invalid")]
    Subject,
    /// The Secret is gone.
    #[error("Token has been invalidated")]
    Invalidated,
    /// The Secret holds another token.
    #[error("Token does not match server's copy")]
    Changed,
    /// The account is gone.
    #[error("serviceaccounts {0:?} not found")]
    NoAccount(String),
    /// The account is going.
    #[error("ServiceAccount {0} has been deleted")]
    Deleted(String),
    /// The account is a second one of the same name.
    #[error("ServiceAccount UID ({found}) does not match claim ({claimed})")]
    Uid {
        /// Uid of the account that is there.
        found: String,
        /// Uid in the token.
        claimed: String,
    },
    /// The label of the Secret says so.
    #[error(
        "the token in secret {secret} for service account {account} has been marked invalid. Use tokens from the \
         TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the \
         secret to temporarily allow use of this token"
    )]
    MarkedInvalid {
        /// Namespace and name of the Secret.
        secret: String,
        /// Namespace and name of the account.
        account: String,
    },
}

/// Claims of such a token.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LegacyClaims {
    sub: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
}

impl LegacyClaims {
    /// Whether the claims fit together.
    fn check(&self) -> Result<(), LegacyError> {
        for (value, name) in [
            (&self.sub, "sub"),
            (&self.namespace, "namespace"),
            (&self.secret, "secretName"),
            (&self.account, "serviceAccountName"),
            (&self.uid, "serviceAccountUID"),
        ] {
            if value.is_empty() {
                return Err(LegacyError::Missing(name));
            }
        }
        if self.sub != format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", self.namespace, self.account) {
            return Err(LegacyError::Subject);
        }
        Ok(())
    }

    /// Whether the token is the one that the Secret holds.
    fn check_secret(&self, token: &str, secret: Option<&Value>) -> Result<(), LegacyError> {
        let secret = secret.filter(|s| s.deletion_timestamp().is_none()).ok_or(LegacyError::Invalidated)?;
        let held = STANDARD.decode(secret.str_at("data.token")).unwrap_or_default();
        if crate::authn::bearer::same_secret(&held, token.as_bytes()) {
            Ok(())
        } else {
            Err(LegacyError::Changed)
        }
    }

    /// Whether the account is the one that the token was made for.
    fn check_account(&self, account: Option<&Value>) -> Result<(), LegacyError> {
        let account = account.ok_or_else(|| LegacyError::NoAccount(self.account.clone()))?;
        if account.deletion_timestamp().is_some() {
            return Err(LegacyError::Deleted(format!("{}/{}", self.namespace, self.account)));
        }
        if account.uid() != self.uid {
            return Err(LegacyError::Uid { found: account.uid().to_owned(), claimed: self.uid.clone() });
        }
        Ok(())
    }

    /// Whether the Secret's label lets the token be used.
    fn check_mark(&self, secret: &Value) -> Result<(), LegacyError> {
        if secret.label(INVALID_SINCE).is_none_or(str::is_empty) {
            return Ok(());
        }
        let Self { namespace, secret, account, .. } = self;
        Err(LegacyError::MarkedInvalid {
            secret: format!("{namespace}/{secret}"),
            account: format!("{namespace}/{account}"),
        })
    }
}

/// The day at a moment, UTC.
pub fn day(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

/// What to write to a Secret whose token was used on a day; None where it is there. Servers' clocks may differ: the
/// next day is as good.
fn usage_patch(secret: &Value, today: Date) -> Option<Value> {
    let said = secret.label(LAST_USED).unwrap_or_default();
    let tomorrow = today.tomorrow().unwrap_or(today);
    if [today, tomorrow].iter().any(|day| day.to_string() == said) {
        return None;
    }
    Some(json!({"metadata": {"uid": secret.uid(), "labels": {LAST_USED: today.to_string()}}}))
}

/// Knows the tokens of Secrets.
pub struct LegacyTokens {
    tokens: Arc<ServiceAccountTokens>,
    local: Arc<dyn LocalApi>,
}

impl std::fmt::Debug for LegacyTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LegacyTokens").finish_non_exhaustive()
    }
}

impl LegacyTokens {
    /// Signatures are checked by `tokens`, uses written through `local`.
    pub fn new(tokens: Arc<ServiceAccountTokens>, local: Arc<dyn LocalApi>) -> Self {
        Self { tokens, local }
    }

    /// Whether the token says that it is one of these. Nothing is checked.
    pub fn is_own(token: &str) -> bool {
        super::says_issuer(token, ISSUER)
    }

    /// Checks a token for some audiences, and records its use.
    ///
    /// # Errors
    /// What does not hold, or that it cannot be found out.
    pub async fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Verified, TokenError> {
        let claims: LegacyClaims = self.tokens.key.verify(token)?;
        // The token names no audience: it is for this server alone.
        let own = self.tokens.audiences();
        let common: Vec<_> = own.iter().filter(|a| audiences.contains(a)).cloned().collect();
        claims.check()?;
        let mut secret = self.tokens.get("secrets", &claims.namespace, &claims.secret, false).await?;
        if claims.check_secret(token, secret.as_ref()).is_err() {
            // The cache may lag behind the Secret's token.
            secret = self.tokens.get("secrets", &claims.namespace, &claims.secret, true).await?;
        }
        claims.check_secret(token, secret.as_ref())?;
        let mut account =
            self.tokens.get("serviceaccounts", &claims.namespace, &claims.account, false).await?;
        if claims.check_account(account.as_ref()).is_err() {
            account = self.tokens.get("serviceaccounts", &claims.namespace, &claims.account, true).await?;
        }
        claims.check_account(account.as_ref())?;
        let secret = secret.unwrap_or_default();
        // A use of a token that was marked is worth knowing too.
        self.record(&secret, day(now)).await;
        claims.check_mark(&secret)?;
        if common.is_empty() {
            let (token, target) = (own.to_vec(), audiences.to_vec());
            return Err(claims::ClaimError::Audience { token, target }.into());
        }
        let referred =
            account.iter().flat_map(|a| a.items_at("secrets")).any(|s| s.str_at("name") == secret.name());
        let groups =
            ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", claims.namespace)];
        let mut user = UserInfo::new(claims.sub, groups);
        user.uid = claims.uid;
        Ok(Verified { user, audiences: common, warning: referred.then_some(AUTO_GENERATED) })
    }

    async fn record(&self, secret: &Value, today: Date) {
        let Some(patch) = usage_patch(secret, today) else { return };
        let path = format!("/api/v1/namespaces/{}/secrets/{}", secret.namespace(), secret.name());
        let merge = Some("application/merge-patch+json");
        let user = Arc::new(UserInfo::apiserver());
        if let Err(status) = self.local.call(user, http::Method::PATCH, &path, Some(patch), merge).await {
            tracing::warn!(error = %status, path, "the last use of a token cannot be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> LegacyClaims {
        let text = |t: &str| t.to_owned();
        LegacyClaims {
            sub: text("system:serviceaccount:ns:sa"),
            namespace: text("ns"),
            secret: text("s"),
            account: text("sa"),
            uid: text("u"),
        }
    }

    #[test]
    fn claims_must_be_whole() {
        assert_eq!(claims().check(), Ok(()));
        let empty = |change: fn(&mut LegacyClaims)| {
            let mut claims = claims();
            change(&mut claims);
            claims.check().expect_err("refused").to_string()
        };
        assert_eq!(empty(|c| c.sub.clear()), "sub claim is missing");
        assert_eq!(empty(|c| c.namespace.clear()), "namespace claim is missing");
        assert_eq!(empty(|c| c.secret.clear()), "secretName claim is missing");
        assert_eq!(empty(|c| c.account.clear()), "serviceAccountName claim is missing");
        assert_eq!(empty(|c| c.uid.clear()), "serviceAccountUID claim is missing");
        assert_eq!(empty(|c| c.sub.push('x')), "sub claim is invalid");
    }

    #[test]
    fn secrets_and_accounts_decide() {
        let secret =
            |token: &str| json!({"metadata": {"name": "s"}, "data": {"token": STANDARD.encode(token)}});
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "data": {"token": STANDARD.encode("t")}});
        for (secret, outcome) in [
            (Some(secret("t")), Ok(())),
            (Some(secret("other")), Err(LegacyError::Changed)),
            (Some(json!({})), Err(LegacyError::Changed)),
            (Some(going), Err(LegacyError::Invalidated)),
            (None, Err(LegacyError::Invalidated)),
        ] {
            assert_eq!(claims().check_secret("t", secret.as_ref()), outcome);
        }
        let account = |uid: &str| json!({"metadata": {"name": "sa", "uid": uid}});
        let deleted = json!({"metadata": {"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let told = |account: Option<Value>| {
            claims().check_account(account.as_ref()).expect_err("refused").to_string()
        };
        assert_eq!(claims().check_account(Some(&account("u"))), Ok(()));
        assert_eq!(told(Some(account("v"))), "ServiceAccount UID (v) does not match claim (u)");
        assert_eq!(told(Some(deleted)), "ServiceAccount ns/sa has been deleted");
        assert_eq!(told(None), "serviceaccounts \"sa\" not found");
        let marked = json!({"metadata": {"labels": {INVALID_SINCE: "2026-01-01"}}});
        assert_eq!(
            claims().check_mark(&marked).expect_err("refused").to_string(),
            "the token in secret ns/s for service account ns/sa has been marked invalid. Use tokens from the \
             TokenRequest API or manually created secret-based tokens, or remove the \
             'kubernetes.io/legacy-token-invalid-since' label from the secret to temporarily allow use of this token"
        );
        assert_eq!(claims().check_mark(&json!({})), Ok(()));
    }

    #[test]
    fn a_use_is_written_once_a_day() {
        let today = jiff::civil::date(2026, 2, 28);
        let used = |day: &str| json!({"metadata": {"uid": "u", "labels": {LAST_USED: day}}});
        assert_eq!(usage_patch(&used("2026-02-28"), today), None);
        assert_eq!(usage_patch(&used("2026-03-01"), today), None);
        for secret in [used("2026-02-27"), used("yesterday"), json!({"metadata": {"uid": "u"}})] {
            let patch = usage_patch(&secret, today).expect("a patch");
            assert_eq!(patch, json!({"metadata": {"uid": "u", "labels": {LAST_USED: "2026-02-28"}}}));
        }
    }
}
