//! What a ServiceAccount token says (KEP-1205, KEP-4193), and whether it holds now. Pure.

use serde::{Deserialize, Serialize};

use crate::access::UserInfo;
use crate::authz::index::SERVICE_ACCOUNT_PREFIX;

/// Extra key: name of the pod that the token is bound to.
pub const EXTRA_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// Extra key: uid of the pod.
pub const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Extra key: name of the node.
pub const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Extra key: uid of the node.
pub const EXTRA_NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// Extra key: which credential was shown.
pub const EXTRA_CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// Clocks may differ by this much, in seconds.
const LEEWAY: i64 = 60;

/// Claims of a token, in the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom the token is for.
    pub aud: Vec<String>,
    /// End, in seconds since 1970.
    pub exp: i64,
    /// When it was issued.
    pub iat: i64,
    /// Who issued it.
    pub iss: String,
    /// Unique id of the token.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    /// Not before.
    pub nbf: i64,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
}

/// The private claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the account and of what the token is bound to.
    pub namespace: String,
    /// The node of the pod, or the node that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The account.
    pub serviceaccount: Reference,
    /// From when on use of the token is a sign of a client that does not reload it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// An object by name and uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name of the object.
    pub name: String,
    /// Uid of the object; may be empty for the node of a pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Why a token that was signed here does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Past its end.
    #[error("service account token has expired")]
    Expired,
    /// Before its time.
    #[error("service account token is not valid yet")]
    NotYet,
    /// For someone else.
    #[error("token audiences {} is invalid for the target audiences {}", go_list(.token), go_list(.target))]
    Audience {
        /// Audiences of the token.
        token: Vec<String>,
        /// Audiences asked for.
        target: Vec<String>,
    },
    /// Subject and private claims do not fit together.
    #[error("subject {0:?} does not match the token's service account")]
    Subject(String),
}

fn go_list(values: &[String]) -> String {
    crate::authz::rule::quoted_list(values)
}

impl Claims {
    /// The account's user name.
    pub fn username(&self) -> String {
        format!(
            "{SERVICE_ACCOUNT_PREFIX}{}:{}",
            self.kubernetes.namespace, self.kubernetes.serviceaccount.name
        )
    }

    /// Checks times, audience and subject. Answers the audiences that both sides have.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self, now: i64, audiences: &[String]) -> Result<Vec<String>, ClaimError> {
        if self.sub != self.username() {
            return Err(ClaimError::Subject(self.sub.clone()));
        }
        if now > self.exp.saturating_add(LEEWAY) {
            return Err(ClaimError::Expired);
        }
        if now < self.nbf.saturating_sub(LEEWAY) {
            return Err(ClaimError::NotYet);
        }
        let common: Vec<_> = self.aud.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(ClaimError::Audience { token: self.aud.clone(), target: audiences.to_vec() });
        }
        Ok(common)
    }

    /// The user that the token speaks for.
    pub fn user(&self) -> UserInfo {
        let Bound { namespace, node, pod, serviceaccount, .. } = &self.kubernetes;
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let mut user = UserInfo::new(self.username(), groups);
        user.uid = serviceaccount.uid.clone();
        let mut extra = |key: &str, value: String| {
            if !value.is_empty() {
                user.extra.insert(key.to_owned(), vec![value]);
            }
        };
        extra(EXTRA_CREDENTIAL, format!("JTI={}", self.jti));
        if let Some(pod) = pod {
            extra(EXTRA_POD_NAME, pod.name.clone());
            extra(EXTRA_POD_UID, pod.uid.clone());
        }
        if let Some(node) = node {
            extra(EXTRA_NODE_NAME, node.name.clone());
            extra(EXTRA_NODE_UID, node.uid.clone());
        }
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> Reference {
        Reference { name: name.to_owned(), uid: format!("{name}-uid") }
    }

    fn claims() -> Claims {
        Claims {
            aud: vec!["api".to_owned(), "vault".to_owned()],
            exp: 2000,
            iat: 1000,
            iss: "issuer".to_owned(),
            jti: "id".to_owned(),
            kubernetes: Bound {
                namespace: "ns".to_owned(),
                node: Some(reference("node")),
                pod: Some(reference("pod")),
                secret: None,
                serviceaccount: reference("sa"),
                warnafter: None,
            },
            nbf: 1000,
            sub: "system:serviceaccount:ns:sa".to_owned(),
        }
    }

    #[test]
    fn times_audiences_and_subjects() {
        let audience = |a: &str| vec![a.to_owned()];
        let wrong = ClaimError::Audience { token: claims().aud, target: audience("other") };
        assert_eq!(
            wrong.to_string(),
            r#"token audiences ["api" "vault"] is invalid for the target audiences ["other"]"#
        );
        for (now, target, expected) in [
            (1500, "api", Ok(audience("api"))),
            (1500, "vault", Ok(audience("vault"))),
            (1500, "other", Err(wrong)),
            (2060, "api", Ok(audience("api"))),
            (2061, "api", Err(ClaimError::Expired)),
            (940, "api", Ok(audience("api"))),
            (939, "api", Err(ClaimError::NotYet)),
        ] {
            assert_eq!(claims().check(now, &audience(target)), expected, "{now} {target}");
        }
        let forged = Claims { sub: "system:serviceaccount:kube-system:admin".to_owned(), ..claims() };
        assert!(matches!(forged.check(1500, &audience("api")), Err(ClaimError::Subject(_))));
    }

    #[test]
    fn users_carry_what_kubernetes_says_of_them() {
        let user = claims().user();
        assert_eq!(user.username, "system:serviceaccount:ns:sa");
        assert_eq!(user.uid, "sa-uid");
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(user.extra[EXTRA_POD_NAME], ["pod"]);
        assert_eq!(user.extra[EXTRA_NODE_UID], ["node-uid"]);
        assert_eq!(user.extra[EXTRA_CREDENTIAL], ["JTI=id"]);
    }
}
