//! The controller manager: one set of caches, the table of controllers, leader election.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::accounts::legacy::LegacyTokens;
use crate::accounts::tokens::AccountTokens;
use crate::acknowledgement::Acknowledgement;
use crate::aggregation::RoleAggregation;
use crate::autoscaler::Autoscalers;
use crate::cache::{AnyStore, Caches};
use crate::certificates::approve::Approver;
use crate::certificates::clean::Cleaner;
use crate::certificates::sign::{Ca, Signer};
use crate::clusterdns::Controlled;
use crate::config::Config;
use crate::cronjob::CronJobs;
use crate::daemonset::DaemonSets;
use crate::deployment::Deployments;
use crate::disruption::Disruption;
use crate::disruption::stale::StaleTargets;
use crate::endpoints::EndpointsController;
use crate::endpointslice::EndpointSlices;
use crate::endpointslice::mirror::Mirror;
use crate::gc::GarbageCollector;
use crate::job::Jobs;
use crate::loadbalancer::LoadBalancers;
use crate::loadbalancer::status::PoolStatuses;
use crate::migration::Migrations;
use crate::namespace::Namespaces;
use crate::node::eviction::TaintEviction;
use crate::node::ipam::{NodeIpam, Pool};
use crate::node::lifecycle::{self, NodeLifecycle};
use crate::node::podgc::PodGc;
use crate::node::ttl::Ttl;
use crate::node::zones;
use crate::nsdefaults::{RootCa, ServiceAccounts};
use crate::policystatus::PolicyStatus;
use crate::protection::Protection;
use crate::quota::Quotas;
use crate::replicaset::{ReplicaSets, ReplicationControllers};
use crate::resourceclaim::cleanup::Claims;
use crate::resourceclaim::eviction::DeviceTaintEviction;
use crate::resourceclaim::pods::PodClaims;
use crate::runner::events::{Recorder, write_events};
use crate::runner::{Clock, Controller, Executor, Queue, Runner, leader};
use crate::servicecidr::ServiceCidrs;
use crate::statefulset::StatefulSets;
use crate::tokens::TokenCleaner;
use crate::ttl::TtlAfterFinished;
use crate::volume::attach::Attacher;
use crate::volume::binder::{Binder, Reclaimer};
use crate::volume::ephemeral::EphemeralVolumes;
use crate::volume::expand::Expander;

/// Why the manager ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// Another process leads now. The process should end and start anew: its caches may be stale.
    #[error("leadership lost")]
    LeadershipLost,
}

/// All controllers of one process.
pub struct ControllerManager {
    /// What they do and how.
    pub config: Config,
    /// With which they watch and, unless the configuration says otherwise, write.
    pub client: Client,
}

/// Controllers wired to their caches, not yet running.
struct Table {
    config: Config,
    client: Client,
    caches: Arc<Caches>,
    recorder: Recorder,
    /// Everything that can be run once all controllers are wired, with its name.
    starts: Vec<(&'static str, Start)>,
}

type Start = Box<dyn FnOnce(&[Arc<dyn AnyStore>], CancellationToken) -> BoxFuture<'static, ()> + Send>;

impl Table {
    /// The client of the controller that Kubernetes runs as `account`; the manager's own for one that has none.
    fn client(&self, account: &str) -> Client {
        match &self.config.client_for {
            Some(client_for) if !account.is_empty() => client_for(account),
            _ => self.client.clone(),
        }
    }

    /// Adds a controller, if it is to run. `account` is its ServiceAccount in Kubernetes.
    fn add<C: Controller>(&mut self, name: &str, account: &str, make: impl FnOnce(&Self, &Client) -> C) {
        if !self.config.runs(name) {
            return;
        }
        let client = self.client(account);
        let controller = Arc::new(make(self, &client));
        let own_name = controller.name();
        debug_assert_eq!(own_name, name);
        let queue = Arc::new(Queue::new());
        controller.clone().wire(&queue);
        let recorder = self.recorder.for_component(controller.component());
        let start: Start = Box::new(move |stores, stop| {
            let executor = Executor::new(client, stores, recorder);
            let clock: Clock = Arc::new(Timestamp::now);
            Runner::new(controller, executor, queue, clock).run(stop).boxed()
        });
        self.starts.push((own_name, start));
    }
}

/// Every controller. A new one is one more entry.
fn table(config: Config, client: Client, caches: Arc<Caches>, recorder: Recorder) -> Result<Table, Error> {
    let mut t = Table { config, client, caches, recorder, starts: Vec::new() };
    t.add("replicaset", "replicaset-controller", |t, _| ReplicaSets::new(&t.caches));
    t.add("replicationcontroller", "replication-controller", |t, _| ReplicationControllers::new(&t.caches));
    t.add("deployment", "deployment-controller", |t, _| Deployments::new(&t.caches));
    t.add("endpointslice", "endpointslice-controller", |t, _| {
        EndpointSlices::new(&t.caches, t.config.max_endpoints_per_slice)
    });
    t.add("endpointslicemirroring", "endpointslicemirroring-controller", |t, _| Mirror::new(&t.caches));
    let clock: Clock = Arc::new(Timestamp::now);
    t.add("acknowledgement", "acknowledgement-controller", |t, _| {
        Acknowledgement::new(&t.caches, clock.clone())
    });
    t.add("endpoints", "endpoint-controller", |t, _| EndpointsController::new(&t.caches));
    if let Some(dns) = t.config.cluster_dns.clone() {
        t.add("cluster-dns", "cluster-dns-controller", |t, _| Controlled::new(&t.caches, dns));
    }
    t.add("servicecidr", "service-cidrs-controller", |t, _| ServiceCidrs::new(&t.caches));
    t.add("loadbalancer", "load-balancer-controller", |t, _| LoadBalancers::new(&t.caches));
    t.add("loadbalancerpool-status", "load-balancer-controller", |t, _| PoolStatuses::new(&t.caches));
    t.add("namespace", "namespace-controller", |t, client| Namespaces::new(&t.caches, client));
    t.add("serviceaccount", "service-account-controller", |t, _| ServiceAccounts::new(&t.caches));
    if let Some(sign) = t.config.sign_claims.clone() {
        t.add("serviceaccount-token", "", |t, client| {
            AccountTokens::new(&t.caches, client, sign, t.config.root_ca_pem.as_deref().unwrap_or_default())
        });
    }
    t.add("legacy-service-account-token-cleaner", "legacy-service-account-token-cleaner", |t, client| {
        LegacyTokens::new(&t.caches, client, &t.client, t.config.legacy_token_unused_for, clock.clone())
    });
    if let Some(bundle) = t.config.root_ca_pem.clone() {
        t.add("root-ca-certificate-publisher", "root-ca-cert-publisher", |t, _| {
            RootCa::new(&t.caches, &bundle)
        });
    }
    t.add("node-lifecycle", "node-controller", |t, _| {
        let c = &t.config;
        let times = lifecycle::Times {
            grace: c.node_monitor_grace_period,
            startup_grace: c.node_startup_grace_period,
            period: c.node_monitor_period,
        };
        let rates = zones::Rates {
            normal: c.node_eviction_rate,
            secondary: c.secondary_node_eviction_rate,
            threshold: c.unhealthy_zone_threshold,
            large: c.large_cluster_size_threshold,
        };
        NodeLifecycle::new(&t.caches, times, rates, clock.clone())
    });
    t.add("taint-eviction", "node-controller", |t, _| TaintEviction::new(&t.caches, clock.clone()));
    t.add("pod-garbage-collector", "pod-garbage-collector", |t, client| {
        let (threshold, quarantine) = (t.config.terminated_pod_gc_threshold, t.config.orphan_quarantine);
        PodGc::new(&t.caches, client, clock.clone(), threshold, quarantine)
    });
    if !t.config.cluster_cidrs.is_empty() {
        t.add("node-ipam", "node-controller", |t, _| {
            let c = &t.config;
            let mask = |cidr: &IpNet| match cidr {
                IpNet::V4(_) => c.node_cidr_mask_size_v4,
                IpNet::V6(_) => c.node_cidr_mask_size_v6,
            };
            let pools = c.cluster_cidrs.iter().map(|cidr| Pool::new(*cidr, mask(cidr)));
            NodeIpam::new(&t.caches, pools.collect())
        });
    }
    t.add("certificatesigningrequest-approving", "certificate-controller", |t, client| {
        Approver::new(&t.caches, client)
    });
    if let Some(ca) = &t.config.signing_ca {
        let ca = Ca::new(ca).map_err(|e| Error::Config(e.to_string()))?;
        t.add("certificatesigningrequest-signing", "certificate-controller", |t, _| {
            Signer::new(&t.caches, ca, t.config.signing_duration, clock.clone())
        });
    }
    t.add("certificatesigningrequest-cleaner", "certificate-controller", |t, _| Cleaner::new(&t.caches));
    t.add("tokencleaner", "token-cleaner", |t, _| TokenCleaner::new(&t.caches));
    t.add("clusterrole-aggregation", "clusterrole-aggregation-controller", |t, _| {
        RoleAggregation::new(&t.caches)
    });
    t.add("daemonset", "daemon-set-controller", |t, _| DaemonSets::new(&t.caches, clock.clone()));
    t.add("statefulset", "statefulset-controller", |t, _| StatefulSets::new(&t.caches));
    t.add("job", "job-controller", |t, _| Jobs::new(&t.caches));
    t.add("cronjob", "cronjob-controller", |t, _| CronJobs::new(&t.caches));
    t.add("horizontal-pod-autoscaler", "horizontal-pod-autoscaler", |t, client| {
        Autoscalers::new(&t.caches, client, clock.clone(), t.config.autoscaler.clone())
    });
    t.add("ttl-after-finished", "ttl-after-finished-controller", |t, _| TtlAfterFinished::new(&t.caches));
    t.add("persistentvolume-binder", "persistent-volume-binder", |t, _| Binder::new(&t.caches));
    t.add("persistentvolume-reclaimer", "persistent-volume-binder", |t, client| {
        Reclaimer::new(&t.caches, client)
    });
    t.add("persistentvolume-expander", "expand-controller", |t, _| Expander::new(&t.caches));
    t.add("persistentvolume-attach-detach", "attachdetach-controller", |t, _| Attacher::new(&t.caches));
    t.add("ephemeral-volume", "ephemeral-volume-controller", |t, _| EphemeralVolumes::new(&t.caches));
    t.add("resourceclaim", "resource-claim-controller", |t, client| Claims::new(&t.caches, client));
    t.add("resourceclaim-pods", "resource-claim-controller", |t, _| PodClaims::new(&t.caches));
    t.add("device-taint-eviction", "device-taint-eviction-controller", |t, _| {
        DeviceTaintEviction::new(&t.caches)
    });
    t.add("ttl", "ttl-controller", |t, _| Ttl::new(&t.caches));
    t.add("pvc-protection", "pvc-protection-controller", |t, _| {
        Protection::<PersistentVolumeClaim>::new(&t.caches)
    });
    t.add("pv-protection", "pv-protection-controller", |t, _| Protection::<PersistentVolume>::new(&t.caches));
    t.add("volumeattributesclass-protection", "volumeattributesclass-protection-controller", |t, _| {
        Protection::<VolumeAttributesClass>::new(&t.caches)
    });
    t.add("disruption", "disruption-controller", |t, client| Disruption::new(&t.caches, client));
    t.add("disruption-stale-targets", "disruption-controller", |t, _| StaleTargets::new(&t.caches));
    t.add("validatingadmissionpolicy-status", "validatingadmissionpolicy-status-controller", |t, client| {
        PolicyStatus::new(&t.caches, client)
    });
    t.add("storage-version-migrator", "storage-version-migrator-controller", |t, client| {
        Migrations::new(&t.caches, client)
    });
    t.add("resourcequota", "resourcequota-controller", |t, client| Quotas::new(&t.caches, client));
    // Last, so that it finds out which caches are fed anyway.
    t.add("garbage-collector", "generic-garbage-collector", |t, client| {
        GarbageCollector::new(&t.caches, client, &t.client)
    });
    Ok(t)
}

/// The names of the controllers that a configuration runs.
#[cfg(test)]
pub fn names(config: Config, client: Client) -> Result<Vec<&'static str>, Error> {
    let table = table(config, client, Caches::new(), Recorder::channel().0)?;
    Ok(table.starts.iter().map(|(name, _)| *name).collect())
}

impl ControllerManager {
    /// Runs all configured controllers until cancelled.
    ///
    /// # Errors
    /// When the configuration is invalid, or when leadership is lost.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        self.config.validate().map_err(Error::Config)?;
        let Some(election) = self.config.leader_election.clone() else {
            return self.lead(stop).await;
        };
        let client = self.client.clone();
        if !leader::acquire(&client, &election, &stop).await {
            return Ok(());
        }
        tracing::info!(lease = election.name, identity = election.identity, "leading");
        let work = stop.child_token();
        let mut led = Box::pin(self.lead(work.clone()));
        tokio::select! {
            // Given up only when all work has ended, so that no two processes ever act.
            ended = &mut led => {
                leader::release(&client, &election).await;
                ended
            }
            () = leader::hold(&client, &election) => {
                work.cancel();
                led.await?;
                Err(Error::LeadershipLost)
            }
        }
    }

    async fn lead(self, stop: CancellationToken) -> Result<(), Error> {
        let (recorder, notes) = Recorder::channel();
        let caches = Caches::new();
        let client = self.client;
        let table = table(self.config, client.clone(), caches.clone(), recorder)?;
        let stores = caches.stores();
        let work = async {
            tokio::select! {
                () = caches.synced() => {}
                () = stop.cancelled() => return,
            }
            let runs = table.starts.into_iter().map(|(_, start)| start(&stores, stop.clone()));
            futures::future::join_all(runs).await;
        };
        tokio::join!(work, caches.feed(&client, &stop), write_events(client.clone(), notes, stop.clone()));
        Ok(())
    }
}
