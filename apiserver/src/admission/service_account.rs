//! ServiceAccount: every pod has an account, its token volume and its image pull secrets.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use hawser_api::object::ObjectExt;
use hawser_api::references::{Reference, references};
use hawser_api::status::Status;
use hawser_api::text::quote;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Lookup, array_mut, forbidden, is, unaskable};
use crate::access::{Admission, AdmissionRequest, GroupResource, Operation};
use crate::authz::node::graph::MIRROR_ANNOTATION;
use crate::request_info::RequestInfo;
use crate::tokens::request::PROJECTED_SECONDS;

/// Account of pods that name none.
const DEFAULT: &str = "default";
/// Where containers find their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Alphabet of generated names: no vowels, nothing that looks like something else.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How long a pod in a new namespace waits for the `default` account to be made.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct ServiceAccount {
    reader: Lookup,
    /// Signalled on every change of a ServiceAccount.
    changed: Arc<Notify>,
}

impl ServiceAccount {
    pub(super) fn new(reader: Lookup, stop: &CancellationToken) -> Self {
        let changed = Arc::new(Notify::new());
        match reader.0.changes(&GroupResource::new("", "serviceaccounts")) {
            Ok(mut changes) => {
                let (notify, stop) = (Arc::clone(&changed), stop.clone());
                tokio::spawn(async move {
                    while let Some(Some(_)) = stop.run_until_cancelled(changes.next()).await {
                        notify.notify_waiters();
                    }
                });
            }
            // Without notice a pod that comes too early waits its time out and is refused.
            Err(error) => tracing::error!(%error, "cannot follow ServiceAccounts"),
        }
        Self { reader, changed }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        if let Some(account) = self.reader.get("", "serviceaccounts", namespace, name).await? {
            return Ok(Some(account));
        }
        if name != DEFAULT {
            return Ok(None);
        }
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(account) = self.reader.get_fresh("", "serviceaccounts", namespace, name).await? {
                    return Ok(Some(account));
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or(Ok(None))
    }
}

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, "", "pods")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        if pod.annotation(MIRROR_ANNOTATION).is_some() {
            return mirror(pod).map_err(|why| forbidden(request, why));
        }
        if pod.str_at("spec.serviceAccountName").is_empty() {
            let deprecated = pod.str_at("spec.serviceAccount");
            let name = if deprecated.is_empty() { DEFAULT } else { deprecated }.to_owned();
            pod.set_path(&["spec", "serviceAccountName"], json!(name));
        }
        let name = pod.str_at("spec.serviceAccountName").to_owned();
        pod.set_path(&["spec", "serviceAccount"], json!(name));
        let namespace = &request.info.namespace;
        if let Some(why) = unaskable(&name) {
            let why = format!("error looking up service account {namespace}/{name}: {why}");
            return Err(forbidden(request, why));
        }
        let Some(account) = self.find(namespace, &name).await? else {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {} not found",
                quote(&name)
            );
            return Err(forbidden(request, why));
        };
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        if let Err(why) = limit_secrets(pod, &account) {
            return Err(forbidden(request, why));
        }
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        let wanted = pod
            .bool_at("spec.automountServiceAccountToken")
            .or_else(|| account.bool_at("automountServiceAccountToken"))
            .unwrap_or(true);
        if wanted {
            mount_token(pod);
        }
        let secrets = account.items_at("imagePullSecrets");
        if pod.items_at("spec.imagePullSecrets").is_empty() && !secrets.is_empty() {
            let secrets = secrets.to_vec();
            pod.set_path(&["spec", "imagePullSecrets"], Value::Array(secrets));
        }
        Ok(())
    }
}

/// A mirror pod speaks for nobody.
fn mirror(pod: &Value) -> Result<(), String> {
    let mut named = None;
    references(pod, &mut |reference| {
        let word = match reference {
            Reference::ServiceAccount(_) => "service accounts",
            Reference::Secret(_) => "secrets",
            Reference::ConfigMap(_) | Reference::Claim(_) | Reference::ResourceClaim(_) => return,
        };
        named = named.or(Some(word));
    });
    if let Some(word) = named {
        return Err(format!("a mirror pod may not reference {word}"));
    }
    let projected = pod.items_at("spec.volumes").iter().any(|v| {
        v.items_at("projected.sources")
            .iter()
            .any(|s| s.get("serviceAccountToken").is_some_and(Value::is_object))
    });
    if projected {
        Err("a mirror pod may not use ServiceAccountToken volume projections".to_owned())
    } else {
        Ok(())
    }
}

/// `kubernetes.io/enforce-mountable-secrets`: the pod may name only the secrets that its account lists.
fn limit_secrets(pod: &Value, account: &Value) -> Result<(), String> {
    let enforced = account.annotation("kubernetes.io/enforce-mountable-secrets");
    if !enforced.is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")) {
        return Ok(());
    }
    let listed = |list: &str, name: &str| account.items_at(list).iter().any(|s| s.str_at("name") == name);
    let account_name = account.name();
    for secret in pod.items_at("spec.imagePullSecrets") {
        let name = secret.str_at("name");
        if !listed("imagePullSecrets", name) {
            return Err(format!(
                "imagePullSecrets[].name={} is not allowed because service account {account_name} does not reference that imagePullSecret",
                quote(name)
            ));
        }
    }
    let pull: Vec<&str> = pod.items_at("spec.imagePullSecrets").iter().map(|s| s.str_at("name")).collect();
    let mut refused = None;
    references(pod, &mut |reference| {
        if let Reference::Secret(name) = reference
            && !listed("secrets", name)
            && !pull.contains(&name)
        {
            refused.get_or_insert_with(|| name.to_owned());
        }
    });
    match refused {
        Some(name) => Err(format!(
            "secret {} is not allowed because service account {account_name} does not reference that secret",
            quote(&name)
        )),
        None => Ok(()),
    }
}

/// Mounts the token into every container that has nothing else there, by a volume made when one needs it.
fn mount_token(pod: &mut Value) {
    let existing =
        pod.items_at("spec.volumes").iter().map(|v| v.str_at("name")).find(|n| n.starts_with(VOLUME_PREFIX));
    let (name, is_new) = match existing {
        Some(name) => (name.to_owned(), false),
        None => (new_volume_name(pod), true),
    };
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) =
            hawser_api::object::get_path_mut(pod, &["spec", list]).and_then(Value::as_array_mut)
        else {
            continue;
        };
        for container in containers {
            if container.items_at("volumeMounts").iter().any(|m| m.str_at("mountPath") == MOUNT_PATH) {
                continue;
            }
            if let Some(mounts) = array_mut(container, &["volumeMounts"]) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed
        && is_new
        && let Some(volumes) = array_mut(pod, &["spec", "volumes"])
    {
        volumes.push(json!({
            "name": name,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": PROJECTED_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
            },
        }));
    }
}

fn new_volume_name(pod: &Value) -> String {
    let mut random = rand::rng();
    loop {
        let suffix: String =
            (0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect();
        let name = format!("{VOLUME_PREFIX}{suffix}");
        if !pod.items_at("spec.volumes").iter().any(|v| v.str_at("name") == name) {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    fn world(account: Value) -> (World, ServiceAccount) {
        let world = World::new();
        let mut account = account;
        account["metadata"] =
            json!({"name": "default", "namespace": "ns", "annotations": account["annotations"]});
        world.put("", "serviceaccounts", account);
        let plugin = ServiceAccount::new(world.lookup(), &CancellationToken::new());
        (world, plugin)
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    #[tokio::test]
    async fn the_token_volume_has_kubernetes_shape() {
        let (world, plugin) = world(json!({"imagePullSecrets": [{"name": "pull"}]}));
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}, {"name": "own", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]});
        let made =
            world.post("/api/v1/namespaces/ns/pods", pod(spec)).admit(&plugin).await.expect("admitted");
        let spec = &made["spec"];
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("default"), &json!("default"))
        );
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        let name = spec["volumes"][0]["name"].as_str().expect("name");
        assert!(name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5, "{name}");
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(
            (&spec["containers"][0]["volumeMounts"], &spec["initContainers"][0]["volumeMounts"]),
            (&mount, &mount)
        );
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(
            spec["volumes"][0]["projected"],
            json!({"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ]})
        );
        // Sent again, nothing is added.
        assert_eq!(
            world.post("/api/v1/namespaces/ns/pods", made.clone()).admit(&plugin).await.expect("admitted"),
            made
        );
    }

    #[tokio::test]
    async fn pods_and_accounts_may_say_no() {
        for (account, spec) in [
            (json!({"automountServiceAccountToken": false}), json!({"containers": [{}]})),
            (json!({}), json!({"containers": [{}], "automountServiceAccountToken": false})),
        ] {
            let (world, plugin) = world(account);
            let made =
                world.post("/api/v1/namespaces/ns/pods", pod(spec)).admit(&plugin).await.expect("admitted");
            assert!(made["spec"].get("volumes").is_none(), "{made}");
        }
    }

    #[tokio::test]
    async fn refusals() {
        let (world, plugin) = world(
            json!({"annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}, "secrets": [{"name": "ok"}]}),
        );
        let with_secret =
            |name: &str| pod(json!({"volumes": [{"name": "v", "secret": {"secretName": name}}]}));
        let mirror = |spec: Value| json!({"metadata": {"name": "p", "annotations": {MIRROR_ANNOTATION: "x"}}, "spec": spec});
        for (object, expected) in [
            (
                pod(json!({"serviceAccountName": "nope"})),
                "pods \"p\" is forbidden: error looking up service account ns/nope: serviceaccount \"nope\" not found",
            ),
            (with_secret("ok"), "ok"),
            (
                with_secret("other"),
                "pods \"p\" is forbidden: secret \"other\" is not allowed because service account default does not reference that secret",
            ),
            (mirror(json!({})), "ok"),
            (
                mirror(json!({"serviceAccountName": "x"})),
                "pods \"p\" is forbidden: a mirror pod may not reference service accounts",
            ),
        ] {
            assert_eq!(world.post("/api/v1/namespaces/ns/pods", object).answer(&plugin).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_namespace_without_its_default_account_is_waited_for_only_so_long() {
        let (world, plugin) = world(json!({}));
        let answer = world.post("/api/v1/namespaces/new/pods", pod(json!({}))).answer(&plugin).await;
        assert!(answer.ends_with("serviceaccount \"default\" not found"), "{answer}");
    }
}
