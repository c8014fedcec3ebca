//! Every controller of the manager's table, put to the laws.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use proptest::prelude::*;

use super::world::*;
use super::{Case, hold};
use crate::accounts::legacy::LegacyTokens;
use crate::accounts::tokens::AccountTokens;
use crate::acknowledgement::Acknowledgement;
use crate::aggregation::RoleAggregation;
use crate::autoscaler::{self, Autoscalers};
use crate::cache::Caches;
use crate::certificates::approve::Approver;
use crate::certificates::clean::Cleaner;
use crate::certificates::sign::{Ca, Signer};
use crate::certificates::tests as certificates;
use crate::clusterdns::{ClusterDns, Controlled};
use crate::config::Config;
use crate::cronjob::CronJobs;
use crate::daemonset::DaemonSets;
use crate::deployment::Deployments;
use crate::disruption::Disruption;
use crate::disruption::stale::StaleTargets;
use crate::endpoints::EndpointsController;
use crate::endpointslice::EndpointSlices;
use crate::endpointslice::mirror::Mirror;
use crate::job::Jobs;
use crate::loadbalancer::LoadBalancers;
use crate::loadbalancer::status::PoolStatuses;
use crate::manager;
use crate::migration::Migrations;
use crate::namespace::Namespaces;
use crate::node::eviction::TaintEviction;
use crate::node::ipam::{NodeIpam, Pool};
use crate::node::lifecycle::{NodeLifecycle, Times};
use crate::node::podgc::PodGc;
use crate::node::ttl::Ttl;
use crate::node::zones::Rates;
use crate::nsdefaults::{RootCa, ServiceAccounts};
use crate::policystatus::PolicyStatus;
use crate::protection::Protection;
use crate::quota::Quotas;
use crate::replicaset::{ReplicaSets, ReplicationControllers};
use crate::resourceclaim::cleanup::Claims;
use crate::resourceclaim::eviction::DeviceTaintEviction;
use crate::resourceclaim::pods::PodClaims;
use crate::servicecidr::ServiceCidrs;
use crate::statefulset::StatefulSets;
use crate::testing::clock;
use crate::tokens::TokenCleaner;
use crate::ttl::TtlAfterFinished;
use crate::volume::attach::{Attacher, attachment_name};
use crate::volume::binder::{Binder, Reclaimer};
use crate::volume::ephemeral::EphemeralVolumes;
use crate::volume::expand::Expander;

/// What watches every kind there is: its graph is fed by watches of its own and not by the caches.
/// `gc::tests::what_is_left_is_owned` holds it to the same laws.
const ELSEWHERE: [&str; 1] = ["garbage-collector"];

fn run(work: impl Future<Output = ()>) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    rt.expect("a runtime").block_on(work);
}

fn tokens(caches: &Arc<Caches>, client: &kube::Client) -> AccountTokens {
    AccountTokens::new(caches, client, Arc::new(|claims| Ok(claims.to_string())), "PEM")
}

fn dns_of_nodes() -> ClusterDns {
    ClusterDns {
        addresses: vec!["10.96.0.10".parse().expect("an address")],
        port: 10053,
        metrics_port: 10054,
    }
}

fn lifecycle(caches: &Arc<Caches>) -> NodeLifecycle {
    let c = Config::default();
    let times = Times {
        grace: c.node_monitor_grace_period,
        startup_grace: c.node_startup_grace_period,
        period: c.node_monitor_period,
    };
    let rates = Rates {
        normal: c.node_eviction_rate,
        secondary: c.secondary_node_eviction_rate,
        threshold: c.unhealthy_zone_threshold,
        large: c.large_cluster_size_threshold,
    };
    NodeLifecycle::new(caches, times, rates, clock())
}

fn ranges(caches: &Arc<Caches>) -> NodeIpam {
    NodeIpam::new(caches, vec![Pool::new("10.244.0.0/16".parse().expect("a range"), 24)])
}

fn signer(caches: &Arc<Caches>) -> Signer {
    let ca = Ca::new(&certificates::ca()).expect("a CA");
    Signer::new(caches, ca, Duration::from_secs(3600), clock())
}

macro_rules! laws {
    ($($test:ident: $name:literal, $objects:expr, $keys:literal, [$($may:expr),*], $make:expr;)*) => {
        const COVERED: &[&str] = &[$($name),*];

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(12))]
            $(#[test]
            fn $test(seed in any::<u64>()) {
                let case = Case {
                    name: $name, objects: $objects, keys: $keys, may_delete: vec![$(String::from($may)),*],
                };
                run(hold($make, &case, seed));
            })*
        }
    };
}

laws! {
    replica_sets: "replicaset", workloads(), "replicasets", [], |caches, _| ReplicaSets::new(caches);
    replication_controllers: "replicationcontroller", workloads(), "replicationcontrollers", [],
        |caches, _| ReplicationControllers::new(caches);
    deployments: "deployment", workloads(), "deployments", [], |caches, _| Deployments::new(caches);
    stateful_sets: "statefulset", workloads(), "statefulsets", [], |caches, _| StatefulSets::new(caches);
    daemon_sets: "daemonset", workloads(), "daemonsets", [], |caches, _| DaemonSets::new(caches, clock());
    jobs: "job", workloads(), "jobs", [], |caches, _| Jobs::new(caches);
    cron_jobs: "cronjob", workloads(), "cronjobs", [], |caches, _| CronJobs::new(caches);
    ended_jobs: "ttl-after-finished", workloads(), "jobs", ["expired"], |caches, _| TtlAfterFinished::new(caches);
    autoscalers: "horizontal-pod-autoscaler", workloads(), "horizontalpodautoscalers", [],
        |caches, client| Autoscalers::new(caches, client, clock(), autoscaler::Settings::default());
    budgets: "disruption", workloads(), "poddisruptionbudgets", [], Disruption::new;
    stale_targets: "disruption-stale-targets", nodes(), "pods", [], |caches, _| StaleTargets::new(caches);
    endpoints_of_services: "endpoints", endpoints(), "services", [], |caches, _| EndpointsController::new(caches);
    slices_of_services: "endpointslice", endpoints(), "services", [], |caches, _| EndpointSlices::new(caches, 2);
    mirror: "endpointslicemirroring", networks(), "endpoints", [], |caches, _| Mirror::new(caches);
    acknowledgement: "acknowledgement", endpoints(), "pods", [], |caches, _| Acknowledgement::new(caches, clock());
    service_cidrs: "servicecidr", networks(), "servicecidrs", [], |caches, _| ServiceCidrs::new(caches);
    load_balancers: "loadbalancer", pools(), "services", [], |caches, _| LoadBalancers::new(caches);
    pool_status: "loadbalancerpool-status", pools(), "loadbalancerippools", [], |caches, _| PoolStatuses::new(caches);
    cluster_dns: "cluster-dns", dns(), "nodes", [], |caches, _| Controlled::new(caches, dns_of_nodes());
    namespaces_that_go: "namespace", namespaces(), "namespaces", ["going", "goes"], Namespaces::new;
    default_accounts: "serviceaccount", accounts(), "namespaces", [], |caches, _| ServiceAccounts::new(caches);
    root_ca: "root-ca-certificate-publisher", accounts(), "namespaces", [], |caches, _| RootCa::new(caches, "PEM");
    account_tokens: "serviceaccount-token", accounts(), "secrets", ["own", "lost"], tokens;
    legacy_tokens: "legacy-service-account-token-cleaner", accounts(), "secrets", [],
        |caches, client| LegacyTokens::new(caches, client, client, Duration::from_secs(3600), clock());
    node_lifecycle: "node-lifecycle", nodes(), "nodes", [], |caches, _| lifecycle(caches);
    taint_eviction: "taint-eviction", nodes(), "pods", ["evicted"], |caches, _| TaintEviction::new(caches, clock());
    pod_gc: "pod-garbage-collector", nodes(), "pods", ["lost"],
        |caches, client| PodGc::new(caches, client, clock(), 100, Duration::from_secs(1));
    node_ranges: "node-ipam", nodes(), "nodes", [], |caches, _| ranges(caches);
    ttl: "ttl", storage(), "nodes", [], |caches, _| Ttl::new(caches);
    approver: "certificatesigningrequest-approving", requests(), "certificatesigningrequests", [], Approver::new;
    signed_requests: "certificatesigningrequest-signing", requests(), "certificatesigningrequests", [],
        |caches, _| signer(caches);
    old_requests: "certificatesigningrequest-cleaner", requests(), "certificatesigningrequests", ["old"],
        |caches, _| Cleaner::new(caches);
    bootstrap: "tokencleaner", bootstrap_tokens(), "secrets", ["ended"], |caches, _| TokenCleaner::new(caches);
    aggregates: "clusterrole-aggregation", roles(), "clusterroles", [], |caches, _| RoleAggregation::new(caches);
    binder: "persistentvolume-binder", storage(), "persistentvolumeclaims", [], |caches, _| Binder::new(caches);
    reclaimer: "persistentvolume-reclaimer", storage(), "persistentvolumes", [], Reclaimer::new;
    expander: "persistentvolume-expander", storage(), "persistentvolumeclaims", [], |caches, _| Expander::new(caches);
    attacher: "persistentvolume-attach-detach", storage(), "nodes",
        [attachment_name("v3", "d", "n1"), attachment_name("v3", "d", "n2")], |caches, _| Attacher::new(caches);
    ephemeral: "ephemeral-volume", storage(), "pods", [], |caches, _| EphemeralVolumes::new(caches);
    claims_protection: "pvc-protection", storage(), "persistentvolumeclaims", [],
        |caches, _| Protection::<PersistentVolumeClaim>::new(caches);
    volumes_protection: "pv-protection", storage(), "persistentvolumes", [],
        |caches, _| Protection::<PersistentVolume>::new(caches);
    classes_protection: "volumeattributesclass-protection", classes(), "volumeattributesclasses", [],
        |caches, _| Protection::<VolumeAttributesClass>::new(caches);
    device_claims: "resourceclaim", devices(), "resourceclaims", [], Claims::new;
    claims_of_pods: "resourceclaim-pods", devices(), "pods", [], |caches, _| PodClaims::new(caches);
    device_taints: "device-taint-eviction", devices(), "pods", ["broken"], |caches, _| DeviceTaintEviction::new(caches);
    resource_quotas: "resourcequota", quotas(), "resourcequotas", [], Quotas::new;
    policy_status: "validatingadmissionpolicy-status", policies(), "validatingadmissionpolicies", [], PolicyStatus::new;
    storage_versions: "storage-version-migrator", migrations(), "storageversionmigrations", [], Migrations::new;
}

/// A controller that is added to the manager's table is put to the laws, too.
#[tokio::test]
async fn nobody_is_left_out() {
    let config = Config {
        root_ca_pem: Some("PEM".to_owned()),
        sign_claims: Some(Arc::new(|claims| Ok(claims.to_string()))),
        signing_ca: Some(certificates::ca()),
        cluster_dns: Some(dns_of_nodes()),
        ..Config::default()
    };
    let model = crate::testing::Model::shared(clock());
    let mut names = manager::names(config, crate::testing::client(model)).expect("a table");
    let mut covered: Vec<&str> = COVERED.iter().chain(&ELSEWHERE).copied().collect();
    names.sort_unstable();
    covered.sort_unstable();
    assert_eq!(covered, names);
}
