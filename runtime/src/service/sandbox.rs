//! Pod sandboxes: making, stopping, removing.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{ContainerEventType, DnsConfig, PodSandboxConfig, RunPodSandboxRequest};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::io::AsyncReadExt;

use super::Inner;
use super::shim_client::ShimClient;
use super::store::{STATE, Sandbox, SandboxRecord, sandbox_name};
use crate::cgroup::limits::Resources;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::image::pull::blocking;
use crate::network::{PodNetworkRequest, PortMapping, Protocol};
use crate::shim;
use crate::shim::proto::Request;
use crate::spec::SandboxSpec;
use crate::spec::build::{is_host, sandbox_namespaces};

/// Size of a pod's `/dev/shm`.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";
/// How long a new shim may take to make its namespaces.
const SHIM_START: Duration = Duration::from_secs(20);
/// How long a container that has been killed may take to be gone.
pub const KILL_WAIT: Duration = Duration::from_secs(20);

/// A new id: 64 hex digits.
pub fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Kernel parameters that are namespaced with a pod: `kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`
/// with its IPC namespace, `net.*` with its network namespace.
fn check_sysctl(key: &str, host_network: bool, host_ipc: bool) -> Result<()> {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    let ipc =
        ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| key.starts_with(p)) || key == "kernel.sem";
    let net = key.starts_with("net.");
    if !plain || key.contains("..") || !(ipc || net) {
        return Err(Error::InvalidArgument(format!("sysctl {key:?} is not of a pod's namespaces")));
    }
    if (net && host_network) || (ipc && host_ipc) {
        return Err(Error::InvalidArgument(format!("sysctl {key:?} would change the host's namespace")));
    }
    Ok(())
}

/// The contents of `resolv.conf` (`resolv.conf(5)`).
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// The contents of `hosts` for a pod with addresses of its own.
fn hosts(hostname: &str, ips: &[String]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        text += &format!("{ip}\t{hostname}\n");
    }
    text
}

/// The pod's cgroup below the runtime's root.
fn pod_group(config: &PodSandboxConfig) -> PathBuf {
    let parent = config.linux.as_ref().map(|l| l.cgroup_parent.as_str()).unwrap_or_default();
    if parent.is_empty() {
        let uid = config.metadata.as_ref().map(|m| m.uid.as_str()).unwrap_or_default();
        return Path::new("kubepods").join(format!("pod{}", uid.replace('/', "_")));
    }
    parent.trim_start_matches('/').into()
}

fn network_request(r: &SandboxRecord, netns: PathBuf, cgroup: Option<PathBuf>) -> PodNetworkRequest {
    let m = r.config.metadata.clone().unwrap_or_default();
    let port = |p: i32| u16::try_from(p).ok().filter(|p| *p != 0);
    let mappings = r.config.port_mappings.iter().filter_map(|p| {
        Some(PortMapping {
            protocol: match k8s_cri::v1::Protocol::try_from(p.protocol).ok()? {
                k8s_cri::v1::Protocol::Tcp => Protocol::Tcp,
                k8s_cri::v1::Protocol::Udp => Protocol::Udp,
                k8s_cri::v1::Protocol::Sctp => Protocol::Sctp,
            },
            container_port: port(p.container_port)?,
            // Without a host port there is nothing to map.
            host_port: port(p.host_port)?,
            host_ip: p.host_ip.parse().ok().filter(|ip: &std::net::IpAddr| !ip.is_unspecified()),
        })
    });
    PodNetworkRequest {
        sandbox_id: r.id.clone(),
        pod_namespace: m.namespace,
        pod_name: m.name,
        pod_uid: m.uid,
        netns,
        hostname: r.hostname.clone(),
        port_mappings: mappings.collect(),
        cgroup,
    }
}

impl Inner {
    /// The directory of a sandbox.
    pub fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.settings.sandboxes().join(id)
    }

    /// The shim of a sandbox.
    pub fn shim(&self, sandbox_id: &str) -> ShimClient {
        ShimClient::new(self.sandbox_dir(sandbox_id))
    }

    /// Writes a sandbox's record.
    pub fn save_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let path = self.sandbox_dir(&record.id).join(STATE);
        fsutil::write_json(&path, record, false).map_err(Error::path("write", &path))
    }

    /// Makes a sandbox: namespaces held by a new shim, and the pod's network.
    pub async fn run_sandbox(self: &Arc<Self>, request: RunPodSandboxRequest) -> Result<String> {
        let config = request
            .config
            .filter(|c| c.metadata.as_ref().is_some_and(|m| !m.name.is_empty() && !m.uid.is_empty()))
            .ok_or_else(|| Error::InvalidArgument("the sandbox needs a name and a UID".into()))?;
        if !request.runtime_handler.is_empty() {
            let handler = request.runtime_handler;
            return Err(Error::InvalidArgument(format!("no runtime handler {handler:?}")));
        }
        let name = sandbox_name(&config);
        let id = new_id();
        self.store.reserve(&name, &id)?;
        match self.make_sandbox(&id, config).await {
            Ok(()) => Ok(id),
            Err(e) => {
                self.store.release(&name);
                Err(e)
            }
        }
    }

    async fn make_sandbox(self: &Arc<Self>, id: &str, config: PodSandboxConfig) -> Result<()> {
        let namespaces = sandbox_namespaces(&config);
        let (host_network, host_ipc) = (is_host(namespaces.network), is_host(namespaces.ipc));
        let linux = config.linux.clone().unwrap_or_default();
        for key in linux.sysctls.keys() {
            check_sysctl(key, host_network, host_ipc)?;
        }
        let hostname = if !config.hostname.is_empty() {
            config.hostname.clone()
        } else {
            let own = nix::unistd::gethostname().map_err(|e| Error::io("read host name")(e.into()))?;
            own.to_string_lossy().into_owned()
        };
        let mut record = SandboxRecord {
            id: id.to_owned(),
            group: pod_group(&config),
            config,
            runtime_handler: String::new(),
            created_at: fsutil::now_nanos(),
            hostname,
            ips: Vec::new(),
            netns: (!host_network).then(|| self.settings.netns().join(id)),
            ready: false,
            networked: false,
            shim_pid: 0,
        };
        if let Err(e) = self.set_up(&mut record, host_network, host_ipc).await {
            self.tear_down(&mut record).await?;
            self.delete_sandbox_files(&record).await?;
            return Err(e);
        }
        record.ready = true;
        self.save_sandbox(&record)?;
        let sandbox = Arc::new(Sandbox::new(record));
        self.store.add_sandbox(Arc::clone(&sandbox));
        tokio::spawn(super::events::watch_shim(Arc::clone(self), sandbox));
        self.tell(id, id, ContainerEventType::ContainerCreatedEvent);
        self.tell(id, id, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }

    async fn set_up(&self, r: &mut SandboxRecord, host_network: bool, host_ipc: bool) -> Result<()> {
        let dir = self.sandbox_dir(&r.id);
        fs::create_dir_all(&dir).map_err(Error::path("create", &dir))?;
        self.save_sandbox(r)?;
        let linux = r.config.linux.clone().unwrap_or_default();
        let mut resources = Resources::from_cri(&linux.resources.unwrap_or_default())?;
        if resources.pids_limit == 0 {
            resources.pids_limit = self.settings.config.pod_pids_limit.unwrap_or(0);
        }
        self.cgroups.create(&r.group, &resources)?;
        if !host_ipc {
            let shm = dir.join("shm");
            fs::create_dir_all(&shm).map_err(Error::path("create", &shm))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
                .map_err(|e| Error::path("mount tmpfs on", &shm)(e.into()))?;
        }
        let mut sysctls: std::collections::BTreeMap<_, _> = linux.sysctls.into_iter().collect();
        if !host_network {
            // As containerd does by default: a pod's own ports need no privilege, and ping works.
            for (key, value) in
                [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
            {
                sysctls.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        let spec = SandboxSpec {
            id: r.id.clone(),
            netns: r.netns.clone(),
            host_ipc,
            hostname: (!host_network).then(|| r.hostname.clone()),
            sysctls,
            containers_dir: self.settings.containers(),
        };
        let spec_path = dir.join(shim::SPEC);
        fsutil::write_json(&spec_path, &spec, false).map_err(Error::path("write", &spec_path))?;
        r.shim_pid = self.spawn_shim(&dir).await?;

        if let Some(netns) = r.netns.clone() {
            r.networked = true;
            self.save_sandbox(r)?;
            let request = network_request(r, netns, self.cgroups.v2_dir(&r.group));
            let status = self
                .network
                .setup(request)
                .await
                .map_err(|e| Error::Failed(format!("set up the pod's network: {e}")))?;
            r.ips = status.ips.iter().map(ToString::to_string).collect();
        }
        let write = |name: &str, text: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, text).map_err(Error::path("write", &path))
        };
        let host_file = |path: &str| fs::read(path).unwrap_or_default();
        match &r.config.dns_config {
            Some(dns) => write("resolv.conf", resolv_conf(dns).as_bytes())?,
            None => write("resolv.conf", &host_file("/etc/resolv.conf"))?,
        }
        write("hostname", format!("{}\n", r.hostname).as_bytes())?;
        if host_network {
            write("hosts", &host_file("/etc/hosts"))
        } else {
            write("hosts", hosts(&r.hostname, &r.ips).as_bytes())
        }
    }

    /// Starts a shim and waits until its namespaces are there.
    async fn spawn_shim(&self, dir: &Path) -> Result<i32> {
        let log_path = dir.join("shim.log");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(Error::path("open", &log_path))?;
        let mut command = std::process::Command::new(self.program_path());
        command.arg0("hawser").arg(shim::SUBCOMMAND).arg(dir).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child =
            tokio::process::Command::from(command).spawn().map_err(Error::io("start the shim"))?;
        let pid = child.id().and_then(|p| i32::try_from(p).ok()).unwrap_or(0);
        let mut answer = String::new();
        let stdout = child.stdout.take();
        // Reaps the shim when it ends while this runtime lives.
        tokio::spawn(async move { child.wait().await });
        if let Some(mut stdout) = stdout {
            tokio::time::timeout(SHIM_START, stdout.read_to_string(&mut answer))
                .await
                .map_err(|_| Error::DeadlineExceeded("the shim did not come up".into()))?
                .map_err(Error::io("read from the shim"))?;
        }
        match answer.trim() {
            "ready" => Ok(pid),
            "" => Err(Error::Failed("the shim died before it was ready".into())),
            problem => Err(Error::Failed(format!("make the pod's namespaces: {problem}"))),
        }
    }

    /// Stops a sandbox: kills its containers, disconnects it, ends its shim. One that is stopped, or gone, is no
    /// error.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.store.sandbox(id) else { return Ok(()) };
        let _held = sandbox.lock.lock().await;
        self.stop_locked(&sandbox).await
    }

    async fn stop_locked(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        let (mut record, was_ready) = {
            let mut r = sandbox.record.lock();
            let was_ready = std::mem::replace(&mut r.ready, false);
            (r.clone(), was_ready)
        };
        self.save_sandbox(&record)?;
        let containers = self.store.containers_of(&record.id);
        let stops = containers.iter().map(|c| async move {
            // One that is being started gets there first; none can begin to, now that the sandbox is not ready.
            let _held = c.lock.lock().await;
            self.stop_container_entry(c, Duration::ZERO).await
        });
        futures::future::try_join_all(stops).await?;
        let torn = self.tear_down(&mut record).await;
        sandbox.record.lock().networked = record.networked;
        self.save_sandbox(&record)?;
        torn?;
        if was_ready {
            self.tell(&record.id, &record.id, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Undoes [`Self::set_up`], however far it came; may be repeated.
    async fn tear_down(&self, r: &mut SandboxRecord) -> Result<()> {
        if r.networked
            && let Some(netns) = r.netns.clone()
        {
            let request = network_request(r, netns, self.cgroups.v2_dir(&r.group));
            self.network
                .teardown(request)
                .await
                .map_err(|e| Error::Failed(format!("tear down the pod's network: {e}")))?;
            r.networked = false;
        }
        // A shim that does not answer has ended already.
        let _ = self.shim(&r.id).call(&Request::Shutdown).await;
        let unmount = |path: &Path| match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
            Err(e) => Err(Error::path("unmount", path)(e.into())),
        };
        if let Some(netns) = &r.netns {
            unmount(netns)?;
            fsutil::remove_file(netns).map_err(Error::path("remove", netns))?;
        }
        unmount(&self.sandbox_dir(&r.id).join("shm"))
    }

    async fn delete_sandbox_files(&self, r: &SandboxRecord) -> Result<()> {
        if !self.store.sandbox_shares_group(r) {
            self.cgroups.remove(&r.group);
        }
        let dir = self.sandbox_dir(&r.id);
        blocking(move || fsutil::remove_tree(&dir).map_err(Error::path("remove", &dir))).await
    }

    /// Removes a sandbox with its containers, stopping what runs. One that is gone is no error.
    pub async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.store.sandbox(id) else { return Ok(()) };
        let _held = sandbox.lock.lock().await;
        self.stop_locked(&sandbox).await?;
        let record = sandbox.record.lock().clone();
        for container in self.store.containers_of(&record.id) {
            self.remove_container_entry(&container).await?;
        }
        self.delete_sandbox_files(&record).await?;
        self.tell(&record.id, &record.id, ContainerEventType::ContainerDeletedEvent);
        self.store.drop_sandbox(&record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_pod_only() {
        let cases = [
            ("net.ipv4.ip_forward", false, false, true),
            ("net.ipv4.ip_forward", true, false, false),
            ("kernel.shmmax", false, false, true),
            ("kernel.shmmax", false, true, false),
            ("kernel.sem", true, false, true),
            ("kernel.panic", false, false, false),
            ("vm.swappiness", false, false, false),
            ("net/../kernel.panic", false, false, false),
            ("net.ipv4.conf.eth0/1.forwarding", false, false, true),
        ];
        for (key, host_network, host_ipc, good) in cases {
            assert_eq!(check_sysctl(key, host_network, host_ipc).is_ok(), good, "{key}");
        }
    }

    #[test]
    fn files_of_a_sandbox() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["a".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a b\nnameserver 10.96.0.10\noptions ndots:5\n");
        assert!(hosts("web-0", &["10.0.0.1".into()]).ends_with("10.0.0.1\tweb-0\n"));
    }
}
