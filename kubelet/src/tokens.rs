//! ServiceAccount tokens for projected volumes, bound to their pod and renewed before they end.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

/// A token is renewed at the latest after a day.
const MAX_AGE: i64 = 24 * 3600;

/// A token and when to get the next one.
#[derive(Clone)]
pub(crate) struct Token {
    pub token: String,
    pub renew_at: Timestamp,
}

/// Asks for a token. The error is text for an event.
pub(crate) async fn request(
    client: &Client,
    pod: &Pod,
    audience: &str,
    seconds: i64,
) -> Result<Token, String> {
    let meta = &pod.metadata;
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).filter(|a| !a.is_empty());
    let account = account.unwrap_or("default");
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
        }),
        ..TokenRequest::default()
    };
    let asked = Timestamp::now();
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer: TokenRequest = api
        .create_subresource("token", account, &PostParams::default(), &body)
        .await
        .map_err(|e| format!("failed to fetch token: {e}"))?;
    let status = answer.status.unwrap_or_default();
    let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
        return Err("failed to fetch token: the answer has none".into());
    };
    Ok(Token { token, renew_at: renew_at(asked, expires.0) })
}

/// At 80 % of the life, or after a day.
fn renew_at(asked: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(asked).as_secs().max(0);
    let wait = (life * 8 / 10).min(MAX_AGE);
    asked.checked_add(SignedDuration::from_secs(wait)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal() {
        let t = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(renew_at(t(0), t(3600)), t(2880));
        assert_eq!(renew_at(t(0), t(1_000_000)), t(86_400));
        assert_eq!(renew_at(t(10), t(5)), t(10));
    }
}
