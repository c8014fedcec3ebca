//! What the runtime asks of the pod network. The dataplane implements it; the binary plugs it in.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

/// A port of the host that leads to the pod (CRI `PortMapping`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// Address of the host; `None` for all.
    pub host_ip: Option<IpAddr>,
}

/// Transport protocols of port mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A pod that wants a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetworkRequest {
    /// Sandbox id, unique to this attempt at the pod.
    pub sandbox_id: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// A bound network namespace with only `lo`, which is up.
    pub netns: PathBuf,
    /// Host name of the pod.
    pub hostname: String,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's directory in the cgroup v2 (or `unified`) hierarchy, if there is one. Every process of the
    /// pod's containers is below it.
    pub cgroup: Option<PathBuf>,
}

/// A pod's network as it is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNetworkStatus {
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

/// Why a network could not be set up or torn down.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// The pod network.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Connects a pod's network namespace.
    ///
    /// # Errors
    /// Why it could not; nothing is left behind then.
    async fn setup(&self, request: PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError>;

    /// Disconnects a pod; one that is not connected (any more) is no error. The namespace may be gone.
    ///
    /// # Errors
    /// Why it could not; it will be tried again.
    async fn teardown(&self, request: PodNetworkRequest) -> Result<(), NetworkError>;

    /// Whether pods can be connected now; the node is not Ready before.
    ///
    /// # Errors
    /// Why not, for people.
    async fn ready(&self) -> Result<(), NetworkError>;
}

/// A network that is nothing but each pod's own loopback. For tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoopbackOnly;

#[async_trait]
impl PodNetwork for LoopbackOnly {
    async fn setup(&self, _request: PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        Ok(PodNetworkStatus { ips: vec![IpAddr::from([127, 0, 0, 1])] })
    }

    async fn teardown(&self, _request: PodNetworkRequest) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}
