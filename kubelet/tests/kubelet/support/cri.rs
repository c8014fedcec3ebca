//! A container runtime in memory behind a real CRI socket: containers are records that run until told otherwise.

use futures::Stream;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use k8s_cri::v1::*;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status};

#[derive(Default)]
pub struct State {
    pub sandboxes: BTreeMap<String, (PodSandboxConfig, PodSandboxStatus)>,
    pub containers: BTreeMap<String, (CreateContainerRequest, ContainerStatus)>,
    /// Images by name.
    pub images: BTreeMap<String, Image>,
    /// Images that a pull finds.
    pub registry: BTreeMap<String, Image>,
    ids: u32,
    /// Every start ever, by container name.
    pub starts: Vec<String>,
    /// What was called, in order, with its main argument.
    pub calls: Vec<String>,
    /// Exit code of ExecSync.
    pub exec_code: i32,
    /// Containers with these names end by themselves at once, with these codes.
    pub ends: HashMap<String, i32>,
    /// Base of streaming URLs.
    pub streaming: String,
}

#[derive(Clone)]
pub struct Cri {
    pub state: Arc<Mutex<State>>,
    events: broadcast::Sender<ContainerEventResponse>,
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

pub fn image(name: &str) -> Image {
    Image {
        id: format!("sha256:{name}"),
        repo_tags: vec![name.to_owned()],
        uid: Some(Int64Value { value: 0 }),
        size: 1000,
        ..Default::default()
    }
}

impl Cri {
    pub fn new() -> Cri {
        let mut state = State::default();
        state.images.insert("img".into(), image("img"));
        state.registry.insert("img".into(), image("img"));
        state.registry.insert("remote".into(), image("remote"));
        Cri { state: Arc::new(Mutex::new(state)), events: broadcast::channel(1024).0 }
    }

    /// Serves on a socket until the handle is dropped.
    pub fn serve(&self, socket: &Path) -> tokio_util::task::AbortOnDropHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        let (a, b) = (self.clone(), self.clone());
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(RuntimeServiceServer::new(a))
                .add_service(ImageServiceServer::new(b))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        }))
    }

    /// Ends a running container.
    pub fn exit(&self, name: &str, code: i32) {
        let id = {
            let mut state = self.state.lock();
            let running = ContainerState::ContainerRunning as i32;
            let found = state.containers.iter_mut().find(|(_, (r, s))| {
                s.state == running && r.config.as_ref().unwrap().metadata.as_ref().unwrap().name == name
            });
            let (id, (_, status)) = found.expect("a running container");
            end(status, code);
            id.clone()
        };
        self.tell(&id, ContainerEventType::ContainerStoppedEvent);
    }

    pub fn running(&self) -> Vec<String> {
        let state = self.state.lock();
        let running = ContainerState::ContainerRunning as i32;
        let of = |s: &ContainerStatus| s.metadata.as_ref().unwrap().name.clone();
        state.containers.values().filter(|(_, s)| s.state == running).map(|(_, s)| of(s)).collect()
    }

    pub fn created(&self, name: &str) -> ContainerConfig {
        let state = self.state.lock();
        let mut all = state.containers.values().map(|(r, _)| r.config.clone().unwrap());
        all.find(|c| c.metadata.as_ref().unwrap().name == name).expect("a container")
    }

    fn tell(&self, id: &str, kind: ContainerEventType) {
        let state = self.state.lock();
        let sandbox_id = state.containers.get(id).map_or(id, |(r, _)| &r.pod_sandbox_id);
        let sandbox = state.sandboxes.get(sandbox_id).map(|(_, s)| s.clone());
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: sandbox,
            containers_statuses: Vec::new(),
        };
        let _ = self.events.send(event);
    }

    fn note(&self, call: &str) {
        self.state.lock().calls.push(call.to_owned());
    }
}

fn end(status: &mut ContainerStatus, code: i32) {
    if status.state == ContainerState::ContainerRunning as i32 {
        status.state = ContainerState::ContainerExited as i32;
        status.exit_code = code;
        status.finished_at = now();
        status.reason = if code == 0 { "Completed" } else { "Error" }.into();
    }
}

fn ok<T>(t: T) -> Result<Response<T>, Status> {
    Ok(Response::new(t))
}

fn missing(id: &str) -> Status {
    Status::not_found(format!("{id} not found"))
}

fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

macro_rules! unimplemented_calls {
    ($($name:ident: $request:ty => $response:ty;)*) => {
        $(fn $name<'a: 'b, 'b>(&'a self, _: Request<$request>)
            -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'b>> where Self: 'b {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl RuntimeService for Cri {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(
        &self,
        r: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let config = r.into_inner().config.unwrap();
        let id = {
            let mut state = self.state.lock();
            state.ids += 1;
            let id = format!("sandbox{}", state.ids);
            let network = PodSandboxNetworkStatus { ip: "127.0.0.1".into(), additional_ips: vec![] };
            let status = PodSandboxStatus {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: PodSandboxState::SandboxReady as i32,
                created_at: now(),
                network: Some(network),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                ..Default::default()
            };
            state.sandboxes.insert(id.clone(), (config, status));
            id
        };
        self.tell(&id, ContainerEventType::ContainerStartedEvent);
        ok(RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        r: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let id = r.into_inner().pod_sandbox_id;
        self.note(&format!("stop-sandbox {id}"));
        let mut state = self.state.lock();
        for (request, status) in state.containers.values_mut() {
            if request.pod_sandbox_id == id {
                end(status, 137);
            }
        }
        state.sandboxes.get_mut(&id).ok_or_else(|| missing(&id))?.1.state =
            PodSandboxState::SandboxNotready as i32;
        ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let id = r.into_inner().pod_sandbox_id;
        let mut state = self.state.lock();
        state.sandboxes.remove(&id);
        state.containers.retain(|_, (r, _)| r.pod_sandbox_id != id);
        ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let id = r.into_inner().pod_sandbox_id;
        let state = self.state.lock();
        let status = state.sandboxes.get(&id).ok_or_else(|| missing(&id))?.1.clone();
        ok(PodSandboxStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn list_pod_sandbox(
        &self,
        r: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = r.into_inner().filter.unwrap_or_default();
        let state = self.state.lock();
        let items = state
            .sandboxes
            .values()
            .filter(|(_, s)| selected(&s.labels, &filter.label_selector))
            .map(|(_, s)| PodSandbox {
                id: s.id.clone(),
                metadata: s.metadata.clone(),
                state: s.state,
                created_at: s.created_at,
                labels: s.labels.clone(),
                annotations: s.annotations.clone(),
                runtime_handler: String::new(),
            })
            .collect();
        ok(ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        r: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let request = r.into_inner();
        let config = request.config.clone().unwrap();
        let metadata = config.metadata.clone().unwrap();
        let id = {
            let mut state = self.state.lock();
            let taken = state.containers.values().any(|(r, s)| {
                r.pod_sandbox_id == request.pod_sandbox_id && s.metadata.as_ref() == Some(&metadata)
            });
            if taken {
                return Err(Status::already_exists("the name is reserved"));
            }
            state.ids += 1;
            let id = format!("container{}", state.ids);
            let log_directory = request.sandbox_config.clone().unwrap_or_default().log_directory;
            let status = ContainerStatus {
                id: id.clone(),
                metadata: Some(metadata),
                state: ContainerState::ContainerCreated as i32,
                created_at: now(),
                image: config.image.clone(),
                image_ref: "img@sha256:00".into(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                log_path: format!("{log_directory}/{}", config.log_path),
                ..Default::default()
            };
            state.containers.insert(id.clone(), (request, status));
            id
        };
        self.tell(&id, ContainerEventType::ContainerCreatedEvent);
        ok(CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        r: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let id = r.into_inner().container_id;
        {
            let mut state = self.state.lock();
            let ends = state.ends.clone();
            let (_, status) = state.containers.get_mut(&id).ok_or_else(|| missing(&id))?;
            if status.state != ContainerState::ContainerCreated as i32 {
                return Err(Status::failed_precondition("not in created state"));
            }
            status.state = ContainerState::ContainerRunning as i32;
            status.started_at = now();
            let name = status.metadata.as_ref().unwrap().name.clone();
            if let Some(code) = ends.get(&name) {
                end(status, *code);
            }
            state.starts.push(name);
        }
        self.tell(&id, ContainerEventType::ContainerStartedEvent);
        ok(StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        r: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let StopContainerRequest { container_id: id, timeout } = r.into_inner();
        {
            let mut state = self.state.lock();
            let (_, status) = state.containers.get_mut(&id).ok_or_else(|| missing(&id))?;
            end(status, 143);
            let name = status.metadata.as_ref().unwrap().name.clone();
            state.calls.push(format!("stop {name} {timeout}"));
        }
        self.tell(&id, ContainerEventType::ContainerStoppedEvent);
        ok(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        r: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        self.state.lock().containers.remove(&r.into_inner().container_id);
        ok(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        r: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filter = r.into_inner().filter.unwrap_or_default();
        let state = self.state.lock();
        let containers = state
            .containers
            .values()
            .filter(|(_, s)| selected(&s.labels, &filter.label_selector))
            .map(|(r, s)| Container {
                id: s.id.clone(),
                pod_sandbox_id: r.pod_sandbox_id.clone(),
                metadata: s.metadata.clone(),
                image: s.image.clone(),
                state: s.state,
                created_at: s.created_at,
                labels: s.labels.clone(),
                annotations: s.annotations.clone(),
                ..Default::default()
            })
            .collect();
        ok(ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        r: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let id = r.into_inner().container_id;
        let state = self.state.lock();
        let status = state.containers.get(&id).ok_or_else(|| missing(&id))?.1.clone();
        ok(ContainerStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn exec_sync(&self, r: Request<ExecSyncRequest>) -> Result<Response<ExecSyncResponse>, Status> {
        self.note(&format!("exec-sync {}", r.into_inner().cmd.join(" ")));
        let exit_code = self.state.lock().exec_code;
        ok(ExecSyncResponse { exit_code, ..Default::default() })
    }

    async fn exec(&self, r: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let r = r.into_inner();
        self.note(&format!("exec {} tty={}", r.cmd.join(" "), r.tty));
        ok(ExecResponse { url: format!("{}/exec/secret", self.state.lock().streaming) })
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let condition = |t: &str| RuntimeCondition { r#type: t.into(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        ok(StatusResponse { status: Some(RuntimeStatus { conditions }), ..Default::default() })
    }

    async fn update_runtime_config(
        &self,
        r: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        let cidr = r.into_inner().runtime_config.and_then(|c| c.network_config).map(|n| n.pod_cidr);
        self.note(&format!("pod-cidr {}", cidr.unwrap_or_default()));
        ok(UpdateRuntimeConfigResponse {})
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let events = BroadcastStream::new(self.events.subscribe());
        let events = futures::StreamExt::map(events, |e| e.map_err(|e| Status::data_loss(e.to_string())));
        ok(Box::pin(events))
    }

    unimplemented_calls! {
        update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse;
        reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse;
        attach: AttachRequest => AttachResponse;
        port_forward: PortForwardRequest => PortForwardResponse;
        container_stats: ContainerStatsRequest => ContainerStatsResponse;
        list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse;
        pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse;
        list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse;
        checkpoint_container: CheckpointContainerRequest => CheckpointContainerResponse;
        list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse;
        runtime_config: RuntimeConfigRequest => RuntimeConfigResponse;
    }
}

#[tonic::async_trait]
impl ImageService for Cri {
    async fn list_images(
        &self,
        _: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        ok(ListImagesResponse { images: self.state.lock().images.values().cloned().collect() })
    }

    async fn image_status(
        &self,
        r: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let name = r.into_inner().image.unwrap_or_default().image;
        let state = self.state.lock();
        let found = state.images.get(&name).or_else(|| state.images.values().find(|i| i.id == name)).cloned();
        ok(ImageStatusResponse { image: found, ..Default::default() })
    }

    async fn pull_image(&self, r: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let name = r.into_inner().image.unwrap_or_default().image;
        let mut state = self.state.lock();
        state.calls.push(format!("pull {name}"));
        let Some(found) = state.registry.get(&name).cloned() else {
            return Err(Status::not_found(format!("no such image {name}")));
        };
        let image_ref = found.id.clone();
        state.images.insert(name, found);
        ok(PullImageResponse { image_ref })
    }

    async fn remove_image(
        &self,
        _: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        ok(RemoveImageResponse {})
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        ok(ImageFsInfoResponse::default())
    }
}

/// A server that upgrades every request and echoes, as a runtime's streaming server does with a tty.
pub async fn echo_server() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(|mut request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/exec/secret");
                    assert!(!request.headers().contains_key("authorization"));
                    let upgrade = hyper::upgrade::on(&mut request);
                    tokio::spawn(async move {
                        let (mut r, mut w) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                        let _ = tokio::io::copy(&mut r, &mut w).await;
                    });
                    http::Response::builder()
                        .status(101)
                        .header("connection", "Upgrade")
                        .header("upgrade", "websocket")
                        .header("sec-websocket-protocol", "v5.channel.k8s.io")
                        .body(http_body_util::Empty::<bytes::Bytes>::new())
                });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades(),
            );
        }
    });
    url
}
