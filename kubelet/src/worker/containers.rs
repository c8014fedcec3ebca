//! Creating and starting a container.

use super::act::{Hands, Job};
use crate::cri::CriError;
use crate::downward::Facts;
use crate::events::Kind;
use crate::pod::{Outcome, Spec, State, containers, grace_period};
use crate::spec_cri::{self, Prepared};
use crate::volumes::open_subpath;
use crate::{dns, env, hooks};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::VolumeMount;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What to start.
pub(super) struct Start<'a> {
    pub name: &'a str,
    pub sandbox_id: &'a str,
    pub attempt: u32,
    pub backoff: i64,
    pub adopt: Option<&'a str>,
}

/// Reason and message of a failure.
struct StartError(&'static str, String);

fn config_error(message: impl ToString) -> StartError {
    StartError("CreateContainerConfigError", message.to_string())
}

impl Hands {
    /// Creates (or adopts) a container, starts it and runs its postStart hook.
    pub async fn start_container(&self, job: &Job, start: Start<'_>) -> Outcome {
        match self.try_start(job, &start).await {
            Ok(()) => Outcome::Done,
            Err(StartError(reason, message)) => {
                if reason != "PostStartHookError" {
                    self.say(job, Some(start.name), Kind::Warning, "Failed", format!("Error: {message}"));
                }
                Outcome::Failed(reason.into(), message)
            }
        }
    }

    async fn try_start(&self, job: &Job, start: &Start<'_>) -> Result<(), StartError> {
        let specs = containers(&job.pod);
        let spec = specs
            .iter()
            .find(|s| s.name() == start.name)
            .ok_or_else(|| config_error(format!("container {} is not in the pod", start.name)))?;
        // Descriptors of subPath mounts stay open until the runtime has used them.
        let mut held = Vec::new();
        let id = match start.adopt {
            Some(id) => id.to_owned(),
            None => self.create(job, start, spec, &mut held).await?,
        };
        let request = cri::StartContainerRequest { container_id: id.clone() };
        if let Err(e) = self.shared.runtime.runtime().start_container(request).await {
            return Err(StartError("RunContainerError", CriError::from(e).message().to_owned()));
        }
        drop(held);
        self.say(job, Some(start.name), Kind::Normal, "Started", format!("Started container {}", start.name));
        let hook = spec.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
        let Some(hook) = hook else { return Ok(()) };
        let ip = job.ips.first().map(String::as_str);
        let hook = hooks::run(&self.shared.runtime, hook, &spec.container, &id, ip, None);
        let done = tokio::select! {
            done = hook => done,
            // The container is stopped along with its pod.
            () = job.ending.cancelled() => Ok(()),
        };
        if let Err(e) = done {
            tracing::debug!(pod = job.pod.metadata.name, container = start.name, "postStart hook: {e}");
            self.say(job, Some(start.name), Kind::Warning, "FailedPostStartHook", "PostStartHook failed");
            self.say(job, Some(start.name), Kind::Normal, "Killing", "FailedPostStartHook");
            if let Err(e) = self.stop_container(job, &id, start.name, grace_period(&job.pod), None).await {
                tracing::warn!(container = start.name, "{e}");
            }
            return Err(StartError("PostStartHookError", "PostStartHook failed".into()));
        }
        Ok(())
    }

    async fn create(
        &self,
        job: &Job,
        start: &Start<'_>,
        spec: &Spec<'_>,
        held: &mut Vec<crate::volumes::SubPath>,
    ) -> Result<String, StartError> {
        let c = &*spec.container;
        let shared = &self.shared;
        let facts = Facts {
            pod_ips: &job.ips,
            host_ips: &shared.facts.host_ips,
            allocatable: Some(&shared.allocatable),
        };
        let sources = self.objects.for_container(&job.pod, c).await.map_err(config_error)?;
        let vars = env::build(&job.pod, c, &sources, &facts).map_err(config_error)?;
        let (_, image_ref) = job.images.get(start.name).cloned().unwrap_or_default();
        let image = shared.images.find(&image_ref).await.map_err(|e| config_error(e.message))?;
        let pod_dir = shared.roots.pod_dir(job.uid());
        let message_file = message_file(&pod_dir, c, start.attempt).map_err(config_error)?;
        let mut mounts = Vec::new();
        for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
            let place = pod_dir.join("volume-subpaths").join(&m.name).join(&c.name).join(i.to_string());
            mounts.push(self.mount(job, m, &vars, &place, held).map_err(config_error)?);
        }
        if !mounts.iter().any(|m| m.container_path == "/etc/hosts") {
            let hosts = self.hosts_file(job, &pod_dir).map_err(config_error)?;
            mounts.push(bind("/etc/hosts", &hosts));
        }
        mounts.push(bind(spec_cri::message_path(c), &message_file));
        let target_id = spec.target.and_then(|t| {
            let mut found = job.observed.containers.iter().filter(|i| i.name == t);
            found.find(|i| matches!(i.state, State::Running(_))).map(|i| i.id.clone())
        });
        if let (Some(target), None) = (spec.target, &target_id) {
            return Err(config_error(format!("unable to find target container {target}")));
        }
        let prepared = Prepared {
            image_ref,
            env: vars,
            mounts,
            message_file,
            attempt: start.attempt,
            backoff: start.backoff,
            target_id,
            image_user: image.unwrap_or_default().user,
            node_memory: shared.node_memory,
        };
        let config = spec_cri::container(&job.pod, spec, &shared.config, prepared).map_err(config_error)?;
        let logs = spec_cri::log_dir(&shared.config.log_dir, &job.pod).join(&c.name);
        tokio::fs::create_dir_all(&logs).await.map_err(config_error)?;
        let attempt =
            job.observed.sandboxes.iter().find(|s| s.id == start.sandbox_id).map_or(0, |s| s.attempt);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: start.sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(spec_cri::sandbox(&job.pod, &shared.config, &shared.host_dns, attempt)),
        };
        let answer = shared.runtime.runtime().create_container(request).await;
        let id = answer
            .map_err(|e| StartError("CreateContainerError", CriError::from(e).message().to_owned()))?
            .into_inner()
            .container_id;
        self.say(job, Some(&c.name), Kind::Normal, "Created", format!("Created container: {}", c.name));
        Ok(id)
    }

    fn mount(
        &self,
        job: &Job,
        m: &VolumeMount,
        vars: &BTreeMap<String, String>,
        place: &Path,
        held: &mut Vec<crate::volumes::SubPath>,
    ) -> Result<cri::Mount, String> {
        let volumes = job.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        let volume = volumes
            .iter()
            .find(|v| v.name == m.name)
            .ok_or_else(|| format!("volume {} of mount {} is not in the pod", m.name, m.mount_path))?;
        let dir = self
            .shared
            .roots
            .host_path(job.uid(), volume)
            .ok_or_else(|| format!("volume {} is not supported by this node", m.name))?;
        let sub = match (&m.sub_path, &m.sub_path_expr) {
            (Some(s), _) if !s.is_empty() => Some(s.clone()),
            (_, Some(e)) if !e.is_empty() => {
                let text = env::expand(e, |name| vars.get(name).cloned());
                if text.contains("$(") {
                    return Err(format!(
                        "failed to expand subPath for volume {}: missing variable in {e:?}",
                        m.name
                    ));
                }
                Some(text)
            }
            _ => None,
        };
        let host_path = match sub {
            None => dir,
            Some(sub) => {
                let fail = |e| format!("failed to prepare subPath for volumeMount \"{}\": {e}", m.name);
                let open = open_subpath(&dir, &sub, 0o750).map_err(fail)?;
                if self.shared.roots.tmpfs {
                    open.mount(place).map_err(fail)?;
                    place.to_owned()
                } else {
                    let path = open.host_path();
                    held.push(open);
                    path
                }
            }
        };
        let propagation = match m.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        // What the kubelet writes itself is not for containers to change.
        let written = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        Ok(cri::Mount {
            container_path: absolute(&m.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: m.read_only == Some(true) || written,
            propagation: propagation as i32,
            recursive_read_only: m.recursive_read_only.as_deref() == Some("Enabled"),
            ..Default::default()
        })
    }

    /// Writes the pod's /etc/hosts, unless it is as it should be.
    fn hosts_file(&self, job: &Job, pod_dir: &Path) -> io::Result<PathBuf> {
        let host_network = job.pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        let node_hosts = host_network.then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let domain = &self.shared.config.cluster_domain;
        let text = dns::hosts_file(&job.pod, &job.ips, domain, node_hosts.as_deref());
        let path = pod_dir.join("etc-hosts");
        if std::fs::read_to_string(&path).is_ok_and(|t| t == text) {
            return Ok(path);
        }
        std::fs::create_dir_all(pod_dir)?;
        // Written in place: containers that run have this very file mounted.
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn bind(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: absolute(container_path),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// Makes the empty file that an instance may leave its termination message in.
fn message_file(
    pod_dir: &Path,
    c: &k8s_openapi::api::core::v1::Container,
    attempt: u32,
) -> io::Result<PathBuf> {
    let dir = pod_dir.join("containers").join(&c.name);
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(attempt.to_string());
    std::fs::write(&path, "")?;
    // Any user in the container may write it.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    // Messages of instances that are gone are of no use.
    for entry in std::fs::read_dir(&dir)?.filter_map(Result::ok) {
        let old = entry.file_name().to_string_lossy().parse::<u32>().is_ok_and(|n| n + 2 < attempt);
        if old {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(path)
}
