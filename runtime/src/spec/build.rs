//! From CRI's container configuration and an image to a [`ContainerSpec`]. Pure: what needs the machine (device
//! numbers, profile files, cgroup paths) is given.

use std::path::{Path, PathBuf};

use k8s_cri::v1::{
    ContainerConfig, LinuxContainerSecurityContext, Mount, MountPropagation as CriPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, SecurityProfile, SupplementalGroupsPolicy,
    security_profile::ProfileType,
};

use crate::error::{Error, Result};
use crate::image::manifest::ImageConfig;
use crate::spec::user::UserRequest;
use crate::spec::{
    BindMount, CapabilitySets, CgroupMembership, ContainerSpec, DeviceNode, MountPropagation, PidMode,
    ProcessSpec, RootfsSpec, SeccompProgram, capabilities,
};

/// Paths hidden unless the container is privileged or says otherwise (the defaults of Docker and of the
/// kubelet's `procMount: Default`).
pub const MASKED_PATHS: [&str; 12] = [
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
/// Paths made read-only likewise.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which seccomp filter a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompChoice {
    /// None.
    Unconfined,
    /// The runtime's own.
    Default,
    /// One from a file.
    File(PathBuf),
}

/// Reads the choice: without a profile a privileged container has none, any other the default.
///
/// # Errors
/// `InvalidArgument` for a profile type that does not exist or a Localhost profile without a name.
pub fn seccomp_choice(sc: &LinuxContainerSecurityContext) -> Result<SeccompChoice> {
    // CRI: privileged containers run without a filter.
    if sc.privileged {
        return Ok(SeccompChoice::Unconfined);
    }
    let Some(SecurityProfile { profile_type, localhost_ref }) = &sc.seccomp else {
        return Ok(SeccompChoice::Default);
    };
    match ProfileType::try_from(*profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SeccompChoice::Default),
        Ok(ProfileType::Unconfined) => Ok(SeccompChoice::Unconfined),
        Ok(ProfileType::Localhost) if !localhost_ref.is_empty() => {
            Ok(SeccompChoice::File(localhost_ref.trim_start_matches("localhost/").into()))
        }
        _ => Err(Error::InvalidArgument("seccomp profile without a known type or a name".into())),
    }
}

/// The capability sets a security context asks for.
///
/// # Errors
/// `InvalidArgument` for an unknown name.
pub fn capability_sets(sc: &LinuxContainerSecurityContext) -> Result<CapabilitySets> {
    let c = sc.capabilities.clone().unwrap_or_default();
    capabilities::sets(sc.privileged, &c.add_capabilities, &c.drop_capabilities, &c.add_ambient_capabilities)
        .map_err(|e| Error::InvalidArgument(e.to_string()))
}

/// The sandbox's namespace options.
pub fn sandbox_namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default()
}

/// True when the option names the host's namespace.
pub fn is_host(mode: i32) -> bool {
    NamespaceMode::try_from(mode) == Ok(NamespaceMode::Node)
}

/// What the machine contributes to a spec.
pub struct Surroundings<'a> {
    /// Container id.
    pub id: &'a str,
    /// Host name of the pod.
    pub hostname: &'a str,
    /// Where layers are unpacked.
    pub layers_dir: &'a Path,
    /// Hex diff ids, lowest first.
    pub layers: &'a [String],
    /// The container's directory for its writable layer.
    pub data_dir: &'a Path,
    /// The container's directory in the run directory.
    pub run_dir: &'a Path,
    /// The sandbox's directory: `hosts`, `hostname`, `resolv.conf`, `shm`.
    pub sandbox_dir: &'a Path,
    /// cgroups to join.
    pub cgroups: CgroupMembership,
    /// Device nodes, resolved.
    pub devices: Vec<DeviceNode>,
    /// Filter, compiled.
    pub seccomp: Option<SeccompProgram>,
    /// Soft and hard limit of open files.
    pub open_files: (u64, u64),
}

fn command(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (command, args) = (&config.command, &config.args);
    let parts: Vec<String> = match (command.is_empty(), args.is_empty()) {
        (false, _) => command.iter().chain(args).cloned().collect(),
        (true, false) => image.entrypoint.iter().chain(args).cloned().collect(),
        (true, true) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
    };
    if parts.first().is_none_or(String::is_empty) {
        return Err(Error::InvalidArgument("no command specified".into()));
    }
    Ok(parts)
}

fn bind(m: &Mount) -> Result<BindMount> {
    if m.image.is_some() {
        return Err(Error::Unimplemented("image volumes are not supported".into()));
    }
    if !m.uid_mappings.is_empty() || !m.gid_mappings.is_empty() {
        return Err(Error::Unimplemented("id-mapped mounts are not supported".into()));
    }
    if m.host_path.is_empty() || m.container_path.is_empty() {
        return Err(Error::InvalidArgument("a mount needs a host path and a container path".into()));
    }
    if m.recursive_read_only && (!m.readonly || m.propagation != CriPropagation::PropagationPrivate as i32) {
        return Err(Error::InvalidArgument(
            "a recursively read-only mount must be read-only and private".into(),
        ));
    }
    let propagation = match CriPropagation::try_from(m.propagation) {
        Ok(CriPropagation::PropagationHostToContainer) => MountPropagation::HostToContainer,
        Ok(CriPropagation::PropagationBidirectional) => MountPropagation::Bidirectional,
        Ok(CriPropagation::PropagationPrivate) => MountPropagation::Private,
        Err(_) => return Err(Error::InvalidArgument("unknown mount propagation".into())),
    };
    Ok(BindMount {
        source: m.host_path.clone().into(),
        destination: format!("/{}", m.container_path.trim_start_matches('/')),
        readonly: m.readonly,
        recursive_readonly: m.recursive_read_only,
        propagation,
        restricted: false,
    })
}

/// The mounts of a container: those given, then the sandbox's own files where none was given, outer ones first.
fn mounts(
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
    around: &Surroundings<'_>,
) -> Result<Vec<BindMount>> {
    let mut mounts = config.mounts.iter().map(bind).collect::<Result<Vec<_>>>()?;
    let readonly =
        config.linux.as_ref().and_then(|l| l.security_context.as_ref()).is_some_and(|s| s.readonly_rootfs);
    let shm = if is_host(sandbox_namespaces(sandbox).ipc) {
        PathBuf::from("/dev/shm")
    } else {
        around.sandbox_dir.join("shm")
    };
    let own = [
        ("/etc/hosts", around.sandbox_dir.join("hosts"), readonly),
        ("/etc/hostname", around.sandbox_dir.join("hostname"), readonly),
        ("/etc/resolv.conf", around.sandbox_dir.join("resolv.conf"), readonly),
        ("/dev/shm", shm, false),
    ];
    for (destination, source, readonly) in own {
        if !mounts.iter().any(|m| m.destination.trim_end_matches('/') == destination) {
            mounts.push(BindMount {
                source,
                destination: destination.to_owned(),
                readonly,
                recursive_readonly: false,
                propagation: MountPropagation::Private,
                restricted: destination == "/dev/shm",
            });
        }
    }
    mounts.sort_by_key(|m| m.destination.split('/').filter(|p| !p.is_empty()).count());
    Ok(mounts)
}

fn user(sc: &LinuxContainerSecurityContext, image: &ImageConfig) -> Result<UserRequest> {
    let id = |what: &str, value: i64| {
        u32::try_from(value).map_err(|_| Error::InvalidArgument(format!("{what} {value} is no id")))
    };
    let user = match &sc.run_as_user {
        Some(u) => id("runAsUser", u.value)?.to_string(),
        None if !sc.run_as_username.is_empty() => sc.run_as_username.clone(),
        None => image.user.clone(),
    };
    let group = sc.run_as_group.as_ref().map(|g| id("runAsGroup", g.value)).transpose()?;
    let supplemental =
        sc.supplemental_groups.iter().map(|g| id("supplemental group", *g)).collect::<Result<_>>()?;
    let strict = sc.supplemental_groups_policy == SupplementalGroupsPolicy::Strict as i32;
    Ok(UserRequest { user, group, supplemental, strict })
}

fn pid_mode(options: Option<&NamespaceOption>) -> Result<PidMode> {
    let Some(options) = options else { return Ok(PidMode::Container) };
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Pod) => Ok(PidMode::Pod),
        Ok(NamespaceMode::Container) => Ok(PidMode::Container),
        Ok(NamespaceMode::Node) => Ok(PidMode::Host),
        Ok(NamespaceMode::Target) if !options.target_id.is_empty() => {
            Ok(PidMode::Target(options.target_id.clone()))
        }
        _ => Err(Error::InvalidArgument("unknown PID namespace mode, or no target for it".into())),
    }
}

/// Where a container's log goes.
pub fn log_path(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> Option<PathBuf> {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return None;
    }
    Some(Path::new(&sandbox.log_directory).join(&config.log_path))
}

/// Puts a container's spec together.
///
/// # Errors
/// `InvalidArgument` or `Unimplemented` for what cannot be had.
pub fn container(
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
    image: &ImageConfig,
    around: Surroundings<'_>,
) -> Result<ContainerSpec> {
    let linux = config.linux.clone().unwrap_or_default();
    let sc = linux.security_context.unwrap_or_default();
    let namespaces = sandbox_namespaces(sandbox);
    if namespaces.userns_options.as_ref().is_some_and(|u| u.mode == NamespaceMode::Pod as i32) {
        return Err(Error::Unimplemented("user namespaces are not supported".into()));
    }
    let apparmor = sc.apparmor.as_ref().map(|a| a.profile_type);
    if apparmor == Some(ProfileType::Localhost as i32) {
        return Err(Error::Unimplemented("AppArmor profiles are not supported".into()));
    }
    let huge = linux.resources.as_ref().is_some_and(|r| r.hugepage_limits.iter().any(|l| l.limit > 0));
    if huge {
        return Err(Error::Unimplemented("limits of huge pages are not supported".into()));
    }
    if !config.cdi_devices.is_empty() {
        return Err(Error::Unimplemented("CDI devices are not supported".into()));
    }
    let mut env = vec![format!("HOSTNAME={}", around.hostname)];
    env.extend(image.env.iter().cloned());
    env.extend(config.envs.iter().map(|kv| format!("{}={}", kv.key, kv.value)));
    if env.iter().any(|kv| kv.contains('\0')) {
        return Err(Error::InvalidArgument("an environment variable holds a NUL byte".into()));
    }
    let cwd = [&config.working_dir, &image.working_dir].into_iter().find(|d| !d.is_empty());
    let process = ProcessSpec {
        args: command(config, image)?,
        env,
        cwd: cwd.cloned().unwrap_or_else(|| "/".into()),
        tty: config.tty,
        user: user(&sc, image)?,
        capabilities: capability_sets(&sc)?,
        no_new_privileges: sc.no_new_privs,
        seccomp: around.seccomp.clone(),
        rlimits: vec![(libc::RLIMIT_NOFILE, around.open_files.0, around.open_files.1)],
        oom_score_adj: linux
            .resources
            .as_ref()
            .map(|r| i32::try_from(r.oom_score_adj.clamp(-1000, 1000)).unwrap_or(0)),
    };
    let defaults = sc.masked_paths.is_empty() && sc.readonly_paths.is_empty();
    let paths = |given: &[String], default: &[&str]| -> Vec<String> {
        match (sc.privileged, defaults) {
            (true, _) => Vec::new(),
            (false, true) => default.iter().map(|p| (*p).to_owned()).collect(),
            (false, false) => given.to_vec(),
        }
    };
    Ok(ContainerSpec {
        id: around.id.to_owned(),
        process,
        rootfs: RootfsSpec {
            layers_dir: around.layers_dir.to_owned(),
            lower: around.layers.iter().rev().map(|l| format!("{l}/fs")).collect(),
            upper: around.data_dir.join("upper"),
            work: around.data_dir.join("work"),
            mount_point: around.run_dir.join("rootfs"),
            readonly: sc.readonly_rootfs,
        },
        mounts: mounts(config, sandbox, &around)?,
        devices: around.devices,
        masked_paths: paths(&sc.masked_paths, &MASKED_PATHS),
        readonly_paths: paths(&sc.readonly_paths, &READONLY_PATHS),
        privileged: sc.privileged,
        pid_mode: pid_mode(sc.namespace_options.as_ref().or(Some(&namespaces)))?,
        host_ipc: is_host(namespaces.ipc),
        cgroups: around.cgroups,
        log_path: log_path(sandbox, config),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{Int64Value, LinuxContainerConfig};

    fn around<'a>() -> Surroundings<'a> {
        Surroundings {
            id: "c",
            hostname: "h",
            layers_dir: Path::new("/layers"),
            layers: &[],
            data_dir: Path::new("/data"),
            run_dir: Path::new("/run"),
            sandbox_dir: Path::new("/sandbox"),
            cgroups: CgroupMembership::default(),
            devices: Vec::new(),
            seccomp: None,
            open_files: (1, 2),
        }
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig { entrypoint: strings(&["e"]), cmd: strings(&["c"]), ..ImageConfig::default() }
    }

    #[test]
    fn command_and_args_override_the_image_as_kubernetes_documents() {
        let cases: &[(&[&str], &[&str], &[&str])] = &[
            (&[], &[], &["e", "c"]),
            (&["x"], &[], &["x"]),
            (&[], &["y"], &["e", "y"]),
            (&["x"], &["y"], &["x", "y"]),
        ];
        for (cmd, args, want) in cases {
            let config = ContainerConfig { command: strings(cmd), args: strings(args), ..Default::default() };
            assert_eq!(command(&config, &image()).ok(), Some(strings(want)));
        }
        assert!(command(&ContainerConfig::default(), &ImageConfig::default()).is_err());
    }

    #[test]
    fn own_files_give_way_and_outer_mounts_come_first() -> Result<()> {
        let mount = |host: &str, path: &str| Mount {
            host_path: host.into(),
            container_path: path.into(),
            ..Default::default()
        };
        let config = ContainerConfig {
            mounts: vec![mount("/x", "/a/b/c"), mount("/h", "/etc/hosts"), mount("/y", "a")],
            ..Default::default()
        };
        let spec = container(&config, &PodSandboxConfig::default(), &image(), around())?;
        let got: Vec<_> =
            spec.mounts.iter().map(|m| (m.destination.as_str(), m.source.display().to_string())).collect();
        let want = [
            ("/a", "/y"),
            ("/etc/hosts", "/h"),
            ("/etc/hostname", "/sandbox/hostname"),
            ("/etc/resolv.conf", "/sandbox/resolv.conf"),
            ("/dev/shm", "/sandbox/shm"),
            ("/a/b/c", "/x"),
        ];
        assert_eq!(got, want.map(|(d, s)| (d, s.to_owned())));
        assert_eq!(spec.process.env, ["HOSTNAME=h"]);
        assert_eq!(spec.pid_mode, PidMode::Pod, "CRI's zero value is POD");
        Ok(())
    }

    #[test]
    fn security_context() -> Result<()> {
        let sc = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 5 }),
            run_as_group: Some(Int64Value { value: 6 }),
            privileged: true,
            namespace_options: Some(NamespaceOption {
                pid: NamespaceMode::Container as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(seccomp_choice(&sc)?, SeccompChoice::Unconfined);
        let linux = LinuxContainerConfig { security_context: Some(sc), resources: None };
        let config = ContainerConfig { linux: Some(linux), ..Default::default() };
        let spec = container(&config, &PodSandboxConfig::default(), &image(), around())?;
        assert_eq!((spec.process.user.user.as_str(), spec.process.user.group), ("5", Some(6)));
        assert!(spec.masked_paths.is_empty() && spec.readonly_paths.is_empty());
        assert_eq!(spec.pid_mode, PidMode::Container);
        let negative = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: -1 }),
            ..Default::default()
        };
        assert!(user(&negative, &image()).is_err());
        Ok(())
    }
}
