//! The node's heartbeat: a Lease in kube-node-lease. It also says what the node's dataplane has programmed.

use crate::config::Checked;
use crate::retry::Retry;
use hawser_api::dataplane::{PROGRAMMED_NODES_REVISION, PROGRAMMED_REVISION, Programmed};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{Notify, watch};

const NAMESPACE: &str = "kube-node-lease";
/// A lease lasts for so many renewals.
const RENEWALS: u64 = 4;

/// Renews the lease for ever, and tells `heartbeat` each time. What `programmed` tells of is written at once; while one
/// is on its way, later ones wait for it and go together.
pub(super) async fn keep(
    client: Client,
    config: Checked,
    node_uid: String,
    mut programmed: watch::Receiver<Option<Programmed>>,
    heartbeat: &Notify,
) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut known: Option<Lease> = None;
    let mut retry = Retry::default();
    loop {
        let told = *programmed.borrow_and_update();
        match renew(&api, &config, &node_uid, told, known.take()).await {
            Ok(lease) => {
                known = Some(lease);
                retry = Retry::default();
                heartbeat.notify_one();
                let news = async {
                    // Without a dataplane there are none.
                    if programmed.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(config.lease_interval) => {}
                    () = news => {}
                }
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
    programmed: Option<Programmed>,
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
    let note = |metadata: &mut ObjectMeta| {
        if let Some(told) = programmed {
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(PROGRAMMED_REVISION.to_owned(), told.slices.to_string());
            annotations.insert(PROGRAMMED_NODES_REVISION.to_owned(), told.nodes.to_string());
        }
    };
    match current {
        Some(mut lease) => {
            note(&mut lease.metadata);
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
            let mut metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(NAMESPACE.into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            note(&mut metadata);
            api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
        }
    }
}
