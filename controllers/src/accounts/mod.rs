//! ServiceAccounts' tokens in Secrets (`kubernetes.io/service-account-token`): filled in, gone with their account, and
//! cleaned up when nobody uses them (KEP-2799).

pub mod legacy;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::Value;

use crate::object;

/// Type of the Secrets.
pub const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
/// Annotation of a Secret: name of its account.
pub const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
/// Annotation of a Secret: uid of its account.
pub const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Signs claims with the key of ServiceAccounts' tokens.
pub type SignClaims = Arc<dyn Fn(&Value) -> Result<String, String> + Send + Sync>;

/// Name and uid of the account that a Secret is for; the uid is empty where the Secret does not say it yet.
pub fn account_of(secret: &Secret) -> (&str, &str) {
    let said = |key| object::annotation(&secret.metadata, key).unwrap_or_default();
    (said(ACCOUNT_NAME), said(ACCOUNT_UID))
}

/// Whether `account` is the one that a Secret is for, by its uid where the Secret says one.
fn is_account(account: &ServiceAccount, uid: &str) -> bool {
    uid.is_empty() || object::uid(account) == uid
}

/// Index: token Secrets by `namespace/account`.
pub fn secrets_account(secret: &Secret) -> Vec<String> {
    let (name, _) = account_of(secret);
    if name.is_empty() { Vec::new() } else { vec![format!("{}/{name}", object::namespace(secret))] }
}

/// Whether an account lists a Secret among its own.
fn lists(account: &ServiceAccount, secret: &str) -> bool {
    account.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(secret))
}
