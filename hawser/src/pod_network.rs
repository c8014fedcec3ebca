//! The dataplane's pod network in terms of what the container runtime asks for.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_proxy::podnet::PortMapping;
use hawser_proxy::{PodNet, PodNetRequest};
use hawser_runtime::network::{NetworkError, PodNetwork, PodNetworkRequest, PodNetworkStatus, Protocol};
use tokio::sync::watch;

/// The network that `hawser_proxy` makes.
pub struct ProxyNetwork {
    network: Arc<PodNet>,
    synced: watch::Receiver<bool>,
}

impl ProxyNetwork {
    /// `synced` tells when the dataplane's maps first hold what the API says; before, no pod is started.
    pub fn new(network: Arc<PodNet>, synced: watch::Receiver<bool>) -> Self {
        ProxyNetwork { network, synced }
    }
}

fn failed(error: impl std::fmt::Display) -> NetworkError {
    NetworkError(error.to_string())
}

#[async_trait]
impl PodNetwork for ProxyNetwork {
    async fn setup(&self, request: PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let mut synced = self.synced.clone();
        synced.wait_for(|synced| *synced).await.map_err(failed)?;
        let ips = self.network.setup(&to_proxy(request)).await.map_err(failed)?;
        Ok(PodNetworkStatus { ips })
    }

    async fn teardown(&self, request: PodNetworkRequest) -> Result<(), NetworkError> {
        self.network.teardown(&request.sandbox_id).await.map_err(failed)
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        if !*self.synced.borrow() {
            return Err(NetworkError("the dataplane has not read the cluster's Services yet".into()));
        }
        self.network.ready().map_err(failed)
    }
}

fn to_proxy(request: PodNetworkRequest) -> PodNetRequest {
    PodNetRequest {
        sandbox_id: request.sandbox_id,
        namespace: request.pod_namespace,
        name: request.pod_name,
        uid: request.pod_uid,
        netns: request.netns,
        host_ports: request.port_mappings.iter().map(to_mapping).collect(),
    }
}

fn to_mapping(mapping: &hawser_runtime::network::PortMapping) -> PortMapping {
    PortMapping {
        host_ip: mapping.host_ip,
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        protocol: match mapping.protocol {
            Protocol::Tcp => hawser_proxy::types::Protocol::Tcp,
            Protocol::Udp => hawser_proxy::types::Protocol::Udp,
            Protocol::Sctp => hawser_proxy::types::Protocol::Sctp,
        },
    }
}

/// No pod network at all: a runtime alone runs only pods on the host's network.
pub struct HostOnly;

#[async_trait]
impl PodNetwork for HostOnly {
    async fn setup(&self, _: PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        Err(NetworkError("a runtime alone has no pod network: only hostNetwork pods can run".into()))
    }

    async fn teardown(&self, _: PodNetworkRequest) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}
