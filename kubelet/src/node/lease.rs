//! The node's heartbeat: a Lease in kube-node-lease.

use crate::config::Checked;
use crate::retry::Retry;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Notify;

const NAMESPACE: &str = "kube-node-lease";
/// A lease lasts for so many renewals.
const RENEWALS: u64 = 4;

/// Renews the lease for ever, and tells `heartbeat` each time.
pub(super) async fn keep(client: Client, config: Checked, node_uid: String, heartbeat: &Notify) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut known: Option<Lease> = None;
    let mut retry = Retry::default();
    loop {
        match renew(&api, &config, &node_uid, known.take()).await {
            Ok(lease) => {
                known = Some(lease);
                retry = Retry::default();
                heartbeat.notify_one();
                tokio::time::sleep(config.lease_interval).await;
            }
            Err(e) => {
                tracing::warn!("renewing the node's lease: {e}");
                let wait = retry.next().unwrap_or(config.lease_interval);
                tokio::time::sleep(wait.min(config.lease_interval)).await;
            }
        }
    }
}

/// Renews from the known lease, or from the one in the API, or makes one.
async fn renew(
    api: &Api<Lease>,
    config: &Checked,
    node_uid: &str,
    known: Option<Lease>,
) -> Result<Lease, kube::Error> {
    let name = &config.node_name;
    let current = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: i32::try_from(config.lease_interval.as_secs().max(1) * RENEWALS).ok(),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    match current {
        Some(mut lease) => {
            lease.spec = Some(spec);
            api.replace(name, &PostParams::default(), &lease).await
        }
        None => {
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(NAMESPACE.into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
        }
    }
}
