//! Who may ask the kubelet for what: delegated to the API server, as the kubelet's webhook mode does.

use http::{HeaderMap, Method, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How long a yes and a no are remembered.
const REMEMBER_YES: Duration = Duration::from_secs(60);
const REMEMBER_NO: Duration = Duration::from_secs(5);
/// Answers remembered.
const MAX_REMEMBERED: usize = 4096;

/// An authenticated client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user that a verified client certificate names: common name and organizations.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Option<User> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned);
        let mut groups: Vec<String> = groups.collect();
        groups.push("system:authenticated".into());
        Some(User { name, uid: None, groups, extra: BTreeMap::new() })
    }
}

struct Remembered<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let map = self.0.lock();
        map.get(key).filter(|(_, until)| Instant::now() < *until).map(|(v, _)| v.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let now = Instant::now();
        let mut map = self.0.lock();
        if map.len() >= MAX_REMEMBERED {
            map.retain(|_, (_, until)| now < *until);
        }
        if map.len() >= MAX_REMEMBERED {
            map.clear();
        }
        map.insert(key, (value, now + life));
    }
}

type Question = (User, &'static str, &'static str);

pub(super) struct Authorizer {
    client: Client,
    node: String,
    tokens: Remembered<[u8; 32], Option<User>>,
    answers: Remembered<Question, bool>,
}

impl Authorizer {
    pub fn new(client: Client, node: &str) -> Authorizer {
        Authorizer {
            client,
            node: node.to_owned(),
            tokens: Remembered(Mutex::default()),
            answers: Remembered(Mutex::default()),
        }
    }

    /// The user of the certificate, else of the bearer token.
    pub async fn authenticate(&self, user: Option<User>, headers: &HeaderMap) -> Result<User, &'static str> {
        if let Some(user) = user {
            return Ok(user);
        }
        let value = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token =
            value.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = token.map(|(_, t)| t.trim()).filter(|t| !t.is_empty()).ok_or("Unauthorized")?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return known.ok_or("Unauthorized");
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|e| {
            tracing::warn!("reviewing a token: {e}");
            "Unauthorized"
        })?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid,
            groups: u.groups.unwrap_or_default(),
            extra: u.extra.unwrap_or_default(),
        });
        let life = if user.is_some() { REMEMBER_YES } else { REMEMBER_NO };
        self.tokens.put(key, user.clone(), life);
        user.ok_or("Unauthorized")
    }

    /// Whether a user may make a request: by its fine-grained subresource, else by `nodes/proxy`.
    pub async fn authorize(
        &self,
        user: &User,
        method: &Method,
        path: &str,
    ) -> Result<(), (StatusCode, String)> {
        let verb = verb(method);
        let mut asked = "proxy";
        for subresource in subresources(path) {
            asked = subresource;
            if self.allowed(user, verb, subresource).await? {
                return Ok(());
            }
        }
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{asked}])\n",
            user.name
        );
        Err((StatusCode::FORBIDDEN, message))
    }

    async fn allowed(
        &self,
        user: &User,
        verb: &'static str,
        sub: &'static str,
    ) -> Result<bool, (StatusCode, String)> {
        let key = (user.clone(), verb, sub);
        if let Some(known) = self.answers.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(sub.into()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|e| {
            let message =
                format!("Authorization error (user={}, verb={verb}, subresource={sub}): {e}\n", user.name);
            (StatusCode::INTERNAL_SERVER_ERROR, message)
        })?;
        let yes = answer.status.is_some_and(|s| s.allowed);
        self.answers.put(key, yes, if yes { REMEMBER_YES } else { REMEMBER_NO });
        Ok(yes)
    }
}

fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    }
}

/// The subresources of `nodes` that allow a path, in the order to ask for them.
fn subresources(path: &str) -> Vec<&'static str> {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "checkpoint" => vec!["checkpoint"],
        "pods" | "runningpods" => vec!["pods", "proxy"],
        "healthz" => vec!["healthz", "proxy"],
        "configz" => vec!["configz", "proxy"],
        _ => vec!["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes() {
        assert_eq!(subresources("/exec/ns/p/c"), ["proxy"]);
        assert_eq!(subresources("/containerLogs/ns/p/c"), ["proxy"]);
        assert_eq!(subresources("/metrics/resource"), ["metrics"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(subresources("/"), ["proxy"]);
        assert_eq!(verb(&Method::POST), "create");
        assert_eq!(verb(&Method::GET), "get");
    }

    #[test]
    fn certificates() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "me");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "team");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let user = User::of_certificate(cert.der()).unwrap();
        assert_eq!(user.name, "me");
        assert_eq!(user.groups, ["team", "system:authenticated"]);
        assert_eq!(User::of_certificate(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn memory_is_bounded_and_forgets() {
        let r = Remembered(Mutex::default());
        for i in 0..MAX_REMEMBERED + 10 {
            r.put(i, i, Duration::from_secs(60));
        }
        assert!(r.0.lock().len() <= MAX_REMEMBERED);
        r.put(1, 2, Duration::ZERO);
        assert_eq!(r.get(&1), None);
    }
}
