//! The sandbox: a whole cluster on one machine, in network namespaces of its own.
//!
//! The control plane and every node are "hosts": a network namespace each, joined by a bridge in a fabric
//! namespace with no route out. The API server also listens on a socket opened outside (127.0.0.1), so an
//! ordinary shell's `kubectl` reaches it. State is kept in two directories, so that `down` finds all that `up`
//! made even when it is run much later, or after a crash.

mod api;
mod cgroups;
mod demo;
mod net;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use api::Api;
pub use net::{Fabric, Families, Network, node_address, node_address6};
pub use process::Daemon;

use crate::{build, images, setup, target_dir};

const SERVER_HOST: &str = "server";
const API_PORT: u16 = 6443;
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);
const NODES_TIMEOUT: Duration = Duration::from_secs(60);

/// What `up` was asked for.
pub struct Options {
    pub nodes: u8,
    pub demo: bool,
    /// A folder of OCI or docker archives to load on each node.
    pub images: Option<PathBuf>,
    /// Addresses of one family, or of both.
    pub families: Families,
    /// How to build.
    pub profile: build::Profile,
}

/// `cargo xtask up`.
pub fn up(options: &Options) -> Result<()> {
    ensure_root()?;
    if let Some(folder) = &options.images {
        ensure!(folder.is_dir(), "--images {}: not a folder", folder.display());
    }
    setup::run()?;
    let binary = build::hawser(options.profile)?;
    let mut archives = images::build_demo(&build::demo_images_dir())?;
    if let Some(folder) = &options.images {
        archives.extend(archives_of(folder)?);
    }
    let sandbox =
        Sandbox::new("hawser", &target_dir().join("sandbox"), &binary).with_families(options.families);
    let progress = spinner();
    let started = Instant::now();
    let result = sandbox.start(options.nodes, &archives, &|message| progress.set_message(message.to_owned()));
    progress.finish_and_clear();
    let api = result.with_context(|| format!("the logs are in {}", sandbox.logs().display()))?;
    println!("{} nodes are Ready after {:.1} s", options.nodes, started.elapsed().as_secs_f64());
    if options.demo {
        let progress = spinner();
        let result = demo::run(&api, &|message| progress.set_message(message.to_owned()));
        progress.finish_and_clear();
        println!("{}", result?);
    }
    println!("{}", how_to_go_on(&sandbox, options.demo));
    Ok(())
}

/// `cargo xtask down`.
pub fn down() -> Result<()> {
    ensure_root()?;
    Sandbox::new("hawser", &target_dir().join("sandbox"), Path::new("")).remove()
}

fn ensure_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "namespaces, mounts and cgroups need root: run as root");
    Ok(())
}

fn archives_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_file() {
            found.push(fs::canonicalize(path)?);
        }
    }
    ensure!(!found.is_empty(), "--images {}: the folder is empty", folder.display());
    Ok(found)
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(80));
    bar
}

fn how_to_go_on(sandbox: &Sandbox, demo: bool) -> String {
    let mut text = format!(
        "\nGo on with:\n  export KUBECONFIG={}\n  kubectl get nodes -o wide\n",
        sandbox.kubeconfig().display()
    );
    if demo {
        text.push_str("  kubectl get pods -o wide\n  kubectl logs client\n  kubectl exec -it client -- sh\n");
    }
    text.push_str("  cargo xtask down");
    text
}

/// What runs, kept in `state.json`.
#[derive(Default, Serialize, Deserialize)]
struct State {
    /// The daemons by host.
    daemons: BTreeMap<String, Running>,
    /// The port on 127.0.0.1.
    port: u16,
    /// Every cgroup directory that the nodes' own cgroups were made in.
    cgroup_parents: Vec<PathBuf>,
    /// Address families, which a sandbox keeps.
    #[serde(default)]
    families: Families,
}

#[derive(Serialize, Deserialize)]
struct Running {
    daemon: Daemon,
    /// When the binary was built: an older one is restarted.
    binary: SystemTime,
}

/// One sandbox, told from others on the machine by its name.
pub struct Sandbox {
    name: String,
    directory: PathBuf,
    run: PathBuf,
    binary: PathBuf,
    network: Network,
    families: Families,
    fabric: Fabric,
    server_flags: Vec<String>,
    agent_flags: Vec<String>,
}

impl Sandbox {
    /// A sandbox that keeps its data in `directory`, its sockets and namespaces in `/run/hawser-sandbox/NAME`, and
    /// runs `binary`. Nothing happens yet.
    pub fn new(name: &str, directory: &Path, binary: &Path) -> Self {
        let run = Path::new("/run/hawser-sandbox").join(name);
        Sandbox {
            name: name.to_owned(),
            directory: directory.to_path_buf(),
            network: Network::new(run.join("netns")),
            run,
            binary: binary.to_path_buf(),
            families: Families::default(),
            fabric: Fabric::default(),
            server_flags: Vec::new(),
            agent_flags: Vec::new(),
        }
    }

    /// Gives hosts, pods and Services addresses of these families.
    pub fn with_families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Joins hosts in another way than by one link.
    pub fn with_fabric(mut self, fabric: Fabric) -> Self {
        self.fabric = fabric;
        self.network.join_by(fabric);
        self
    }

    /// Gives further flags to every `hawser agent`.
    pub fn with_agent_flags(mut self, flags: &[&str]) -> Self {
        self.agent_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Gives further flags to `hawser server`.
    pub fn with_server_flags(mut self, flags: &[&str]) -> Self {
        self.server_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// The administrator's kubeconfig, for use on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The folder of the daemons' logs.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The run directory of node `number`: its sockets and pins.
    pub fn node_run_dir(&self, number: u8) -> PathBuf {
        self.run.join(node_name(number))
    }

    /// The sandbox's namespaces.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The process of a host: `server` or `node-N`.
    pub fn daemon(&self, host: &str) -> Result<Option<Daemon>> {
        Ok(self.read_state()?.daemons.get(host).map(|running| running.daemon.clone()))
    }

    /// Starts what does not run yet and waits until `nodes` nodes are Ready.
    pub fn start(&self, nodes: u8, archives: &[PathBuf], progress: &dyn Fn(&str)) -> Result<Api> {
        for directory in [&self.directory, &self.logs(), &self.run] {
            fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        let mut state = self.read_state()?;
        let is_new = state.daemons.is_empty();
        ensure!(
            is_new || state.families == self.families,
            "the sandbox runs with other address families: `cargo xtask down` first"
        );
        state.families = self.families;
        state.cgroup_parents = cgroups::own()?;
        self.link_images(archives)?;
        progress("making the network");
        self.network.ensure_fabric()?;
        self.remove_surplus_nodes(&mut state, nodes)?;

        progress("starting the control plane");
        self.network.ensure_host(SERVER_HOST, &self.families.of_server())?;
        self.ensure_server(&mut state)?;
        let api = self.wait_for_server(&state)?;

        progress("starting the nodes");
        let token = self.wait_for_file(&self.directory.join(SERVER_HOST).join("node-token"))?;
        for number in 1..=nodes {
            let host = node_name(number);
            self.network.ensure_host(&host, &self.families.of_node(number))?;
            self.ensure_agent(&mut state, number, token.trim())?;
        }
        self.wait_for_nodes(&state, &api, nodes, progress)?;
        Ok(api)
    }

    /// Starts a host's daemon again after it ended. The data it left is used.
    pub fn restart(&self, host: &str) -> Result<()> {
        let mut state = self.read_state()?;
        if host == SERVER_HOST {
            return self.ensure_server(&mut state);
        }
        let number =
            host.strip_prefix("node-").and_then(|n| n.parse().ok()).context("host: server or node-N")?;
        let token = fs::read_to_string(self.directory.join(SERVER_HOST).join("node-token"))?;
        self.ensure_agent(&mut state, number, token.trim())
    }

    /// Removes every process, mount, cgroup, namespace, pin and file of the sandbox. Nothing happens when there
    /// is none.
    pub fn remove(&self) -> Result<()> {
        let state = self.read_state()?;
        for running in state.daemons.values().rev() {
            running.daemon.stop()?;
        }
        for parent in state.cgroup_parents.iter().chain(&cgroups::own()?) {
            cgroups::kill_and_remove(&parent.join(self.cgroup_root()))?;
            // Shared by all sandboxes of the machine, so it goes with the last.
            let _ = fs::remove_dir(parent.join(CGROUP_PARENT));
        }
        for host in self.network.hosts()? {
            self.network.remove_host(&host)?;
        }
        for directory in [&self.run, &self.directory] {
            remove_mounts(directory)?;
            if directory.exists() {
                fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
            }
        }
        if let Some(parent) = self.run.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn cgroup_root(&self) -> String {
        format!("{CGROUP_PARENT}/{}", self.name)
    }

    fn read_state(&self) -> Result<State> {
        let path = self.directory.join("state.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged: remove the folder", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn write_state(&self, state: &State) -> Result<()> {
        let path = self.directory.join("state.json");
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(state)?)?;
        fs::rename(&partial, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// One folder of links, which every agent loads at its start.
    fn link_images(&self, archives: &[PathBuf]) -> Result<()> {
        let folder = self.directory.join("images");
        fs::create_dir_all(&folder)?;
        for (number, archive) in archives.iter().enumerate() {
            let name =
                archive.file_name().context("an archive without a name")?.to_string_lossy().into_owned();
            let link = folder.join(format!("{number:03}-{name}"));
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(fs::canonicalize(archive)?, &link)
                .with_context(|| format!("linking {}", archive.display()))?;
        }
        Ok(())
    }

    fn ensure_server(&self, state: &mut State) -> Result<()> {
        let built = modified(&self.binary)?;
        if self.keep(state, SERVER_HOST, built)? {
            return Ok(());
        }
        let listener = self.listen(state)?;
        let mut argv = vec![
            self.binary.display().to_string(),
            "server".to_owned(),
            format!("--data-dir={}", self.directory.join(SERVER_HOST).display()),
            format!("--bind={}", self.families.api_server(API_PORT)),
            format!("--advertise-address={}", self.families.api_server(API_PORT).ip()),
        ];
        argv.extend(self.families.flags().iter().map(|flag| (*flag).to_owned()));
        argv.extend(self.server_flags.iter().cloned());
        self.spawn(state, SERVER_HOST, Some(listener), &argv, built)
    }

    /// The socket of 127.0.0.1: the port of last time if it is free, else 6443, else any.
    fn listen(&self, state: &mut State) -> Result<TcpListener> {
        let wanted = if state.port == 0 && self.name == "hawser" { API_PORT } else { state.port };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("opening a port on 127.0.0.1")?;
        state.port = listener.local_addr()?.port();
        Ok(listener)
    }

    fn ensure_agent(&self, state: &mut State, number: u8, token: &str) -> Result<()> {
        let host = node_name(number);
        let built = modified(&self.binary)?;
        if self.keep(state, &host, built)? {
            return Ok(());
        }
        let addresses: Vec<String> = self.families.of_node(number).iter().map(ToString::to_string).collect();
        let mut argv = vec![
            self.binary.display().to_string(),
            "agent".to_owned(),
            format!("--server=https://{}", self.families.api_server(API_PORT)),
            format!("--token={token}"),
            format!("--node-name={host}"),
            format!("--node-ip={}", addresses.join(",")),
            format!("--data-dir={}", self.directory.join(&host).display()),
            format!("--run-dir={}", self.node_run_dir(number).display()),
            format!("--cgroup-root={}/{host}", self.cgroup_root()),
            format!("--images={}", self.directory.join("images").display()),
        ];
        argv.extend(self.families.flags().iter().map(|flag| (*flag).to_owned()));
        argv.extend(self.agent_flags.iter().cloned());
        self.spawn(state, &host, None, &argv, built)
    }

    /// Whether the host's daemon runs and is of this build; an older one is stopped.
    fn keep(&self, state: &mut State, host: &str, built: SystemTime) -> Result<bool> {
        let Some(running) = state.daemons.get(host) else { return Ok(false) };
        if running.daemon.is_alive() && running.binary == built {
            return Ok(true);
        }
        running.daemon.stop()?;
        state.daemons.remove(host);
        Ok(false)
    }

    fn spawn(
        &self,
        state: &mut State,
        host: &str,
        listener: Option<TcpListener>,
        argv: &[String],
        binary: SystemTime,
    ) -> Result<()> {
        let log = self.logs().join(format!("{host}.log"));
        let daemon = Daemon::start(host, &self.network.namespace(host), listener, argv, &log)?;
        state.daemons.insert(host.to_owned(), Running { daemon, binary });
        self.write_state(state)
    }

    fn wait_for_server(&self, state: &State) -> Result<Api> {
        let admin = self.wait_for_file(&self.directory.join(SERVER_HOST).join("admin.kubeconfig"))?;
        let mut config: serde_yaml_ng::Value = serde_yaml_ng::from_str(&admin)?;
        config["clusters"][0]["cluster"]["server"] = format!("https://127.0.0.1:{}", state.port).into();
        write_private(&self.kubeconfig(), &serde_yaml_ng::to_string(&config)?)?;
        let api = Api::from_kubeconfig(&self.kubeconfig())?;
        let deadline = Instant::now() + SERVER_TIMEOUT;
        while !api.is_ready() {
            self.check_alive(state, SERVER_HOST)?;
            ensure!(Instant::now() < deadline, "the API server is not ready after {SERVER_TIMEOUT:?}");
            // The socket answers only once the server accepts, so this is no busy loop.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(api)
    }

    /// The content of a file that the server writes at its first start.
    fn wait_for_file(&self, path: &Path) -> Result<String> {
        let deadline = Instant::now() + SERVER_TIMEOUT;
        loop {
            match fs::read_to_string(path) {
                Ok(text) if !text.is_empty() => return Ok(text),
                _ => {
                    let state = self.read_state()?;
                    self.check_alive(&state, SERVER_HOST)?;
                    ensure!(Instant::now() < deadline, "the server has not written {}", path.display());
                    // One short wait per start: the file appears within a fraction of a second.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn check_alive(&self, state: &State, host: &str) -> Result<()> {
        if state.daemons.get(host).is_some_and(|running| running.daemon.is_alive()) {
            return Ok(());
        }
        let log = fs::read_to_string(self.logs().join(format!("{host}.log"))).unwrap_or_default();
        bail!("{host} ended: {}", log.lines().last().unwrap_or("its log is empty"));
    }

    /// Follows the nodes' watch until all are Ready, and gives the control plane's host a route to their pods.
    fn wait_for_nodes(&self, state: &State, api: &Api, nodes: u8, progress: &dyn Fn(&str)) -> Result<()> {
        let mut pod_networks: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let deadline = Instant::now() + NODES_TIMEOUT;
        while Instant::now() < deadline {
            for number in 1..=nodes {
                self.check_alive(state, &node_name(number))?;
            }
            // A short watch, so that an agent that ended is noticed.
            for line in api.lines("/api/v1/nodes?watch=true&timeoutSeconds=5", Duration::from_secs(6))? {
                let Ok(line) = line else { break };
                let event: Value = serde_json::from_str(&line)?;
                if let Some((name, network)) = ready_node(&event["object"]) {
                    pod_networks.insert(name, network);
                }
                let ready =
                    (1..=nodes).filter(|number| pod_networks.contains_key(&node_name(*number))).count();
                progress(&format!("{ready} of {nodes} nodes are Ready"));
                if ready == usize::from(nodes) {
                    // A router between them knows no pods: it would not help to send it such packets.
                    let known = (1..=nodes).filter(|_| self.fabric == Fabric::Bridge);
                    for number in known {
                        self.route_pods(number, pod_networks.get(&node_name(number)))?;
                    }
                    return Ok(());
                }
            }
        }
        bail!("only {} of {nodes} nodes are Ready after {NODES_TIMEOUT:?}", pod_networks.len());
    }

    /// Routes of the control plane's host to a node's pods.
    fn route_pods(&self, number: u8, networks: Option<&Vec<String>>) -> Result<()> {
        let via = self.families.of_node(number);
        for network in networks.into_iter().flatten() {
            let of_family = via.iter().find(|via| via.is_ipv6() == network.contains(':'));
            if let Some(via) = of_family {
                self.network.route(SERVER_HOST, network, *via)?;
            }
        }
        Ok(())
    }

    fn remove_surplus_nodes(&self, state: &mut State, nodes: u8) -> Result<()> {
        let wanted: Vec<String> = (1..=nodes).map(node_name).collect();
        let surplus: Vec<String> =
            state.daemons.keys().filter(|h| *h != SERVER_HOST && !wanted.contains(h)).cloned().collect();
        for host in surplus {
            if let Some(running) = state.daemons.remove(&host) {
                running.daemon.stop()?;
            }
            for parent in &state.cgroup_parents {
                cgroups::kill_and_remove(&parent.join(self.cgroup_root()).join(&host))?;
            }
            self.network.remove_host(&host)?;
            for directory in [self.run.join(&host), self.directory.join(&host)] {
                remove_mounts(&directory)?;
                let _ = fs::remove_dir_all(&directory);
            }
            self.write_state(state)?;
            if let Ok(api) = Api::from_kubeconfig(&self.kubeconfig()) {
                api.delete(&format!("/api/v1/nodes/{host}"))?;
            }
        }
        Ok(())
    }
}

/// The cgroup that holds those of all sandboxes.
const CGROUP_PARENT: &str = "hawser-sandbox";

/// The name of node `number`, counted from 1.
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The node's name and pod networks, if its Ready condition is True.
fn ready_node(node: &Value) -> Option<(String, Vec<String>)> {
    let ready = node["status"]["conditions"]
        .as_array()?
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let name = node["metadata"]["name"].as_str()?;
    let networks = node["spec"]["podCIDRs"].as_array()?;
    let networks = networks.iter().filter_map(|network| Some(network.as_str()?.to_owned())).collect();
    ready.then(|| (name.to_owned(), networks))
}

fn remove_mounts(directory: &Path) -> Result<()> {
    for point in net::mounts_below(directory)?.iter().rev() {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", point.display()))?;
    }
    Ok(())
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|m| m.modified())
        .with_context(|| format!("{} is missing: build it first", path.display()))
}

fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(content.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
