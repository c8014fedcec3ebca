//! `hawser dns`, and how an agent keeps one running: it outlives the agent, and gives its sockets to the next build.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_dns::config::LOCAL_NETWORKS;
use hawser_dns::control::Incumbent;
use hawser_dns::{Config, Server};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::flags::{AgentFlags, DnsFlags};
use crate::{clients, signals};

/// What the server prints once it answers.
const SERVING: &str = "serving";
/// Shortest and longest wait before a server that ended is started again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A server that lived for so long did not fail at its start.
const STEADY: Duration = Duration::from_secs(60);

fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("dns.sock")
}

/// `hawser dns`.
pub async fn dns(flags: DnsFlags) -> Result<()> {
    let control = control_socket(&flags.run_dir);
    if flags.metrics || flags.stop {
        let found =
            Incumbent::find(&control).await.with_context(|| format!("reading {}", control.display()))?;
        let incumbent = found.with_context(|| format!("{}: nobody serves", control.display()))?;
        if flags.stop {
            return Ok(incumbent.stop().await?);
        }
        print!("{}", incumbent.metrics().await?);
        return Ok(());
    }
    if !flags.fingerprint.is_empty() {
        // Neither the agent's end nor that of its terminal is this process'. Fails only for who leads a session already.
        let _ = nix::unistd::setsid();
    }
    let stop = signals::stop_token()?;
    let kubeconfig = flags.kubeconfig.context("--kubeconfig is missing")?;
    let client = clients::from_kubeconfig(&kubeconfig).await?;
    let local = LOCAL_NETWORKS.iter().filter_map(|net| net.parse().ok()).collect();
    let config = Config {
        listen: flags.listen,
        metrics: flags.metrics_address,
        domain: flags.cluster_domain,
        service_addresses: flags.cluster_dns,
        cluster_ranges: flags.cluster_ranges,
        resolv_conf: Some(flags.resolv_conf).filter(|path| !path.as_os_str().is_empty()),
        stub_domains: flags.stub_domains,
        clients: if flags.allow.is_empty() { local } else { flags.allow },
        control,
        fingerprint: flags.fingerprint,
    };
    let serving = || {
        // The agent that waits for it may have ended.
        let _ = writeln!(std::io::stdout(), "{SERVING}");
    };
    Server::new(config, client)?.run(stop, serving).await.context("DNS server")
}

/// Keeps a node's DNS server running.
pub struct Keeper {
    arguments: Vec<String>,
    fingerprint: String,
    control: PathBuf,
    /// The directory of its cgroup.
    cgroup: PathBuf,
}

impl Keeper {
    /// For a node's addresses; `kubeconfig` is the server's identity, `cgroup` the node's directory in the v2 hierarchy.
    pub fn new(
        flags: &AgentFlags,
        addresses: &[IpAddr],
        service: &[IpAddr],
        kubeconfig: &Path,
        cgroup: &Path,
    ) -> Result<Self> {
        let port = flags.dns.dns_port;
        let at = |ip: &IpAddr, port| SocketAddr::new(*ip, port).to_string();
        let loopback = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let listen: Vec<_> =
            addresses.iter().flat_map(|ip| [at(ip, port), at(&loopback(ip), port)]).collect();
        let metrics: Vec<_> = addresses.iter().map(|ip| at(ip, flags.dns.dns_metrics_port)).collect();
        let service: Vec<_> = service.iter().map(IpAddr::to_string).collect();
        let ranges = flags.services.service_cluster_ip_range.iter().chain(&flags.cluster_cidr);
        let ranges: Vec<_> = ranges.map(ToString::to_string).collect();
        let mut arguments = vec![
            "dns".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--listen={}", listen.join(",")),
            format!("--metrics-address={}", metrics.join(",")),
            format!("--cluster-domain={}", flags.node.cluster_domain),
            format!("--cluster-dns={}", service.join(",")),
            format!("--cluster-range={}", ranges.join(",")),
            format!("--resolv-conf={}", flags.node.resolv_conf.display()),
            format!("--run-dir={}", flags.node.run_dir.display()),
        ];
        arguments.extend(flags.stub_domains.iter().map(|stub| format!("--stub-domain={stub}")));
        let fingerprint = fingerprint(&arguments)?;
        arguments.push(format!("--fingerprint={fingerprint}"));
        let control = control_socket(&flags.node.run_dir);
        Ok(Keeper { arguments, fingerprint, control, cgroup: cgroup.join("dns") })
    }

    /// Keeps a server of this build and these settings running until cancelled. It goes on after that.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut wait = RETRY.0;
        loop {
            let since = tokio::time::Instant::now();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                ended = self.keep() => match ended {
                    Ok(()) => tracing::warn!("the DNS server has ended; it is started again"),
                    Err(error) => tracing::warn!("DNS server: {error:#}"),
                },
            }
            wait = if since.elapsed() > STEADY { RETRY.0 } else { wait };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Finds or starts a server, and waits for its end.
    async fn keep(&self) -> Result<()> {
        let mut child = None;
        let mut incumbent = match self.find().await? {
            Some(incumbent) => {
                tracing::info!(pid = incumbent.hello.pid, "the DNS server runs already");
                incumbent
            }
            None => {
                let child = child.insert(self.start().await?);
                match self.find().await? {
                    Some(incumbent) => incumbent,
                    None => bail!("ended at its start: {}", child.wait().await?),
                }
            }
        };
        incumbent.ended().await;
        if let Some(mut child) = child {
            child.wait().await?;
        }
        Ok(())
    }

    /// The server that runs, if it is as it should be.
    async fn find(&self) -> Result<Option<Incumbent>> {
        let found = Incumbent::find(&self.control).await;
        let found = found.with_context(|| format!("reading {}", self.control.display()))?;
        Ok(found.filter(|incumbent| incumbent.hello.fingerprint == self.fingerprint))
    }

    /// Starts a server and waits until it answers, for which it may have to wait for the API.
    async fn start(&self) -> Result<Child> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("hawser")
            .args(&self.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting it")?;
        if let Some(pid) = child.id() {
            let procs = self.cgroup.join("cgroup.procs");
            std::fs::create_dir_all(&self.cgroup)
                .and_then(|()| std::fs::write(&procs, pid.to_string()))
                .with_context(|| format!("moving it into {}", self.cgroup.display()))?;
        }
        let Some(stdout) = child.stdout.take() else { bail!("it was started without output") };
        let line = BufReader::new(stdout).lines().next_line().await.context("waiting for it")?;
        if line.as_deref() != Some(SERVING) {
            bail!("ended at its start: {}", child.wait().await?);
        }
        Ok(child)
    }
}

/// This program and these arguments. The program is told by its file, which is another one after an upgrade.
fn fingerprint(arguments: &[String]) -> Result<String> {
    let program = std::fs::metadata("/proc/self/exe").context("looking at this program")?;
    let mut hasher = DefaultHasher::new();
    arguments.hash(&mut hasher);
    (program.dev(), program.ino(), program.size(), program.mtime(), program.mtime_nsec()).hash(&mut hasher);
    Ok(format!("{}-{:016x}", env!("CARGO_PKG_VERSION"), hasher.finish()))
}
