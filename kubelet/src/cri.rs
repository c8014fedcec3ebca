//! The container runtime, as CRI v1 shows it: a client on a unix socket and what the kubelet reads from it.

use crate::pod::{Exit, Instance, Observed, Sandbox, State};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Labels and annotations by which the kubelet finds its own again. The `io.kubernetes` names are those that CRI
/// tools know.
pub(crate) mod keys {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
    pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Seconds of back-off that apply once the container ends.
    pub const BACKOFF: &str = "hawser.container.backoff";
    /// Host file that is mounted at the termination message path.
    pub const MESSAGE_FILE: &str = "hawser.container.terminationMessageFile";
}

/// The largest CRI message to accept: exec output is capped at 16 MiB by CRI.
const MAX_MESSAGE: usize = 34 << 20;

/// A client of the runtime; cheap to clone, connects when first used and again after the runtime restarts.
#[derive(Clone)]
pub(crate) struct Runtime {
    channel: Channel,
}

impl Runtime {
    pub fn new(socket: &Path) -> Runtime {
        let socket: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is only a form: the connector knows the socket.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Runtime { channel }
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Sandboxes with the given label selector.
    pub async fn sandboxes(
        &self,
        selector: HashMap<String, String>,
    ) -> Result<Vec<cri::PodSandbox>, CriError> {
        let filter = cri::PodSandboxFilter { label_selector: selector, ..Default::default() };
        let answer =
            self.runtime().list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await?;
        Ok(answer.into_inner().items)
    }

    /// Containers with the given label selector.
    pub async fn containers(
        &self,
        selector: HashMap<String, String>,
    ) -> Result<Vec<cri::Container>, CriError> {
        let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
        let answer =
            self.runtime().list_containers(cri::ListContainersRequest { filter: Some(filter) }).await?;
        Ok(answer.into_inner().containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<Option<cri::ContainerStatus>, CriError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.runtime().container_status(request).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(e) if e.code() == tonic::Code::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<Option<cri::PodSandboxStatus>, CriError> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        match self.runtime().pod_sandbox_status(request).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(e) if e.code() == tonic::Code::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Stops a container; one that is gone is stopped.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        gone_is_fine(self.runtime().stop_container(request).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(self.runtime().remove_container(request).await)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime().stop_pod_sandbox(request).await)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime().remove_pod_sandbox(request).await)
    }
}

fn gone_is_fine<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<(), CriError> {
    match answer {
        Ok(_) => Ok(()),
        Err(e) if e.code() == tonic::Code::NotFound => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What the runtime answered instead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {}", code_name(.0.code()), .0.message())]
pub(crate) struct CriError(Box<tonic::Status>);

impl From<tonic::Status> for CriError {
    fn from(s: tonic::Status) -> Self {
        CriError(Box::new(s))
    }
}

fn code_name(code: tonic::Code) -> String {
    format!("rpc error: code = {code:?} desc")
}

impl CriError {
    /// The message without its gRPC wrapping.
    pub fn message(&self) -> &str {
        self.0.message()
    }
}

/// Watches one pod's sandboxes and containers, asking for details only of what changed.
pub(crate) struct Observer {
    runtime: Runtime,
    selector: HashMap<String, String>,
    sandboxes: HashMap<String, (i32, Sandbox)>,
    containers: HashMap<String, (i32, Instance)>,
}

impl Observer {
    pub fn new(runtime: Runtime, uid: &str) -> Observer {
        let selector = HashMap::from([(keys::POD_UID.to_owned(), uid.to_owned())]);
        Observer { runtime, selector, sandboxes: HashMap::new(), containers: HashMap::new() }
    }

    /// Looks once.
    pub async fn look(&mut self) -> Result<Observed, CriError> {
        let (sandboxes, containers) = tokio::try_join!(
            self.runtime.sandboxes(self.selector.clone()),
            self.runtime.containers(self.selector.clone())
        )?;
        let mut seen_sandboxes = HashMap::new();
        for s in sandboxes {
            let known = self.sandboxes.remove(&s.id).filter(|(state, _)| *state == s.state);
            let entry = match known {
                Some(entry) => entry,
                None => match self.runtime.sandbox_status(&s.id).await? {
                    Some(status) => (status.state, read_sandbox(status)),
                    None => continue,
                },
            };
            seen_sandboxes.insert(s.id, entry);
        }
        let mut seen_containers = HashMap::new();
        for c in containers {
            let known = self.containers.remove(&c.id).filter(|(state, _)| *state == c.state);
            let entry = match known {
                Some(entry) => entry,
                None => match self.runtime.container_status(&c.id).await? {
                    Some(status) => (status.state, read_container(c.pod_sandbox_id, status).await),
                    None => continue,
                },
            };
            seen_containers.insert(c.id, entry);
        }
        self.sandboxes = seen_sandboxes;
        self.containers = seen_containers;
        let mut observed = Observed {
            sandboxes: self.sandboxes.values().map(|(_, s)| s.clone()).collect(),
            containers: self.containers.values().map(|(_, c)| c.clone()).collect(),
        };
        observed.sort();
        Ok(observed)
    }
}

fn read_sandbox(s: cri::PodSandboxStatus) -> Sandbox {
    let network = s.network.unwrap_or_default();
    let ips = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|i| i.ip))
        .filter(|ip| !ip.is_empty())
        .collect();
    Sandbox {
        attempt: s.metadata.map_or(0, |m| m.attempt),
        ready: s.state == cri::PodSandboxState::SandboxReady as i32,
        id: s.id,
        ips,
    }
}

async fn read_container(sandbox_id: String, s: cri::ContainerStatus) -> Instance {
    let message = match cri::ContainerState::try_from(s.state) {
        Ok(cri::ContainerState::ContainerExited) => crate::logs::termination_message(&s).await,
        _ => String::new(),
    };
    let state = match cri::ContainerState::try_from(s.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running(from_nanos(s.started_at)),
        Ok(cri::ContainerState::ContainerExited) => State::Exited(Exit {
            started_at: (s.started_at > 0).then(|| from_nanos(s.started_at)),
            finished_at: from_nanos(s.finished_at),
            code: s.exit_code,
            reason: s.reason,
            message,
        }),
        _ => State::Unknown,
    };
    let image = s.image.unwrap_or_default();
    let named = [image.user_specified_image, image.image];
    let user = s.user.and_then(|u| u.linux).map(|u| (u.uid, u.gid, u.supplemental_groups));
    let metadata = s.metadata.unwrap_or_default();
    Instance {
        id: s.id,
        name: match s.labels.get(keys::CONTAINER_NAME) {
            Some(name) => name.clone(),
            None => metadata.name,
        },
        sandbox_id,
        attempt: metadata.attempt,
        hash: s.annotations.get(keys::HASH).cloned().unwrap_or_default(),
        backoff: s.annotations.get(keys::BACKOFF).and_then(|b| b.parse().ok()).unwrap_or(0),
        image: named.into_iter().find(|i| !i.is_empty()).unwrap_or_default(),
        image_ref: if s.image_ref.is_empty() { s.image_id } else { s.image_ref },
        user,
        state,
    }
}

/// CRI times are nanoseconds since 1970.
pub(crate) fn from_nanos(n: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(n)).unwrap_or(Timestamp::UNIX_EPOCH)
}
