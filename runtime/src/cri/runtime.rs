//! CRI's RuntimeService.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_cri::v1::runtime_service_server::RuntimeService;
use k8s_cri::v1::*;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::status;
use crate::error::Error;
use crate::fsutil;
use crate::service::Inner;
use crate::streaming::port_forward::{MAX_PORTS, Target};
use crate::streaming::session::Command;
use crate::streaming::{self, Pending};

/// The service.
pub struct RuntimeApi {
    pub(crate) inner: Arc<Inner>,
    pub(crate) cancel: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

fn ok<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn unimplemented<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("hawser does not implement {what}")))
}

fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn command(cmd: &[String]) -> Result<(), Error> {
    if cmd.is_empty() {
        return Err(Error::InvalidArgument("a command is missing in the request".into()));
    }
    Ok(())
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    async fn version(&self, _request: Request<VersionRequest>) -> Answer<VersionResponse> {
        ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "hawser".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let inner = Arc::clone(&self.inner);
        let request = request.into_inner();
        let pod_sandbox_id = whole(async move { inner.run_sandbox(request).await }).await?;
        ok(RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let inner = Arc::clone(&self.inner);
        let id = request.into_inner().pod_sandbox_id;
        whole(async move { inner.stop_sandbox(&id).await }).await?;
        ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let inner = Arc::clone(&self.inner);
        let id = request.into_inner().pod_sandbox_id;
        whole(async move { inner.remove_sandbox(&id).await }).await?;
        ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.inner.store.sandbox(&request.pod_sandbox_id)?;
        let record = sandbox.record.lock().clone();
        let mut info = HashMap::new();
        if request.verbose {
            let text = serde_json::to_string(&record).map_err(|e| Status::internal(e.to_string()))?;
            info.insert("info".to_owned(), text);
        }
        let containers = self.inner.store.containers_of(&record.id);
        ok(PodSandboxStatusResponse {
            status: Some(status::sandbox(&record)),
            info,
            containers_statuses: containers.iter().map(|c| status::container(c)).collect(),
            timestamp: fsutil::now_nanos(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let fits = |item: &PodSandbox| {
            item.id.starts_with(&filter.id)
                && filter.state.as_ref().is_none_or(|s| s.state == item.state)
                && status::selected(&item.labels, &filter.label_selector)
        };
        let all = self.inner.store.sandboxes();
        let mut items: Vec<_> =
            all.iter().map(|s| status::sandbox_item(&s.record.lock())).filter(fits).collect();
        items.sort_by_key(|i| std::cmp::Reverse(i.created_at));
        ok(ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let inner = Arc::clone(&self.inner);
        let request = request.into_inner();
        let container_id = whole(async move { inner.create_container(request).await }).await?;
        ok(CreateContainerResponse { container_id })
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let inner = Arc::clone(&self.inner);
        let id = request.into_inner().container_id;
        whole(async move { inner.start_container(&id).await }).await?;
        ok(StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        self.inner.stop_container(&request.container_id, grace(request.timeout)).await?;
        ok(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let inner = Arc::clone(&self.inner);
        let id = request.into_inner().container_id;
        whole(async move { inner.remove_container(&id).await }).await?;
        ok(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let fits = |item: &Container| {
            item.id.starts_with(&filter.id)
                && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|s| s.state == item.state)
                && status::selected(&item.labels, &filter.label_selector)
        };
        let all = self.inner.store.containers();
        let mut containers: Vec<_> = all.iter().map(|c| status::container_item(c)).filter(fits).collect();
        containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        ok(ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.inner.store.container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let pid = container.phase.borrow().start.as_ref().map_or(0, |s| s.pid);
            let record = container.record.lock().clone();
            let text =
                serde_json::json!({ "pid": pid, "sandboxID": record.sandbox_id, "config": record.config });
            info.insert("info".to_owned(), text.to_string());
        }
        ok(ContainerStatusResponse { status: Some(status::container(&container)), info })
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.inner.update_resources(&request.container_id, &request.linux.unwrap_or_default())?;
        ok(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.inner.reopen_log(&request.into_inner().container_id).await?;
        ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        command(&request.cmd)?;
        ok(streaming::exec::sync(&self.inner, request).await?)
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        command(&request.cmd)?;
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !request.stdin && !request.stdout && !request.stderr {
            return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
        }
        self.inner.running(&request.container_id)?;
        ok(ExecResponse { url: self.inner.streaming.url(Pending::Command(Command::Exec(request))) })
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !request.stdin && !request.stdout && !request.stderr {
            return Err(Status::invalid_argument("one of stdin, stdout, and stderr must be set"));
        }
        self.inner.running(&request.container_id)?;
        ok(AttachResponse { url: self.inner.streaming.url(Pending::Command(Command::Attach(request))) })
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        if request.port.len() > MAX_PORTS {
            return Err(Status::invalid_argument(format!("more than {MAX_PORTS} ports")));
        }
        let port = |p: &i32| {
            let port = u16::try_from(*p).ok().filter(|p| *p != 0);
            port.ok_or_else(|| Status::invalid_argument(format!("{p} is no port")))
        };
        let ports = request.port.iter().map(port).collect::<Result<_, _>>()?;
        let sandbox = self.inner.store.sandbox(&request.pod_sandbox_id)?;
        let record = sandbox.record.lock().clone();
        if !record.ready {
            return Err(Status::failed_precondition(format!("pod sandbox {:?} is not ready", record.id)));
        }
        let pod = record.config.metadata.unwrap_or_default();
        let target = Target {
            netns: record.netns,
            pod: format!("{}/{}", pod.namespace, pod.name),
            uid: pod.uid,
            ports,
        };
        ok(PortForwardResponse { url: self.inner.streaming.url(Pending::PortForward(target)) })
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let container = self.inner.store.container(&request.into_inner().container_id)?;
        ok(ContainerStatsResponse { stats: Some(self.inner.container_stats(&container).await?) })
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut stats = Vec::new();
        for container in self.inner.store.containers() {
            let fits = {
                let r = container.record.lock();
                r.id.starts_with(&filter.id)
                    && r.sandbox_id.starts_with(&filter.pod_sandbox_id)
                    && status::selected(&r.config.labels, &filter.label_selector)
            };
            if fits && container.phase.borrow().running() {
                stats.push(self.inner.container_stats(&container).await?);
            }
        }
        ok(ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let sandbox = self.inner.store.sandbox(&request.into_inner().pod_sandbox_id)?;
        ok(PodSandboxStatsResponse { stats: Some(self.inner.sandbox_stats(&sandbox).await?) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut stats = Vec::new();
        for sandbox in self.inner.store.sandboxes() {
            let fits = {
                let r = sandbox.record.lock();
                r.ready
                    && r.id.starts_with(&filter.id)
                    && status::selected(&r.config.labels, &filter.label_selector)
            };
            if fits {
                stats.push(self.inner.sandbox_stats(&sandbox).await?);
            }
        }
        ok(ListPodSandboxStatsResponse { stats })
    }

    async fn update_runtime_config(
        &self,
        _request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        // The pod CIDR is all it can carry; the pod network reads that from its Node.
        ok(UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let condition = |kind: &str, problem: Option<(&str, String)>| {
            let good = problem.is_none();
            let (reason, message) = problem.unwrap_or_default();
            RuntimeCondition { r#type: kind.into(), status: good, reason: reason.into(), message }
        };
        let network = self.inner.network.ready().await.err().map(|e| ("NetworkNotReady", e.to_string()));
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let text = serde_json::json!({
                "dataDir": self.inner.settings.config.data_dir,
                "runDir": self.inner.settings.config.run_dir,
                "cgroupRoot": self.inner.settings.config.cgroup_root,
                "cgroupV2": self.inner.cgroups.is_v2(),
            });
            info.insert("config".to_owned(), text.to_string());
        }
        ok(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", network)],
            }),
            info,
            runtime_handlers: vec![RuntimeHandler {
                name: String::new(),
                features: Some(RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: false,
                }),
            }],
            features: Some(RuntimeFeatures { supplemental_groups_policy: true }),
        })
    }

    async fn checkpoint_container(
        &self,
        _request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        unimplemented("CheckpointContainer")
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.inner.events.subscribe())
            // Who reads too slowly must list again; an error says so.
            .map(|e| e.map_err(|lost| Status::data_loss(format!("events were lost: {lost}"))))
            .take_until(self.cancel.clone().cancelled_owned());
        ok(Box::pin(events))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        unimplemented("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        unimplemented("ListPodSandboxMetrics")
    }

    async fn runtime_config(&self, _request: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        ok(RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 }),
        })
    }
}

/// Runs a change to its end also when the caller goes away in the middle: half of one is worth nothing.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(change).await.map_err(|e| Error::Failed(format!("worker: {e}")))?
}
