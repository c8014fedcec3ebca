//! Reading a pod's spec: the containers with their roles, grace periods, hashes.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, Probe};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the main containers.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, then lives with the pod (KEP-753).
    Sidecar,
    /// A regular container.
    Main,
    /// Added to a running pod for debugging; runs once.
    Ephemeral,
}

/// A container of a pod's spec.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// What it is to the pod.
    pub role: Role,
    /// Its spec. Ephemeral containers are read as ordinary ones.
    pub container: Cow<'a, Container>,
    /// The container whose process namespace an ephemeral container joins.
    pub target: Option<&'a str>,
}

impl Spec<'_> {
    /// The container's name.
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// Startup, readiness and liveness probe.
    pub fn probes(&self) -> [Option<&Probe>; 3] {
        let c = &self.container;
        [c.startup_probe.as_ref(), c.readiness_probe.as_ref(), c.liveness_probe.as_ref()]
    }
}

/// All containers: init containers in order, main ones, ephemeral ones.
pub fn containers(pod: &Pod) -> Vec<Spec<'_>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|c| Spec {
        role: if c.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init },
        container: Cow::Borrowed(c),
        target: None,
    });
    let main =
        spec.containers.iter().map(|c| Spec { role: Role::Main, container: Cow::Borrowed(c), target: None });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| Spec {
        role: Role::Ephemeral,
        container: Cow::Owned(plain(c)),
        target: c.target_container_name.as_deref().filter(|t| !t.is_empty()),
    });
    init.chain(main).chain(ephemeral).collect()
}

/// An ephemeral container read as an ordinary one.
fn plain(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

/// Hash of the fields of a container whose change restarts it: those that the API lets change, which is the
/// image.
pub fn spec_hash(c: &Container) -> String {
    let mut h = Sha256::new();
    h.update(c.name.as_bytes());
    h.update([0]);
    h.update(c.image.as_deref().unwrap_or_default().as_bytes());
    hex::encode(&h.finalize()[..8])
}

/// Seconds between the wish to end the pod and SIGKILL: the delete request's, else the spec's, else 30. At least
/// 1, so that a forced deletion still lets the runtime do its work.
pub fn grace_period(pod: &Pod) -> i64 {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    asked.or(spec).unwrap_or(30).max(1)
}
