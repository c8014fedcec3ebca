//! Carrying out actions against the runtime and the API.

use super::storage::Files;
use crate::events::Kind;
use crate::images::{Origin, Policy, credentials};
use crate::pod::gate::{self, LEAST_GRACE};
use crate::pod::{Action, Observed, Outcome, containers};
use crate::shared::{PodObjects, Shared};
use crate::{hooks, spec_cri};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What operations of one pod need.
pub(super) struct Hands {
    pub shared: Arc<Shared>,
    pub objects: Arc<PodObjects>,
    pub storage: Arc<Files>,
}

/// What was known when an action was decided.
pub(super) struct Job {
    pub pod: Arc<Pod>,
    pub ips: Vec<String>,
    pub observed: Arc<Observed>,
    pub images: BTreeMap<String, (u32, String)>,
    /// Cancelled when the pod is to end.
    pub ending: CancellationToken,
    /// Cancelled when every node sends new connections elsewhere, or when the pod is gone from the API.
    pub drained: CancellationToken,
}

impl Job {
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

impl Hands {
    /// Carries out one action. Events about it are recorded here.
    pub async fn carry_out(&self, action: &Action, job: &Job) -> Outcome {
        let runtime = &self.shared.runtime;
        let plain = |r: Result<(), crate::cri::CriError>| match r {
            Ok(()) => Outcome::Done,
            Err(e) => {
                tracing::warn!(pod = job.pod.metadata.name, ?action, "{e}");
                Outcome::Failed("RuntimeError".into(), e.to_string())
            }
        };
        match action {
            Action::SetUpVolumes => match self.storage.write(&job.pod, &job.ips, false).await {
                Ok(()) => Outcome::Done,
                Err(e) => {
                    self.say(job, None, Kind::Warning, "FailedMount", e.to_string());
                    Outcome::Failed("FailedMount".into(), e.to_string())
                }
            },
            Action::RunSandbox { attempt } => self.run_sandbox(job, *attempt).await,
            Action::StopSandbox { id } => plain(runtime.stop_sandbox(id).await),
            Action::RemoveSandbox { id } => plain(runtime.remove_sandbox(id).await),
            Action::PullImage { container, .. } => self.pull_image(job, container).await,
            Action::StartContainer { container, sandbox_id, attempt, backoff, adopt } => {
                let start = super::containers::Start {
                    name: container,
                    sandbox_id,
                    attempt: *attempt,
                    backoff: *backoff,
                    adopt: adopt.as_deref(),
                };
                self.start_container(job, start).await
            }
            Action::StopContainer { id, container, grace, pre_stop, message } => {
                self.say(job, Some(container), Kind::Normal, "Killing", message.clone());
                plain(self.stop_container(job, id, container, *grace, pre_stop.as_deref()).await)
            }
            Action::RemoveContainer { id } => plain(runtime.remove_container(id).await),
            Action::TearDownVolumes => match self.storage.tear_down(job.uid()).await {
                Ok(()) => Outcome::Done,
                Err(e) => {
                    tracing::warn!(pod = job.pod.metadata.name, "releasing volumes: {e}");
                    Outcome::Failed("TearDownFailed".into(), e)
                }
            },
            Action::DeletePod => match delete(&self.shared.client, &job.pod).await {
                Ok(()) => Outcome::Done,
                Err(e) => Outcome::Failed("DeleteFailed".into(), e.to_string()),
            },
            Action::Event { .. } => Outcome::Done,
        }
    }

    pub fn say(
        &self,
        job: &Job,
        container: Option<&str>,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.shared.recorder.pod(&job.pod, container, kind, reason, message);
    }

    async fn run_sandbox(&self, job: &Job, attempt: u32) -> Outcome {
        match spec_cri::sandbox_warnings(&job.pod, &self.shared.config, &self.shared.host_dns) {
            Ok(warnings) => {
                for (reason, message) in warnings {
                    self.say(job, None, Kind::Warning, reason, message);
                }
            }
            Err(error) => return self.sandbox_failed(job, &error),
        }
        let config = spec_cri::sandbox(&job.pod, &self.shared.config, &self.shared.host_dns, attempt);
        let logs = config.log_directory.clone();
        if let Err(e) = tokio::fs::create_dir_all(&logs).await {
            return self.sandbox_failed(job, &format!("{logs}: {e}"));
        }
        let handler = job.pod.spec.as_ref().and_then(|s| s.runtime_class_name.clone()).unwrap_or_default();
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        match self.shared.runtime.runtime().run_pod_sandbox(request).await {
            Ok(_) => Outcome::Done,
            Err(e) => self.sandbox_failed(job, &crate::cri::CriError::from(e).to_string()),
        }
    }

    fn sandbox_failed(&self, job: &Job, error: &str) -> Outcome {
        let message = format!("Failed to create pod sandbox: {error}");
        self.say(job, None, Kind::Warning, "FailedCreatePodSandBox", message.clone());
        Outcome::Failed("FailedCreatePodSandBox".into(), message)
    }

    async fn pull_image(&self, job: &Job, name: &str) -> Outcome {
        let specs = containers(&job.pod);
        let Some(spec) = specs.iter().find(|s| s.name() == name) else {
            return Outcome::Failed("ErrImagePull".into(), format!("container {name} is not in the pod"));
        };
        let image = spec.container.image.clone().unwrap_or_default();
        let policy = Policy::of(&spec.container);
        let auths = match self.objects.pull_secrets(&job.pod).await {
            Ok(secrets) => credentials(&image, &secrets),
            Err(e) => return Outcome::Failed("ErrImagePull".into(), e),
        };
        let sandbox = spec_cri::sandbox(&job.pod, &self.shared.config, &self.shared.host_dns, 0);
        let say = |kind, reason: &str, message: String| self.say(job, Some(name), kind, reason, message);
        let pulling = || say(Kind::Normal, "Pulling", format!("Pulling image \"{image}\""));
        match self.shared.images.ensure(&image, policy, &auths, &sandbox, pulling).await {
            Ok((found, origin)) => {
                let message = match origin {
                    Origin::Present => format!("Container image \"{image}\" already present on machine"),
                    Origin::Pulled { took, waited } => format!(
                        "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                        millis(took),
                        millis(waited),
                        found.size
                    ),
                };
                say(Kind::Normal, "Pulled", message);
                Outcome::Pulled(found.reference)
            }
            Err(e) => {
                let text = match e.reason {
                    "ErrImagePull" => format!("Failed to pull image \"{image}\": {}", e.message),
                    _ => e.message.clone(),
                };
                let reason = match e.reason {
                    "InvalidImageName" => "InspectFailed",
                    "ErrImageNeverPull" => "ErrImageNeverPull",
                    _ => "Failed",
                };
                say(Kind::Warning, reason, text);
                say(Kind::Warning, "Failed", format!("Error: {}", e.reason));
                Outcome::Failed(e.reason.into(), e.message)
            }
        }
    }

    pub async fn stop_container(
        &self,
        job: &Job,
        id: &str,
        name: &str,
        grace: i64,
        pre_stop: Option<&LifecycleHandler>,
    ) -> Result<(), crate::cri::CriError> {
        let begun = Instant::now();
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let specs = containers(&job.pod);
        let mut least = Duration::ZERO;
        if let (Some(hook), Some(spec)) = (pre_stop, specs.iter().find(|s| s.name() == name)) {
            least = LEAST_GRACE;
            let ip = job.ips.first().map(String::as_str);
            if let Err(e) = hooks::run(&self.shared.runtime, hook, &spec.container, id, ip, Some(grace)).await
            {
                tracing::debug!(pod = job.pod.metadata.name, container = name, "preStop hook: {e}");
                self.say(job, Some(name), Kind::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
        }
        let left = grace.saturating_sub(begun.elapsed());
        if let Some(time) = gate::drain_time(&job.pod, &self.shared.facts, left)
            && tokio::time::timeout(time, job.drained.cancelled()).await.is_err()
        {
            let message = "Some node has not acknowledged in time that new connections go elsewhere";
            self.say(job, Some(name), Kind::Warning, "NotDrained", message);
        }
        let left = grace.saturating_sub(begun.elapsed()).max(least);
        self.shared.runtime.stop_container(id, left).await
    }
}

/// A duration in the style of Go, to the millisecond.
fn millis(d: Duration) -> String {
    if d < Duration::from_secs(1) {
        format!("{}ms", d.as_millis())
    } else {
        format!("{:.3}s", d.as_secs_f64())
    }
}

/// Deletes the pod's API object for good, if it is still this very pod.
async fn delete(client: &Client, pod: &Pod) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => Ok(()),
        Err(e) => Err(e),
    }
}
