//! One shared, indexed cache per kind per process.
//!
//! Controllers read these stores and never the server, except where a decision must rest on a live
//! look (see the garbage collector). A store opens its watch only if a controller needs it.

mod held;
mod pod;
mod pool;
mod store;

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, ReplicationController,
    ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment, VolumeAttributesClass};
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

pub use held::{Held, Metadata};
pub use pod::{Condition, Container, Pod};
pub use pool::Pool;
pub use store::{Change, Handler, IndexFn, Scope, Store, Written};

use crate::loadbalancer::pool::LoadBalancerIPPool;
use crate::object::{self, Key};
use crate::volume::{attach, binder};

/// Index: objects by their managing controller's uid.
pub const BY_CONTROLLER: &str = "controller-uid";
/// Index: objects without a managing controller, by every bucket in which a selector of theirs can live.
pub const ORPHANS: &str = "orphans";
/// Index: pods by `namespace/key=value` of each label, and by `namespace/`.
pub const BY_LABEL: &str = "label";
/// Index: objects that select others, by the bucket of their selector.
pub const BY_SELECTOR: &str = "selector";
/// Index: objects by the node they are on.
pub const BY_NODE: &str = "node";
/// Index: objects by namespace.
pub const BY_NAMESPACE: &str = "namespace";
/// Index: slices by `namespace/service`.
pub const BY_SERVICE: &str = "service";
/// Index: slices by the uids of what their endpoints are made of.
pub const BY_TARGET: &str = "target";
/// Index: ClusterRoles that aggregate others, all under one value.
pub const AGGREGATES: &str = "aggregates";
/// Index: resource slices, and claims with devices of them, by `driver/pool`.
pub const BY_POOL: &str = "pool";
/// Index: token Secrets by `namespace/account`.
pub const BY_ACCOUNT: &str = "account";
/// Index: pods by `namespace/claim` of each claim that they use.
pub const BY_CLAIM: &str = "claim";
/// Index: claims and volumes by the VolumeAttributesClasses that they refer to.
pub const BY_ATTRIBUTES_CLASS: &str = "attributes-class";
/// Index: pods by `namespace/claim` of each resource claim that they use.
pub const BY_RESOURCE_CLAIM: &str = "resource-claim";
/// Index: pods by `namespace/template` of each template of which they need a claim.
pub const BY_TEMPLATE: &str = "template";
/// Index: free volumes, and claims that wait for one, by their class.
pub const BY_CLASS: &str = "class";
/// Index: objects by the one that they refer to.
pub const BY_REFERENCE: &str = "reference";
/// Index: addresses of Services, all under one value.
pub const BY_RANGE: &str = "range";
/// Index: load balancers by the node that answers for them, empty where there is none.
pub const BY_ANNOUNCER: &str = "announcer";
/// Index: Services whose endpoints are shared out among zones, all under one value.
pub const BY_TOPOLOGY: &str = "topology";
/// Index: terminated pods, all under one value.
pub const TERMINATED: &str = "terminated";

/// Sees metadata, and whether the object is there.
pub type MetaObserver = Box<dyn Fn(&dyn Metadata, bool) + Send + Sync>;

/// A store whose kind is not known statically.
#[async_trait]
pub trait AnyStore: Send + Sync {
    /// Group and plural of the kind.
    fn kind(&self) -> (String, String);
    /// Whether some controller needs the store.
    fn is_wanted(&self) -> bool;
    /// Whether an object of this name is one that the store holds.
    fn covers(&self, key: &Key) -> bool;
    /// Feeds the store from the server until cancelled.
    async fn feed(&self, client: Client, stop: CancellationToken);
    /// Waits for the first complete list.
    async fn synced(&self);
    /// Whether the store is fed, and with every object of its kind.
    fn holds_all(&self) -> bool;
    /// Shows the metadata of every object that is there, and from now on of every change: whether the
    /// object is there afterwards, or this was its last state.
    fn observe(&self, observer: MetaObserver);
    /// See [`Store::list_mark`].
    fn mark(&self) -> u64;
    /// See [`Store::wait_written`].
    async fn written(&self, key: &Key, written: &Written, mark: u64);
}

#[async_trait]
impl<K> AnyStore for Store<K>
where
    K: Held,
{
    fn kind(&self) -> (String, String) {
        let (group, plural) = held::kind_of::<K>();
        (group.into_owned(), plural.into_owned())
    }

    fn is_wanted(&self) -> bool {
        Store::is_wanted(self)
    }

    fn covers(&self, key: &Key) -> bool {
        self.scope.fields.is_none()
            && self.scope.namespace.is_none_or(|n| n == key.namespace)
            && self.scope.name.is_none_or(|n| n == key.name)
    }

    fn holds_all(&self) -> bool {
        let scope = &self.scope;
        Store::is_wanted(self) && scope.namespace.is_none() && scope.name.is_none() && scope.fields.is_none()
    }

    fn observe(&self, observer: MetaObserver) {
        let observer = Arc::new(observer);
        let later = observer.clone();
        self.on_change(move |change| match (change.old, change.new) {
            (_, Some(new)) => later(new.held_meta(), true),
            (Some(old), None) => later(old.held_meta(), false),
            (None, None) => {}
        });
        // After the handler is in place: what changes in between is shown twice, which does no harm,
        // and not missed. What went in between was perhaps shown as gone before it was shown as there.
        for object in self.all() {
            observer(object.held_meta(), true);
            let held = self.get(&Key::of(object.as_ref()));
            if held.is_none_or(|held| object::uid(held.as_ref()) != object::uid(object.as_ref())) {
                observer(object.held_meta(), false);
            }
        }
    }

    async fn feed(&self, client: Client, stop: CancellationToken) {
        let mut fields: Vec<String> = Vec::new();
        fields.extend(self.scope.namespace.map(|n| format!("metadata.namespace={n}")));
        fields.extend(self.scope.name.map(|n| format!("metadata.name={n}")));
        fields.extend(self.scope.fields.map(str::to_owned));
        let mut config = watcher::Config::default();
        if !fields.is_empty() {
            config = config.fields(&fields.join(","));
        }
        let mut events = watcher(Api::<K::Read>::all(client), config).default_backoff().boxed();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => self.begin_list(),
                // Kept as it is read: a list is never held whole beside what is made of it.
                Some(Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object))) => {
                    self.apply(object.into())
                }
                Some(Ok(watcher::Event::InitDone)) => self.end_list(),
                Some(Ok(watcher::Event::Delete(object))) => self.remove(&object.into()),
                Some(Err(watcher::Error::InitialListFailed(kube::Error::Api(refusal))))
                    if self.scope.optional && refusal.code == 404 =>
                {
                    // The kind is not there; perhaps it comes.
                    self.begin_list();
                    self.end_list();
                }
                Some(Err(error)) => {
                    tracing::debug!(kind = %held::kind_of::<K>().1, %error, "watch failed, trying again");
                }
                None => return,
            }
        }
    }

    async fn synced(&self) {
        self.wait_synced().await;
    }

    fn mark(&self) -> u64 {
        self.list_mark()
    }

    async fn written(&self, key: &Key, written: &Written, mark: u64) {
        self.wait_written(key, written, mark).await;
    }
}

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $make:expr;)*) => {
        /// Every shared store.
        pub struct Caches {
            $($(#[$doc])* pub $field: Arc<Store<$kind>>,)*
        }

        impl Caches {
            /// Empty stores with their indexes. Nothing is watched before [`Caches::feed`].
            pub fn new() -> Arc<Self> {
                Arc::new(Self { $($field: Arc::new($make),)* })
            }

            /// All stores.
            pub fn stores(&self) -> Vec<Arc<dyn AnyStore>> {
                vec![$(self.$field.clone() as Arc<dyn AnyStore>,)*]
            }
        }
    };
}

caches! {
    /// Pods, of which only what controllers read is kept.
    pods: Pod = Store::new(
        Scope::default(),
        vec![
            (BY_CONTROLLER, controller_uid::<Pod>), (ORPHANS, orphan::<Pod>), (BY_LABEL, labels::<Pod>),
            (BY_NODE, pod_node), (TERMINATED, pod_terminated), (BY_CLAIM, pod_claims),
            (BY_RESOURCE_CLAIM, crate::resourceclaim::claims_of), (BY_TEMPLATE, crate::resourceclaim::templates_of),
        ],
        |_| {},
    );
    /// Nodes, without their image lists.
    nodes: Node = Store::new(Scope::default(), vec![], |n| {
        if let Some(status) = &mut n.status {
            status.images = None;
        }
    });
    /// The leases by which kubelets show that they live.
    node_leases: Lease =
        Store::new(Scope { namespace: Some("kube-node-lease"), ..Scope::default() }, vec![], |_| {});
    /// Namespaces.
    namespaces: Namespace = Store::new(Scope::default(), vec![], |_| {});
    /// ServiceAccounts.
    accounts: ServiceAccount = Store::new(Scope::default(), vec![], |_| {});
    /// The ConfigMap that carries the cluster's CA into every namespace.
    root_cas: ConfigMap =
        Store::new(Scope { name: Some("kube-root-ca.crt"), ..Scope::default() }, vec![], |_| {});
    /// Services.
    services: Service = Store::new(
        Scope::default(),
        vec![(BY_SELECTOR, service_selector), (BY_ANNOUNCER, crate::loadbalancer::announcer),
            (BY_TOPOLOGY, |s| crate::endpointslice::topology::is_wanted(s).then(String::new).into_iter().collect())],
        |_| {},
    );
    /// Address pools of load balancers, where there are any.
    pools: LoadBalancerIPPool =
        Store::new(Scope { optional: true, ..Scope::default() }, vec![], |_| {});
    /// Migrations of what is stored, where they are served.
    migrations: StorageVersionMigration =
        Store::new(Scope { optional: true, ..Scope::default() }, vec![], |_| {});
    /// Endpoints.
    endpoints: Endpoints = Store::new(Scope::default(), vec![], |_| {});
    /// EndpointSlices.
    slices: EndpointSlice = Store::new(
        Scope::default(),
        vec![(BY_SERVICE, slice_service), (BY_TARGET, slice_targets)],
        |_| {},
    );
    /// ReplicaSets.
    replica_sets: ReplicaSet = Store::new(
        Scope::default(),
        vec![
            (BY_CONTROLLER, controller_uid::<ReplicaSet>), (ORPHANS, orphan::<ReplicaSet>),
            (BY_SELECTOR, |r| vec![object::selector_bucket(
                object::namespace(r), r.spec.as_ref().and_then(|s| s.selector.match_labels.as_ref()))]),
        ],
        |_| {},
    );
    /// ReplicationControllers.
    replication_controllers: ReplicationController = Store::new(
        Scope::default(),
        vec![
            (BY_CONTROLLER, controller_uid::<ReplicationController>),
            (BY_SELECTOR, |r| vec![object::selector_bucket(
                object::namespace(r), r.spec.as_ref().and_then(|s| s.selector.as_ref()))]),
        ],
        |_| {},
    );
    /// Deployments.
    deployments: Deployment = Store::new(
        Scope::default(),
        vec![(BY_SELECTOR, |d| vec![object::selector_bucket(
            object::namespace(d), d.spec.as_ref().and_then(|s| s.selector.match_labels.as_ref()))])],
        |_| {},
    );
    /// StatefulSets.
    stateful_sets: StatefulSet = Store::new(
        Scope::default(),
        vec![(BY_SELECTOR, |d| vec![object::selector_bucket(
            object::namespace(d), d.spec.as_ref().and_then(|s| s.selector.match_labels.as_ref()))])],
        |_| {},
    );
    /// DaemonSets.
    daemon_sets: DaemonSet = Store::new(
        Scope::default(),
        vec![(BY_SELECTOR, |d| vec![object::selector_bucket(
            object::namespace(d), d.spec.as_ref().and_then(|s| s.selector.match_labels.as_ref()))])],
        |_| {},
    );
    /// ControllerRevisions.
    revisions: ControllerRevision = Store::new(
        Scope::default(),
        vec![(BY_CONTROLLER, controller_uid::<ControllerRevision>)],
        |_| {},
    );
    /// Jobs.
    jobs: Job = Store::new(
        Scope::default(),
        vec![(BY_CONTROLLER, controller_uid::<Job>),
            (BY_SELECTOR, |j| vec![object::selector_bucket(object::namespace(j),
                j.spec.as_ref().and_then(|s| s.selector.as_ref()).and_then(|s| s.match_labels.as_ref()))])],
        |_| {},
    );
    /// HorizontalPodAutoscalers.
    autoscalers: HorizontalPodAutoscaler = Store::new(Scope::default(), vec![], |_| {});
    /// CronJobs.
    cron_jobs: CronJob = Store::new(Scope::default(), vec![], |_| {});
    /// PersistentVolumeClaims.
    claims: PersistentVolumeClaim = Store::new(
        Scope::default(),
        vec![
            (BY_ATTRIBUTES_CLASS, crate::protection::classes_of_claim),
            (BY_CLASS, binder::waiting_claims), (BY_REFERENCE, binder::volume_of_claim),
        ],
        |_| {},
    );
    /// PersistentVolumes.
    volumes: PersistentVolume = Store::new(
        Scope::default(),
        vec![
            (BY_ATTRIBUTES_CLASS, crate::protection::classes_of_volume),
            (BY_CLASS, binder::free_volumes), (BY_REFERENCE, binder::claim_of_volume),
        ],
        |_| {},
    );
    /// ResourceClaims.
    resource_claims: ResourceClaim =
        Store::new(Scope::default(), vec![
            (BY_CONTROLLER, crate::resourceclaim::owner), (BY_POOL, crate::resourceclaim::eviction::pools_of_claim),
        ], |_| {});
    /// ResourceSlices, of whose devices only those with taints.
    resource_slices: ResourceSlice = Store::new(
        Scope::default(),
        vec![(BY_POOL, crate::resourceclaim::eviction::pool_of_slice)],
        crate::resourceclaim::eviction::trim,
    );
    /// ResourceClaimTemplates.
    claim_templates: ResourceClaimTemplate = Store::new(Scope::default(), vec![], |_| {});
    /// StorageClasses.
    storage_classes: StorageClass = Store::new(Scope::default(), vec![], |_| {});
    /// CSIDrivers.
    csi_drivers: CSIDriver = Store::new(Scope::default(), vec![], |_| {});
    /// VolumeAttachments.
    attachments: VolumeAttachment =
        Store::new(Scope::default(), vec![(BY_NODE, attach::node_of), (BY_REFERENCE, attach::volume_of)], |_| {});
    /// VolumeAttributesClasses.
    attributes_classes: VolumeAttributesClass = Store::new(Scope::default(), vec![], |_| {});
    /// ResourceQuotas.
    quotas: ResourceQuota =
        Store::new(Scope::default(), vec![(BY_NAMESPACE, |q| vec![object::namespace(q).to_owned()])], |_| {});
    /// PodDisruptionBudgets.
    budgets: PodDisruptionBudget = Store::new(
        Scope::default(),
        vec![(BY_SELECTOR, |b| vec![object::selector_bucket(object::namespace(b),
            b.spec.as_ref().and_then(|s| s.selector.as_ref()).and_then(|s| s.match_labels.as_ref()))])],
        |_| {},
    );
    /// CertificateSigningRequests.
    csrs: CertificateSigningRequest = Store::new(Scope::default(), vec![(BY_NODE, csr_node)], |_| {});
    /// Secrets with tokens of ServiceAccounts. Of other Secrets only bootstrap tokens are ever held.
    account_secrets: Secret = Store::new(
        Scope { fields: Some("type=kubernetes.io/service-account-token"), ..Scope::default() },
        vec![(BY_ACCOUNT, crate::accounts::secrets_account)],
        |_| {},
    );
    /// Bootstrap token Secrets.
    tokens: Secret = Store::new(
        Scope {
            namespace: Some("kube-system"),
            fields: Some("type=bootstrap.kubernetes.io/token"),
            ..Scope::default()
        },
        vec![],
        |_| {},
    );
    /// ServiceCIDRs.
    service_cidrs: ServiceCIDR = Store::new(Scope::default(), vec![], |_| {});
    /// IPAddresses.
    addresses: IPAddress =
        Store::new(Scope::default(), vec![(BY_RANGE, crate::servicecidr::managed)], |_| {});
    /// ValidatingAdmissionPolicies.
    validating_policies: ValidatingAdmissionPolicy = Store::new(Scope::default(), vec![], |_| {});
    /// ClusterRoles.
    cluster_roles: ClusterRole = Store::new(
        Scope::default(),
        vec![(AGGREGATES, |r| r.aggregation_rule.iter().map(|_| String::new()).collect())],
        |_| {},
    );
}

impl Caches {
    /// Feeds every needed store from the server until cancelled.
    pub async fn feed(&self, client: &Client, stop: &CancellationToken) {
        let wanted = self.stores().into_iter().filter(|s| s.is_wanted());
        let feeds = wanted.map(|store| {
            let (client, stop) = (client.clone(), stop.clone());
            async move { store.feed(client, stop).await }
        });
        futures::future::join_all(feeds).await;
    }

    /// Waits until every needed store is complete.
    pub async fn synced(&self) {
        for store in self.stores().into_iter().filter(|s| s.is_wanted()) {
            store.synced().await;
        }
    }

    /// The pods of `namespace` whose labels hold every one of `pairs` (which must not be empty): looks
    /// only at the pods of the pair that fewest pods have.
    pub fn pods_with(&self, namespace: &str, pairs: &object::Labels) -> Vec<Arc<Pod>> {
        let rarest = pairs
            .iter()
            .map(|(k, v)| format!("{namespace}/{k}={v}"))
            .min_by_key(|value| self.pods.count(BY_LABEL, value));
        let Some(value) = rarest else { return Vec::new() };
        let mut pods = self.pods.by_index(BY_LABEL, &value);
        pods.retain(|pod| object::matches_pairs(pairs, &pod.metadata.labels));
        pods
    }
}

fn controller_uid<K: Held>(object: &K) -> Vec<String> {
    object::controller_ref(object.held_meta()).map(|r| r.uid.clone()).into_iter().collect()
}

fn orphan<K: Held>(object: &K) -> Vec<String> {
    match object::controller_ref(object.held_meta()) {
        Some(_) => Vec::new(),
        None => labels(object),
    }
}

fn labels<K: Held>(object: &K) -> Vec<String> {
    object::label_buckets(object::namespace(object), object.held_meta().labels())
}

fn pod_node(pod: &Pod) -> Vec<String> {
    Some(pod.node_name.to_string()).filter(|n| !n.is_empty()).into_iter().collect()
}

/// The node that asks for a certificate.
fn csr_node(csr: &CertificateSigningRequest) -> Vec<String> {
    let user = csr.spec.username.as_deref();
    user.and_then(|u| u.strip_prefix(crate::certificates::NODE_USER)).map(str::to_owned).into_iter().collect()
}

fn pod_claims(pod: &Pod) -> Vec<String> {
    let claims = crate::protection::claims_of(pod).into_iter();
    claims.map(|claim| format!("{}/{claim}", object::namespace(pod))).collect()
}

fn pod_terminated(pod: &Pod) -> Vec<String> {
    match crate::pods::phase(pod) {
        "Succeeded" | "Failed" => vec![String::new()],
        _ => Vec::new(),
    }
}

fn service_selector(service: &Service) -> Vec<String> {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    // A Service without a selector selects nothing.
    selector
        .filter(|s| !s.is_empty())
        .map(|s| object::selector_bucket(object::namespace(service), Some(s)))
        .into_iter()
        .collect()
}

/// The Service of a slice.
pub fn slice_services(slice: &EndpointSlice) -> Option<Key> {
    let service = object::label(&slice.metadata, "kubernetes.io/service-name")?;
    Some(Key::new(object::namespace(slice), service))
}

fn slice_service(slice: &EndpointSlice) -> Vec<String> {
    slice_services(slice).map(|key| key.to_string()).into_iter().collect()
}

fn slice_targets(slice: &EndpointSlice) -> Vec<String> {
    let targets = slice.endpoints.iter().flatten().filter_map(|e| e.target_ref.as_ref());
    targets.filter_map(|target| target.uid.clone()).collect()
}
