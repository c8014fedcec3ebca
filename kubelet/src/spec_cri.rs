//! From a pod's spec to CRI: sandbox and container configurations. PURE.

use crate::config::Checked;
use crate::cri::keys;
use crate::pod::{Role, Spec, grace_period, spec_hash};
use crate::{dns, resources};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, SELinuxOptions, SeccompProfile};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Paths below /proc and /sys that containers do not see, unless privileged.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths below /proc that containers cannot write, unless privileged.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn text(o: Option<&String>) -> String {
    o.cloned().unwrap_or_default()
}

fn int(v: Option<i64>) -> Option<cri::Int64Value> {
    v.map(|value| cri::Int64Value { value })
}

/// The directory of a pod's logs.
pub(crate) fn log_dir(root: &Path, pod: &Pod) -> PathBuf {
    let m = &pod.metadata;
    root.join(format!("{}_{}_{}", text(m.namespace.as_ref()), text(m.name.as_ref()), text(m.uid.as_ref())))
}

fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let m = &pod.metadata;
    HashMap::from([
        (keys::POD_NAME.to_owned(), text(m.name.as_ref())),
        (keys::POD_NAMESPACE.to_owned(), text(m.namespace.as_ref())),
        (keys::POD_UID.to_owned(), text(m.uid.as_ref())),
    ])
}

/// The configuration of a pod's sandbox.
pub(crate) fn sandbox(
    pod: &Pod,
    config: &Checked,
    host_dns: &cri::DnsConfig,
    attempt: u32,
) -> cri::PodSandboxConfig {
    let spec = pod.spec.as_ref();
    let m = &pod.metadata;
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let cluster = dns::Cluster { servers: &config.cluster_dns, domain: &config.cluster_domain };
    let mut labels: HashMap<_, _> = m.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.extend(pod_labels(pod));
    let context = spec.and_then(|s| s.security_context.as_ref());
    let sysctls = context.into_iter().flat_map(|c| c.sysctls.iter().flatten());
    let containers = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let privileged = containers.clone().any(is_privileged);
    let ports =
        containers.flat_map(|c| c.ports.iter().flatten()).filter(|p| p.host_port.is_some_and(|h| h > 0));
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: text(m.name.as_ref()),
            uid: text(m.uid.as_ref()),
            namespace: text(m.namespace.as_ref()),
            attempt,
        }),
        hostname: if host_network {
            String::new()
        } else {
            // One that cannot be had is refused before the sandbox is made; see `sandbox_warnings`.
            dns::nodename(pod, &config.cluster_domain).unwrap_or_default()
        },
        log_directory: log_dir(&config.log_dir, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns::resolver(pod, cluster, host_dns).0),
        port_mappings: if host_network {
            Vec::new()
        } else {
            ports
                .map(|p| cri::PortMapping {
                    protocol: match p.protocol.as_deref() {
                        Some("UDP") => cri::Protocol::Udp,
                        Some("SCTP") => cri::Protocol::Sctp,
                        _ => cri::Protocol::Tcp,
                    } as i32,
                    container_port: p.container_port,
                    host_port: p.host_port.unwrap_or(0),
                    host_ip: text(p.host_ip.as_ref()),
                })
                .collect()
        },
        labels,
        annotations: m.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/pod{}", config.cgroup_parent, text(m.uid.as_ref())),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                selinux_options: context.and_then(|c| c.se_linux_options.as_ref()).map(selinux),
                run_as_user: int(context.and_then(|c| c.run_as_user)),
                run_as_group: int(context.and_then(|c| c.run_as_group)),
                supplemental_groups: groups(pod),
                privileged,
                seccomp: Some(seccomp(None, context.and_then(|c| c.seccomp_profile.as_ref()), true)),
                ..Default::default()
            }),
            sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
            resources: Some(resources::pod(pod)),
            ..Default::default()
        }),
        windows: None,
    }
}

/// What a pod asks of its names that it does not get.
///
/// # Errors
/// What it cannot run without, in the kubelet's words.
pub(crate) fn sandbox_warnings(
    pod: &Pod,
    config: &Checked,
    host_dns: &cri::DnsConfig,
) -> Result<Vec<dns::Warning>, String> {
    if pod.spec.as_ref().and_then(|s| s.host_network) != Some(true) {
        dns::nodename(pod, &config.cluster_domain)?;
    }
    let cluster = dns::Cluster { servers: &config.cluster_dns, domain: &config.cluster_domain };
    Ok(dns::resolver(pod, cluster, host_dns).1)
}

/// Everything that the driver has found out for one container.
pub(crate) struct Prepared {
    pub image_ref: String,
    pub env: BTreeMap<String, String>,
    pub mounts: Vec<cri::Mount>,
    /// Host file of the termination message.
    pub message_file: PathBuf,
    pub attempt: u32,
    pub backoff: i64,
    /// Instance whose process namespace is joined.
    pub target_id: Option<String>,
    /// User of the image: uid, or name.
    pub image_user: (Option<i64>, String),
    pub node_memory: i64,
}

/// The configuration of a container.
///
/// # Errors
/// A message in the kubelet's words when the image's user breaks `runAsNonRoot`.
pub(crate) fn container(
    pod: &Pod,
    spec: &Spec<'_>,
    config: &Checked,
    p: Prepared,
) -> Result<cri::ContainerConfig, String> {
    let c = &*spec.container;
    check_non_root(pod, c, &p)?;
    let expand = |t: &String| crate::env::expand(t, |name| p.env.get(name).cloned());
    let mut annotations = HashMap::from([
        (keys::HASH.to_owned(), spec_hash(c)),
        (keys::RESTART_COUNT.to_owned(), p.attempt.to_string()),
        (keys::BACKOFF.to_owned(), p.backoff.to_string()),
        (keys::GRACE_PERIOD.to_owned(), grace_period(pod).to_string()),
        (keys::MESSAGE_FILE.to_owned(), p.message_file.to_string_lossy().into_owned()),
        (keys::MESSAGE_PATH.to_owned(), message_path(c).to_owned()),
    ]);
    let policy = c.termination_message_policy.as_deref().unwrap_or("File");
    annotations.insert(keys::MESSAGE_POLICY.to_owned(), policy.to_owned());
    let mut labels = pod_labels(pod);
    labels.insert(keys::CONTAINER_NAME.to_owned(), c.name.clone());
    let mut namespace_options = namespaces(pod);
    if let Some(id) = p.target_id {
        namespace_options.pid = cri::NamespaceMode::Target as i32;
        namespace_options.target_id = id;
    }
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: c.name.clone(), attempt: p.attempt }),
        image: Some(cri::ImageSpec {
            image: p.image_ref,
            user_specified_image: text(c.image.as_ref()),
            ..Default::default()
        }),
        command: c.command.iter().flatten().map(expand).collect(),
        args: c.args.iter().flatten().map(expand).collect(),
        working_dir: text(c.working_dir.as_ref()),
        envs: p.env.iter().map(|(k, v)| cri::KeyValue { key: k.clone(), value: v.clone() }).collect(),
        mounts: p.mounts,
        labels,
        annotations,
        log_path: format!("{}/{}.log", c.name, p.attempt),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container(pod, c, p.node_memory)),
            security_context: Some(security(pod, c, config, namespace_options)),
        }),
        ..Default::default()
    })
}

/// Where the container finds its termination message file.
pub(crate) fn message_path(c: &Container) -> &str {
    c.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}

fn is_privileged(c: &Container) -> bool {
    c.security_context.as_ref().and_then(|s| s.privileged) == Some(true)
}

fn security(
    pod: &Pod,
    c: &Container,
    config: &Checked,
    namespace_options: cri::NamespaceOption,
) -> cri::LinuxContainerSecurityContext {
    let own = c.security_context.as_ref();
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let privileged = is_privileged(c);
    let unmasked = privileged || own.and_then(|o| o.proc_mount.as_deref()) == Some("Unmasked");
    let list = |l: &[&str]| if unmasked { Vec::new() } else { l.iter().map(|s| (*s).to_owned()).collect() };
    let capabilities = own.and_then(|o| o.capabilities.as_ref());
    let strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    let profile = own
        .and_then(|o| o.seccomp_profile.as_ref())
        .or_else(|| context.and_then(|c| c.seccomp_profile.as_ref()));
    cri::LinuxContainerSecurityContext {
        capabilities: capabilities.map(|c| cri::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespace_options),
        selinux_options: own
            .and_then(|o| o.se_linux_options.as_ref())
            .or_else(|| context.and_then(|c| c.se_linux_options.as_ref()))
            .map(selinux),
        run_as_user: int(run_as_user(pod, c)),
        run_as_group: int(own.and_then(|o| o.run_as_group).or_else(|| context.and_then(|c| c.run_as_group))),
        readonly_rootfs: own.and_then(|o| o.read_only_root_filesystem) == Some(true),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: if strict {
            cri::SupplementalGroupsPolicy::Strict as i32
        } else {
            cri::SupplementalGroupsPolicy::Merge as i32
        },
        no_new_privs: !privileged && own.and_then(|o| o.allow_privilege_escalation) == Some(false),
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        seccomp: Some(seccomp(Some(privileged), profile, config.seccomp_default)),
        ..Default::default()
    }
}

fn run_as_user(pod: &Pod, c: &Container) -> Option<i64> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = c.security_context.as_ref().and_then(|s| s.run_as_user);
    own.or_else(|| context.and_then(|c| c.run_as_user))
}

fn check_non_root(pod: &Pod, c: &Container, p: &Prepared) -> Result<(), String> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = c.security_context.as_ref().and_then(|s| s.run_as_non_root);
    if own.or_else(|| context.and_then(|c| c.run_as_non_root)) != Some(true) {
        return Ok(());
    }
    let title = |what: String| format!("{what} (pod: \"{}\", container: {})", pod_ref(pod), c.name);
    match (run_as_user(pod, c), &p.image_user) {
        (Some(0), _) => Err(title("container's runAsUser breaks non-root policy".into())),
        (Some(_), _) => Ok(()),
        (None, (Some(0), _)) => Err(title("container has runAsNonRoot and image will run as root".into())),
        (None, (Some(_), _)) => Ok(()),
        (None, (None, name)) if name.is_empty() || name == "root" => {
            Err(title("container has runAsNonRoot and image will run as root".into()))
        }
        (None, (None, name)) => Err(title(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ))),
    }
}

fn pod_ref(pod: &Pod) -> String {
    let m = &pod.metadata;
    format!("{}_{}({})", text(m.name.as_ref()), text(m.namespace.as_ref()), text(m.uid.as_ref()))
}

fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = pod.spec.as_ref();
    let is = |f: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| spec.and_then(f) == Some(true);
    let node_or = |node: bool, other: cri::NamespaceMode| {
        if node { cri::NamespaceMode::Node as i32 } else { other as i32 }
    };
    let pid = if is(|s| s.share_process_namespace) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: node_or(is(|s| s.host_network), cri::NamespaceMode::Pod),
        pid: node_or(is(|s| s.host_pid), pid),
        ipc: node_or(is(|s| s.host_ipc), cri::NamespaceMode::Pod),
        ..Default::default()
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let Some(context) = context else { return Vec::new() };
    context.supplemental_groups.iter().flatten().copied().chain(context.fs_group).collect()
}

fn seccomp(
    privileged: Option<bool>,
    profile: Option<&SeccompProfile>,
    default: bool,
) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let of = |t: ProfileType| cri::SecurityProfile { profile_type: t as i32, localhost_ref: String::new() };
    if privileged == Some(true) {
        return of(ProfileType::Unconfined);
    }
    match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => of(ProfileType::RuntimeDefault),
        Some("Localhost") => cri::SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default(),
        },
        Some(_) => of(ProfileType::Unconfined),
        None if default => of(ProfileType::RuntimeDefault),
        None => of(ProfileType::Unconfined),
    }
}

fn selinux(o: &SELinuxOptions) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: text(o.user.as_ref()),
        role: text(o.role.as_ref()),
        r#type: text(o.type_.as_ref()),
        level: text(o.level.as_ref()),
    }
}

/// Whether a container of this role gets probes and hooks.
pub(crate) fn is_long_running(role: Role) -> bool {
    matches!(role, Role::Main | Role::Sidecar)
}
