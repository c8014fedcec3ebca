//! Sandboxes and containers in CRI's words.

use std::collections::HashMap;

use k8s_cri::v1::{
    Container as CriContainer, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec,
    LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus,
};

use crate::service::store::{Container, ContainerRecord, Phase, SandboxRecord};
use crate::spec::ExitRecord;
use crate::spec::build::sandbox_namespaces;

/// A sandbox's state.
pub fn sandbox_state(r: &SandboxRecord) -> PodSandboxState {
    if r.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// A sandbox's status.
pub fn sandbox(r: &SandboxRecord) -> PodSandboxStatus {
    let mut ips = r.ips.iter();
    let network = PodSandboxNetworkStatus {
        ip: ips.next().cloned().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip: ip.clone() }).collect(),
    };
    PodSandboxStatus {
        id: r.id.clone(),
        metadata: r.config.metadata.clone(),
        state: sandbox_state(r) as i32,
        created_at: r.created_at,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(sandbox_namespaces(&r.config)) }),
        }),
        labels: r.config.labels.clone(),
        annotations: r.config.annotations.clone(),
        runtime_handler: r.runtime_handler.clone(),
    }
}

/// A sandbox in a list.
pub fn sandbox_item(r: &SandboxRecord) -> PodSandbox {
    PodSandbox {
        id: r.id.clone(),
        metadata: r.config.metadata.clone(),
        state: sandbox_state(r) as i32,
        created_at: r.created_at,
        labels: r.config.labels.clone(),
        annotations: r.config.annotations.clone(),
        runtime_handler: r.runtime_handler.clone(),
    }
}

/// A container's state.
pub fn container_state(phase: &Phase) -> ContainerState {
    match (&phase.start, &phase.exit) {
        (_, Some(_)) => ContainerState::ContainerExited,
        (Some(_), None) => ContainerState::ContainerRunning,
        (None, None) => ContainerState::ContainerCreated,
    }
}

fn reason(exit: &ExitRecord) -> String {
    match (&exit.reason, exit.oom_killed, exit.code) {
        (Some(reason), _, _) => reason.clone(),
        (None, true, _) => "OOMKilled".into(),
        (None, false, 0) => "Completed".into(),
        (None, false, _) => "Error".into(),
    }
}

/// The image as the pod names it.
fn image_spec(r: &ContainerRecord) -> Option<ImageSpec> {
    let mut spec = r.config.image.clone()?;
    if !spec.user_specified_image.is_empty() {
        spec.image.clone_from(&spec.user_specified_image);
    }
    Some(spec)
}

/// A container's status.
pub fn container(c: &Container) -> ContainerStatus {
    let r = c.record.lock().clone();
    let phase = c.phase.borrow().clone();
    let exit = phase.exit.as_ref();
    let user = phase.start.as_ref().map(|s| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: s.user.uid.into(),
            gid: s.user.gid.into(),
            supplemental_groups: s.user.groups.iter().map(|g| i64::from(*g)).collect(),
        }),
    });
    let linux = r.config.linux.as_ref().and_then(|l| l.resources.clone());
    ContainerStatus {
        image: image_spec(&r),
        id: r.id,
        metadata: r.config.metadata,
        state: container_state(&phase) as i32,
        created_at: r.created_at,
        started_at: phase.start.as_ref().map_or(0, |s| s.started_at),
        finished_at: exit.map_or(0, |e| e.finished_at),
        exit_code: exit.map_or(0, |e| e.code),
        image_ref: r.image_ref,
        reason: exit.map(reason).unwrap_or_default(),
        message: exit.and_then(|e| e.message.clone()).unwrap_or_default(),
        labels: r.config.labels,
        annotations: r.config.annotations,
        mounts: r.config.mounts,
        log_path: r.log_path.map(|p| p.display().to_string()).unwrap_or_default(),
        resources: Some(ContainerResources { linux, windows: None }),
        image_id: r.image_id,
        user,
    }
}

/// A container in a list.
pub fn container_item(c: &Container) -> CriContainer {
    let r = c.record.lock().clone();
    let state = container_state(&c.phase.borrow());
    CriContainer {
        image: image_spec(&r),
        id: r.id,
        pod_sandbox_id: r.sandbox_id,
        metadata: r.config.metadata,
        image_ref: r.image_ref,
        state: state as i32,
        created_at: r.created_at,
        labels: r.config.labels,
        annotations: r.config.annotations,
        image_id: r.image_id,
    }
}

/// True when `labels` has everything that `selector` asks for.
pub fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}
