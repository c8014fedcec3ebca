//! What every namespace must have: a ServiceAccount `default`, and the cluster's CA in a ConfigMap.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cache::Caches;
use crate::object::{self, Key, Labels};
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Name of the ServiceAccount of pods that name none.
const ACCOUNT: &str = "default";
/// Name of the ConfigMap with the CA.
const ROOT_CA: &str = "kube-root-ca.crt";
/// Key in the ConfigMap.
const CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using \
internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed \
across distributions of Kubernetes clusters.";

fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    !object::is_deleting(namespace) && phase != Some("Terminating")
}

/// Makes the ServiceAccount `default` in every namespace. Keys are namespaces.
pub struct ServiceAccounts {
    caches: Arc<Caches>,
}

/// What a decision about a namespace's account rests on.
pub struct AccountView {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Its account.
    pub account: Option<Arc<ServiceAccount>>,
}

/// Decides about a namespace's account.
pub fn reconcile_account(view: &AccountView, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    if is_active(&view.namespace) && view.account.is_none() {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(ACCOUNT.to_owned()),
                namespace: view.namespace.metadata.name.clone(),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        plan.push(Act::create(&account).may_exist());
    }
    plan
}

impl ServiceAccounts {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for ServiceAccounts {
    type View = AccountView;

    fn name(&self) -> &'static str {
        "serviceaccount"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.namespaces.queue_added(queue);
        let q = queue.clone();
        self.caches.accounts.on_change(move |change| {
            if change.new.is_none() && change.key.name == ACCOUNT {
                q.add(Key::cluster(&change.key.namespace));
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<AccountView>, ViewError> {
        let Some(namespace) = self.caches.namespaces.get(key) else { return Ok(None) };
        let account = self.caches.accounts.get(&Key::new(&key.name, ACCOUNT));
        Ok(Some(AccountView { namespace, account }))
    }

    fn reconcile(&self, view: &AccountView, now: Timestamp) -> Plan {
        reconcile_account(view, now)
    }
}

/// Publishes the cluster's CA in every namespace. Keys are namespaces.
pub struct RootCa {
    caches: Arc<Caches>,
    bundle: Arc<str>,
}

/// What a decision about a namespace's CA rests on.
pub struct RootCaView {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Its ConfigMap.
    pub stored: Option<Arc<ConfigMap>>,
    /// The CA certificates, PEM.
    pub bundle: Arc<str>,
}

/// Decides about a namespace's CA.
pub fn reconcile_root_ca(view: &RootCaView, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    if !is_active(&view.namespace) {
        return plan;
    }
    let data: Labels = [(CA_KEY.to_owned(), view.bundle.to_string())].into();
    match view.stored.as_deref() {
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(ROOT_CA.to_owned()),
                    namespace: view.namespace.metadata.name.clone(),
                    annotations: Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into()),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            plan.push(Act::create(&map).may_exist());
        }
        Some(stored) => {
            let mut new = stored.clone();
            new.data = Some(data);
            object::set_annotation(&mut new.metadata, DESCRIPTION, DESCRIPTION_TEXT);
            plan.update(stored, &new);
        }
    }
    plan
}

impl RootCa {
    /// A controller on these caches that publishes `bundle` (PEM).
    pub fn new(caches: &Arc<Caches>, bundle: &str) -> Self {
        Self { caches: caches.clone(), bundle: Arc::from(bundle) }
    }
}

#[async_trait]
impl Controller for RootCa {
    type View = RootCaView;

    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.namespaces.queue_added(queue);
        let q = queue.clone();
        self.caches.root_cas.on_change(move |change| q.add(Key::cluster(&change.key.namespace)));
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<RootCaView>, ViewError> {
        let Some(namespace) = self.caches.namespaces.get(key) else { return Ok(None) };
        let stored = self.caches.root_cas.get(&Key::new(&key.name, ROOT_CA));
        Ok(Some(RootCaView { namespace, stored, bundle: self.bundle.clone() }))
    }

    fn reconcile(&self, view: &RootCaView, now: Timestamp) -> Plan {
        reconcile_root_ca(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, lag};
    use proptest::prelude::*;

    fn namespace(name: &str) -> Namespace {
        let mut n = Namespace::default();
        n.metadata.name = Some(name.into());
        n
    }

    #[tokio::test(start_paused = true)]
    async fn the_ca_is_published_and_restored() {
        let mut h = Harness::new(|caches, _| RootCa::new(caches, "PEM"));
        h.model.lock().put(&namespace("a"));
        h.settle(50).await;
        h.model.lock().edit::<ConfigMap>("a", ROOT_CA, |c| c.data = None);
        h.settle(50).await;
        let map: ConfigMap = h.model.lock().get("a", ROOT_CA).unwrap();
        assert_eq!(map.data.unwrap()[CA_KEY], "PEM");
        h.model.lock().delete_as_user::<ConfigMap>("a", ROOT_CA);
        h.settle(50).await;
        assert!(h.model.lock().get::<ConfigMap>("a", ROOT_CA).is_some());
        assert!(h.plan(&Key::cluster("a")).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminating_namespace_gets_nothing() {
        let mut h = Harness::new(|caches, _| ServiceAccounts::new(caches));
        let mut ending = namespace("a");
        ending.metadata.finalizers = Some(vec!["x/y".into()]);
        h.model.lock().put(&ending);
        h.model.lock().delete_as_user::<Namespace>("", "a");
        h.settle(50).await;
        assert!(h.model.lock().list::<ServiceAccount>().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However accounts and namespaces come and go, every namespace ends with its account.
        #[test]
        fn every_namespace_has_its_account(ops in proptest::collection::vec((0..5u8, any::<bool>()), 1..30), seed in any::<u64>()) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = Harness::new(|caches, _| ServiceAccounts::new(caches));
                let mut lagging = lag(seed);
                for (n, remove_account) in ops {
                    let name = format!("ns{n}");
                    {
                    let mut model = h.model.lock();
                    if model.get::<Namespace>("", &name).is_none() {
                        model.put(&namespace(&name));
                    } else if remove_account && model.get::<ServiceAccount>(&name, ACCOUNT).is_some() {
                        model.delete_as_user::<ServiceAccount>(&name, ACCOUNT);
                    }
                    }
                    h.settle_lagging(200, &mut lagging).await;
                }
                h.settle(100).await;
                let (namespaces, accounts) = {
                    let model = h.model.lock();
                    (model.list::<Namespace>().len(), model.list::<ServiceAccount>().len())
                };
                prop_assert_eq!(namespaces, accounts);
                Ok(())
            })?;
        }
    }
}
