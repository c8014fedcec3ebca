//! `serviceaccounts/token`: tokens on demand, bound to a pod, secret or node (`kubectl create token`, kubelets).

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::{FieldError, Status};
use hawser_api::text::quote;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ServiceAccountTokens;
use super::claims::{Bound, Claims, Reference};
use crate::access::{GroupResource, VirtualRequest, VirtualResource};

/// Shortest and longest life that may be asked for, in seconds.
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// Life of a token when none is asked for.
const DEFAULT_SECONDS: i64 = 3600;
/// What the projected volume of pods asks for. Such tokens live for a year, so that clients that never reload
/// them go on working, but say from when on that is a mistake (KEP-1205).
pub const PROJECTED_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;

/// Answers TokenRequests.
#[derive(Debug, Clone)]
pub struct TokenRequests {
    /// Who signs.
    pub tokens: Arc<ServiceAccountTokens>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    audiences: Option<Vec<String>>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<ObjectReference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectReference {
    kind: String,
    api_version: String,
    name: String,
    uid: String,
}

fn validate(seconds: i64) -> Result<(), Status> {
    let why = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]))
}

impl TokenRequests {
    async fn read(&self, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        let found = self.tokens.reader.get(&GroupResource::new("", resource), namespace, name, true).await;
        let found = found.map_err(Status::internal)?.ok_or_else(|| Status::not_found("", resource, name))?;
        found.decode().map_err(Status::internal)
    }

    async fn bind(&self, bound: &mut Bound, account: &Value, to: &ObjectReference) -> Result<(), Status> {
        let (group, version) = hawser_api::object::split_api_version(&to.api_version);
        let namespace = account.namespace();
        let resource = match (group, version, to.kind.as_str()) {
            ("", "v1", "Pod") => "pods",
            ("", "v1", "Secret") => "secrets",
            ("", "v1", "Node") => "nodes",
            _ => {
                let kind = format!("{group}/{version}, Kind={}", to.kind);
                return Err(Status::bad_request(format!("cannot bind token to object of type {kind}")));
            }
        };
        let object = self.read(resource, if resource == "nodes" { "" } else { namespace }, &to.name).await?;
        if !to.uid.is_empty() && to.uid != object.uid() {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have \
                 been deleted and then recreated",
                to.uid
            );
            return Err(Status::conflict("", resource, &to.name, why));
        }
        let reference = Some(Reference { name: to.name.clone(), uid: object.uid().to_owned() });
        match resource {
            "secrets" => bound.secret = reference,
            "nodes" => bound.node = reference,
            _ => {
                if object.str_at("spec.serviceAccountName") != account.name() {
                    let account = quote(account.name());
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account} to pod running with different serviceaccount name."
                    )));
                }
                bound.pod = reference;
                let node = object.str_at("spec.nodeName");
                if !node.is_empty() {
                    // A node that is gone is still worth telling, but it has no uid.
                    let uid = match self.read("nodes", "", node).await {
                        Ok(node) => node.uid().to_owned(),
                        Err(status) if status.is_not_found() => String::new(),
                        Err(status) => return Err(status),
                    };
                    bound.node = Some(Reference { name: node.to_owned(), uid });
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl VirtualResource for TokenRequests {
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool {
        (group, resource, subresource) == ("", "serviceaccounts", "token")
    }

    async fn create(&self, request: VirtualRequest<'_>) -> Result<Value, Status> {
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let mut object = request.object;
        let spec: Spec = serde_json::from_value(object.get("spec").cloned().unwrap_or_default())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        for (given, url, what) in
            [(object.name(), name, "name"), (object.namespace(), namespace, "namespace")]
        {
            if !given.is_empty() && given != url {
                let text = match what {
                    "name" => format!("the name of the object ({given}) does not match the name on the URL ({url})"),
                    _ => "the namespace of the provided object does not match the namespace sent on the request".to_owned(),
                };
                return Err(Status::bad_request(text));
            }
        }
        let seconds = spec.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        validate(seconds)?;
        let account = self.read("serviceaccounts", namespace, name).await?;
        let mut bound = Bound {
            namespace: namespace.clone(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference { name: name.clone(), uid: account.uid().to_owned() },
            warnafter: None,
        };
        if let Some(to) = &spec.bound_object_ref {
            self.bind(&mut bound, &account, to).await?;
        }
        let audiences =
            spec.audiences.filter(|a| !a.is_empty()).unwrap_or_else(|| self.tokens.audiences.clone());
        let now = Timestamp::now().as_second();
        let projected =
            seconds == PROJECTED_SECONDS && bound.pod.is_some() && audiences == self.tokens.audiences;
        let life = if projected { EXTENDED_SECONDS } else { seconds };
        bound.warnafter = projected.then_some(now + PROJECTED_SECONDS);
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + life,
            iat: now,
            iss: self.tokens.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: bound,
            nbf: now,
            sub: String::new(),
        };
        let claims = Claims { sub: claims.username(), ..claims };
        let claims = serde_json::to_value(&claims).map_err(Status::internal)?;
        let token = self.tokens.key.sign(&claims).map_err(Status::internal)?;
        let end = Timestamp::from_second(now + seconds).map_err(Status::internal)?;

        object.set_meta("name", json!(name));
        object.set_meta("namespace", json!(namespace));
        object.set_meta("uid", json!(account.uid()));
        object.set_meta("creationTimestamp", json!(hawser_api::time::rfc3339(Timestamp::now())));
        object.set_path(&["spec", "audiences"], json!(audiences));
        object.set_path(&["spec", "expirationSeconds"], json!(seconds));
        if spec.bound_object_ref.is_none() {
            object.set_path(&["spec", "boundObjectRef"], Value::Null);
        }
        let status = json!({"expirationTimestamp": hawser_api::time::rfc3339(end), "token": token});
        object.set_path(&["status"], status);
        Ok(object)
    }
}
