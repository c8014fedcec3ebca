use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream::BoxStream;
use http::Method;

use super::legacy::{self, LegacyTokens};
use super::request::TokenRequests;
use super::review::TokenReviews;
use super::*;
use crate::access::{Change, LocalApi, ObjectRef, ReadError, VirtualRequest, VirtualResource};
use crate::authn::bearer::{Bearer, BearerError};
use crate::request_info::RequestInfo;

/// Objects by resource, namespace and name.
#[derive(Default)]
struct Objects(Mutex<BTreeMap<(String, String, String), Value>>);

impl Objects {
    fn put(&self, resource: &str, object: Value) {
        let key = (resource.to_owned(), object.namespace().to_owned(), object.name().to_owned());
        self.0.lock().insert(key, object);
    }

    fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.0.lock().remove(&(resource.to_owned(), namespace.to_owned(), name.to_owned()));
    }
}

#[async_trait::async_trait]
impl ObjectReader for Objects {
    async fn get(
        &self,
        r: &GroupResource,
        ns: &str,
        name: &str,
        _: bool,
    ) -> Result<Option<ObjectRef>, ReadError> {
        let found = self.0.lock().get(&(r.resource.clone(), ns.to_owned(), name.to_owned())).cloned();
        Ok(found.map(|json| ObjectRef {
            namespace: ns.into(),
            name: name.into(),
            resource_version: 1,
            json: json.to_string().into(),
        }))
    }

    async fn list(&self, r: &GroupResource, _: Option<&str>, _: bool) -> Result<Vec<ObjectRef>, ReadError> {
        Err(ReadError::NoResource(r.clone()))
    }

    fn changes(&self, r: &GroupResource) -> Result<BoxStream<'static, Change>, ReadError> {
        Err(ReadError::NoResource(r.clone()))
    }
}

/// Takes merge patches of labels in.
#[async_trait::async_trait]
impl LocalApi for Objects {
    async fn call(
        &self,
        _: Arc<UserInfo>,
        method: Method,
        path: &str,
        body: Option<Value>,
        _: Option<&str>,
    ) -> Result<Value, hawser_api::status::Status> {
        assert_eq!(method, Method::PATCH);
        let parts: Vec<&str> = path.split('/').collect();
        let ["", "api", "v1", "namespaces", namespace, resource, name] = parts[..] else {
            panic!("{path}");
        };
        let mut objects = self.0.lock();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let object = objects.get_mut(&key).expect("an object");
        let body = body.expect("a patch");
        assert_eq!(object.uid(), body.uid());
        for (label, value) in body["metadata"]["labels"].as_object().expect("labels") {
            object.set_path(&["metadata", "labels", label], value.clone());
        }
        Ok(object.clone())
    }
}

const ISSUER: &str = "https://kubernetes.default.svc";

struct World {
    objects: Arc<Objects>,
    tokens: Arc<ServiceAccountTokens>,
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({"name": name, "namespace": namespace, "uid": format!("{name}-uid")})
}

fn world() -> World {
    let objects = Arc::new(Objects::default());
    objects.put("serviceaccounts", json!({"metadata": meta("ns", "default")}));
    objects.put("secrets", json!({"metadata": meta("ns", "s")}));
    objects.put("nodes", json!({"metadata": meta("", "n")}));
    let spec = json!({"serviceAccountName": "default", "nodeName": "n"});
    objects.put("pods", json!({"metadata": meta("ns", "p"), "spec": spec}));
    objects.put("pods", json!({"metadata": meta("ns", "q"), "spec": {"serviceAccountName": "other"}}));
    let key = rcgen::KeyPair::generate().expect("key").serialize_pem();
    let tokens = ServiceAccountTokens::new(&key, ISSUER, Vec::new(), objects.clone()).expect("tokens");
    World { objects, tokens: Arc::new(tokens) }
}

impl World {
    fn bearer(&self) -> Bearer {
        let legacy = LegacyTokens::new(Arc::clone(&self.tokens), self.objects.clone());
        Bearer::new(Arc::clone(&self.tokens), legacy, self.objects.clone())
    }

    /// Puts a Secret with a token of the account `default` in.
    fn secret_token(&self, name: &str) -> String {
        let claims = json!({"iss": legacy::ISSUER, "sub": "system:serviceaccount:ns:default",
            "kubernetes.io/serviceaccount/namespace": "ns", "kubernetes.io/serviceaccount/secret.name": name,
            "kubernetes.io/serviceaccount/service-account.name": "default",
            "kubernetes.io/serviceaccount/service-account.uid": "default-uid"});
        let token = self.tokens.key.sign(&claims).expect("a token");
        let data = json!({"token": STANDARD.encode(&token)});
        self.objects.put("secrets", json!({"metadata": meta("ns", name), "data": data}));
        token
    }

    async fn request(&self, name: &str, spec: Value) -> Result<Value, hawser_api::status::Status> {
        let path = format!("/api/v1/namespaces/ns/serviceaccounts/{name}/token");
        let info = RequestInfo::parse(&Method::POST, &path.parse().expect("path"));
        let user = UserInfo::apiserver();
        let object = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let requests = TokenRequests { tokens: Arc::clone(&self.tokens) };
        requests.create(VirtualRequest { user: &user, info: &info, object, dry_run: false }).await
    }

    async fn token(&self, spec: Value) -> String {
        let answer = self.request("default", spec).await.expect("token");
        answer["status"]["token"].as_str().expect("token").to_owned()
    }

    async fn verify(&self, token: &str) -> Result<Verified, TokenError> {
        let now = jiff::Timestamp::now().as_second();
        self.tokens.verify(token, self.tokens.audiences(), now).await
    }
}

#[tokio::test]
async fn tokens_are_issued_and_known_again() {
    let world = world();
    let answer = world.request("default", json!({})).await.expect("token");
    assert_eq!(
        answer["spec"],
        json!({"audiences": [ISSUER], "boundObjectRef": null, "expirationSeconds": 3600})
    );
    assert_eq!(answer["metadata"]["uid"], "default-uid");
    let token = answer["status"]["token"].as_str().expect("token");
    let claims: Value = jws::peek(token).expect("claims");
    assert_eq!(claims["sub"], "system:serviceaccount:ns:default");
    assert_eq!(
        claims["kubernetes.io"],
        json!({"namespace": "ns", "serviceaccount": {"name": "default", "uid": "default-uid"}})
    );
    assert_eq!(claims["exp"].as_i64().expect("exp") - claims["iat"].as_i64().expect("iat"), 3600);
    let user = world.verify(token).await.expect("valid").user;
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
}

#[tokio::test]
async fn bound_tokens_end_with_what_they_are_bound_to() {
    for (kind, resource, namespace, name, claim) in [
        ("Pod", "pods", "ns", "p", "pod"),
        ("Secret", "secrets", "ns", "s", "secret"),
        ("Node", "nodes", "", "n", "node"),
    ] {
        let world = world();
        let bound = json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name}});
        let token = world.token(bound).await;
        let claims: Value = jws::peek(&token).expect("claims");
        assert_eq!(claims["kubernetes.io"][claim]["uid"], format!("{name}-uid"));
        assert!(world.verify(&token).await.is_ok(), "{kind}");
        world
            .objects
            .put(resource, json!({"metadata": {"name": name, "namespace": namespace, "uid": "second"}}));
        assert!(matches!(world.verify(&token).await, Err(TokenError::Bound(_))), "{kind} of another uid");
        world.objects.remove(resource, namespace, name);
        assert!(matches!(world.verify(&token).await, Err(TokenError::Bound(_))), "{kind} gone");
    }
    let world = world();
    let token =
        world.token(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}})).await;
    let user = world.verify(&token).await.expect("valid").user;
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["n-uid"]);
    world.objects.remove("serviceaccounts", "ns", "default");
    assert!(world.verify(&token).await.is_err());
}

#[tokio::test]
async fn an_object_that_is_being_deleted_keeps_its_tokens_for_a_minute() {
    let world = world();
    let token =
        world.token(json!({"boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "s"}})).await;
    for (age, valid) in [(30, true), (90, false)] {
        let mut metadata = meta("ns", "s");
        let at = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - age).expect("time");
        metadata["deletionTimestamp"] = json!(hawser_api::time::rfc3339(at));
        world.objects.put("secrets", json!({"metadata": metadata}));
        assert_eq!(world.verify(&token).await.is_ok(), valid, "{age} s");
    }
}

#[tokio::test]
async fn projected_tokens_live_long_and_say_when_they_should_have_been_reloaded() {
    let world = world();
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    let token = world.token(json!({"expirationSeconds": 3607, "boundObjectRef": pod})).await;
    let claims: Claims = jws::peek(&token).expect("claims");
    assert_eq!(
        (claims.exp - claims.iat, claims.kubernetes.warnafter),
        (365 * 86_400, Some(claims.iat + 3607))
    );
}

#[tokio::test]
async fn refusals_have_kubernetes_texts() {
    let world = world();
    let bind =
        |kind: &str, name: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name}});
    let stale = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "old"}});
    for (account, spec, code, text) in [
        (
            "default",
            json!({"expirationSeconds": 10}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes",
        ),
        (
            "default",
            json!({"expirationSeconds": 4294967297i64}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds",
        ),
        ("nope", json!({}), 404, "serviceaccounts \"nope\" not found"),
        ("default", bind("Pod", "nope"), 404, "pods \"nope\" not found"),
        (
            "default",
            bind("ConfigMap", "nope"),
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
        (
            "default",
            bind("Pod", "q"),
            400,
            "cannot bind token for serviceaccount \"default\" to pod running with different serviceaccount name.",
        ),
        (
            "default",
            stale,
            409,
            "Operation cannot be fulfilled on pods \"p\": the UID in the bound object reference (old) does not match the UID in record. The object might have been deleted and then recreated",
        ),
    ] {
        let status = world.request(account, spec).await.expect_err("refused");
        assert_eq!((status.code, status.message.as_str()), (code, text));
    }
}

#[tokio::test]
async fn reviews_tell_whose_token_it_is() {
    let world = world();
    let token = world.token(json!({})).await;
    let bearer = Arc::new(world.bearer());
    let reviews = TokenReviews { bearer };
    let user = UserInfo::apiserver();
    let info = RequestInfo::default();
    let review = |spec: Value| {
        reviews.create(VirtualRequest {
            user: &user,
            info: &info,
            object: json!({"spec": spec}),
            dry_run: false,
        })
    };
    let good = review(json!({"token": token})).await.expect("answer");
    assert_eq!(good["status"]["authenticated"], true);
    assert_eq!(good["status"]["user"]["username"], "system:serviceaccount:ns:default");
    assert_eq!(good["status"]["audiences"], json!([ISSUER]));
    let other = review(json!({"token": token, "audiences": ["other"]})).await.expect("answer");
    let text = "[invalid bearer token, token audiences [\"https://kubernetes.default.svc\"] is invalid for the target audiences [\"other\"]]";
    assert_eq!(other["status"], json!({"user": {}, "error": text}));
    let garbage = review(json!({"token": "garbage"})).await.expect("answer");
    assert_eq!(garbage["status"], json!({"user": {}, "error": "invalid bearer token"}));
    let none = review(json!({})).await.expect_err("refused");
    assert_eq!(
        (none.code, none.message.as_str()),
        (400, "token is required for TokenReview in authentication")
    );
    let foreign = world_of_another_issuer(&world).await;
    assert!(matches!(world.verify(&foreign).await, Err(TokenError::Jws(jws::JwsError::UnknownKey))));
}

async fn world_of_another_issuer(world: &World) -> String {
    let key = rcgen::KeyPair::generate().expect("key").serialize_pem();
    let tokens = ServiceAccountTokens::new(&key, ISSUER, Vec::new(), world.objects.clone()).expect("tokens");
    World { objects: Arc::clone(&world.objects), tokens: Arc::new(tokens) }.token(json!({})).await
}

#[tokio::test]
async fn a_token_in_a_secret_holds_as_long_as_the_secret_says() {
    let world = world();
    let bearer = world.bearer();
    let own = [ISSUER.to_owned()];
    // 2026-03-01, the last second of the day.
    let now = 1_772_409_599;
    let told = async |token: &str| {
        bearer.authenticate(token, &own, now).await.map_err(|error| match error {
            BearerError::Token(error) => error.to_string(),
            other => panic!("{other}"),
        })
    };
    let held = |name: &str| {
        let key = ("secrets".to_owned(), "ns".to_owned(), name.to_owned());
        world.objects.0.lock()[&key].clone()
    };
    let last_used = |name: &str| held(name).label(legacy::LAST_USED).map(str::to_owned);
    let token = world.secret_token("t");
    let verified = told(&token).await.expect("a user");
    assert_eq!(
        (verified.user.username.as_str(), verified.user.uid.as_str()),
        ("system:serviceaccount:ns:default", "default-uid")
    );
    assert!(verified.user.extra.is_empty() && verified.warning.is_none());
    assert_eq!(last_used("t").as_deref(), Some("2026-03-01"));
    let elsewhere = bearer.authenticate(&token, &["elsewhere".to_owned()], now).await;
    assert!(matches!(elsewhere, Err(BearerError::Token(TokenError::Claims(_)))));

    // One that the account lists was made without being asked for.
    let listed = json!({"metadata": meta("ns", "default"), "secrets": [{"name": "t"}]});
    world.objects.put("serviceaccounts", listed);
    assert!(told(&token).await.expect("a user").warning.is_some_and(|w| w.starts_with("Use tokens from")));

    let mut marked = held("t");
    marked["metadata"]["labels"] = json!({legacy::INVALID_SINCE: "2026-02-01"});
    world.objects.put("secrets", marked);
    let refusal = told(&token).await.expect_err("refused");
    assert!(refusal.starts_with("the token in secret ns/t for service account ns/default has been marked"));
    assert_eq!(last_used("t").as_deref(), Some("2026-03-01"), "a use that is refused is one too");

    world.secret_token("other");
    let mut replaced = held("other");
    replaced["metadata"] = meta("ns", "t");
    world.objects.put("secrets", replaced);
    assert_eq!(told(&token).await.expect_err("refused"), "Token does not match server's copy");
    world.objects.remove("secrets", "ns", "t");
    assert_eq!(told(&token).await.expect_err("refused"), "Token has been invalidated");
    let forged = world_of_another_issuer(&world).await;
    assert!(told(&forged).await.is_err());
}
