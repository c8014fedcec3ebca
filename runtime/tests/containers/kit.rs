//! The kit: a scene (directory and cgroup), nodes in it (runtimes in processes of their own), images made of busybox,
//! and short ways to run containers.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hawser_runtime::network::{LoopbackOnly, NetworkError, PodNetwork, PodNetworkRequest, PodNetworkStatus};
use hawser_runtime::{Config, Runtime};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::kit_image;

/// `argv[1]` of a runtime process.
pub const RUNTIME: &str = "runtime-process";
/// The image that most tests use.
pub const IMAGE: &str = "test.local/busybox:1";
/// How long something that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why a test failed.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(e: E) -> Self {
        let mut text = e.to_string();
        let mut source = e.source();
        while let Some(s) = source {
            text += &format!(": {s}");
            source = s.source();
        }
        Self(text)
    }
}

pub type Outcome = Result<(), Failure>;

/// Fails the test unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::kit::Failure(format!("{}: {}", stringify!($condition), format!($($text)+))));
        }
    };
}
pub(crate) use ensure;

/// Where everything of a run lies.
pub struct Scene {
    pub dir: PathBuf,
    /// Relative: below this process' own cgroups.
    pub cgroup: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Result<Self, Failure> {
        let temporary = tempfile::Builder::new().prefix("hawser-runtime-test-").tempdir()?;
        let dir = temporary.path().canonicalize()?;
        let cgroup = PathBuf::from(dir.file_name().unwrap_or_default());
        kit_image::busybox_archive(
            &dir.join("busybox.tar"),
            IMAGE,
            &kit_image::ImageSpecification::default(),
        )?;
        Ok(Self { dir, cgroup, _temporary: temporary })
    }

    /// Removes everything and tells what should have been gone before: processes, mounts, cgroups.
    pub fn clean_up(&self) -> Vec<String> {
        let mut left = Vec::new();
        let cgroups = self.cgroup_dirs();
        for dir in &cgroups {
            for procs in find(dir, "cgroup.procs") {
                for pid in fs::read_to_string(procs).unwrap_or_default().lines() {
                    if let Ok(pid) = pid.parse() {
                        left.push(format!("process {pid}"));
                        let _ = nix::sys::signal::kill(
                            nix::unistd::Pid::from_raw(pid),
                            nix::sys::signal::SIGKILL,
                        );
                    }
                }
            }
        }
        let shims = shims_below(&self.dir);
        for pid in shims {
            left.push(format!("shim {pid}"));
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        for point in mounts_below(&self.dir) {
            left.push(format!("mount {point}"));
            let _ = nix::mount::umount2(Path::new(&point), nix::mount::MntFlags::MNT_DETACH);
        }
        for dir in &cgroups {
            let begin = Instant::now();
            let mut groups = find_dirs(dir);
            groups.reverse();
            for group in groups {
                if group.components().count() > dir.components().count() + 2 {
                    left.push(format!("cgroup {}", group.display()));
                }
                while fs::remove_dir(&group).is_err() && group.exists() && begin.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            if dir.exists() {
                left.push(format!("cgroup {}", dir.display()));
            }
        }
        left
    }

    fn cgroup_dirs(&self) -> Vec<PathBuf> {
        // Below each mount point, wherever this process' own group is.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let paths: Vec<_> = own.lines().filter_map(|l| l.splitn(3, ':').nth(2)).collect();
        let points = mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4));
        let mut dirs: Vec<_> = points
            .flat_map(|p| paths.iter().map(move |own| Path::new(p).join(own.trim_start_matches('/'))))
            .map(|d| d.join(&self.cgroup))
            .filter(|d| d.exists())
            .collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }
}

fn find_dirs(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let mut at = 0;
    while at < all.len() {
        let entries = fs::read_dir(&all[at]).into_iter().flatten().flatten();
        let dirs: Vec<_> =
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        all.extend(dirs);
        at += 1;
    }
    all
}

fn find(dir: &Path, name: &str) -> Vec<PathBuf> {
    find_dirs(dir).into_iter().map(|d| d.join(name)).filter(|p| p.exists()).collect()
}

pub fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(4));
    let mut points: Vec<_> = points.filter(|p| Path::new(p).starts_with(dir)).map(str::to_owned).collect();
    points.reverse();
    points
}

/// Process ids of shims whose sandbox directory is below `dir`.
pub fn shims_below(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<_> = line.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        if args.get(1).is_some_and(|a| a == "shim")
            && args.get(2).is_some_and(|d| Path::new(d).starts_with(dir))
        {
            pids.push(pid);
        }
    }
    pids
}

/// A pod's name that the network of the tests refuses to connect.
pub const UNCONNECTED: &str = "unconnected";
/// While this file is in the node's directory, no pod is disconnected.
pub const NO_TEARDOWN: &str = "no-teardown";

/// [`LoopbackOnly`] that writes down what it is asked, and fails when a test wants it to.
struct WatchedNetwork {
    dir: PathBuf,
}

impl WatchedNetwork {
    fn note(&self, what: &str, request: &PodNetworkRequest) -> Result<(), NetworkError> {
        let there = fs::metadata(&request.netns).is_ok();
        let cgroup = request.cgroup.as_ref().is_some_and(|c| c.is_dir());
        let line = format!("{what} {} netns={there} cgroup={cgroup}\n", request.pod_name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("network.log"));
        log.and_then(|mut f| f.write_all(line.as_bytes())).map_err(|e| NetworkError(e.to_string()))
    }
}

#[tonic::async_trait]
impl PodNetwork for WatchedNetwork {
    async fn setup(&self, request: PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        self.note("setup", &request)?;
        if request.pod_name.contains(UNCONNECTED) {
            return Err(NetworkError("no addresses are left".into()));
        }
        LoopbackOnly.setup(request).await
    }

    async fn teardown(&self, request: PodNetworkRequest) -> Result<(), NetworkError> {
        self.note("teardown", &request)?;
        if self.dir.join(NO_TEARDOWN).exists() {
            return Err(NetworkError("not now".into()));
        }
        LoopbackOnly.teardown(request).await
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        LoopbackOnly.ready().await
    }
}

/// The body of a runtime process; its configuration follows from `dir`.
pub fn runtime_process(dir: &Path) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scene = dir.parent().unwrap_or(dir);
    let mut config = Config::new(dir.join("data"), dir.join("run"), scene.file_name().unwrap_or_default());
    config.cgroup_root = config.cgroup_root.join(dir.file_name().unwrap_or_default());
    config.images_dir = Some(dir.join("images"));
    config.seccomp_dir = dir.join("seccomp");
    let result = tokio::runtime::Runtime::new().map_err(Failure::from).and_then(|tokio| {
        tokio.block_on(async {
            let cancel = CancellationToken::new();
            let runtime = Runtime::new(config, Arc::new(WatchedNetwork { dir: dir.to_owned() }))?;
            let stop = cancel.clone();
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::spawn(async move {
                terminate.recv().await;
                stop.cancel();
            });
            runtime.run(cancel).await?;
            Ok(())
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("runtime: {e}");
            ExitCode::FAILURE
        }
    }
}

/// A runtime in a process of its own, with clients.
pub struct Node {
    pub dir: PathBuf,
    process: Mutex<Child>,
    counter: AtomicU32,
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut process = self.process.lock();
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(process.id().cast_signed()),
            nix::sys::signal::SIGTERM,
        );
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(_)) = process.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Node {
    /// Starts a runtime and waits until it serves and has loaded the image.
    pub async fn start(scene: &Scene, name: &str) -> Result<Self, Failure> {
        Self::start_in(&scene.dir, name).await
    }

    pub async fn start_in(scene: &Path, name: &str) -> Result<Self, Failure> {
        let dir = scene.join(name);
        fs::create_dir_all(dir.join("images"))?;
        fs::create_dir_all(dir.join("seccomp"))?;
        fs::create_dir_all(dir.join("logs"))?;
        fs::hard_link(scene.join("busybox.tar"), dir.join("images/busybox.tar"))?;
        let node = Self { process: Mutex::new(spawn(&dir)?), dir, counter: AtomicU32::new(0) };
        node.wait_ready().await?;
        Ok(node)
    }

    /// The scene's directory.
    pub fn scene(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/cri.sock")
    }

    /// Kills the runtime without warning.
    pub fn kill(&self) -> Outcome {
        let mut process = self.process.lock();
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Starts it again.
    pub async fn restart(&self) -> Outcome {
        *self.process.lock() = spawn(&self.dir)?;
        self.wait_ready().await
    }

    async fn channel(&self) -> Result<Channel, Failure> {
        let uri = format!("unix:{}", self.socket().display());
        Ok(Endpoint::try_from(uri)?.connect().await?)
    }

    pub async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>, Failure> {
        Ok(RuntimeServiceClient::new(self.channel().await?).max_decoding_message_size(32 << 20))
    }

    pub async fn images(&self) -> Result<ImageServiceClient<Channel>, Failure> {
        Ok(ImageServiceClient::new(self.channel().await?))
    }

    async fn wait_ready(&self) -> Outcome {
        let ready = eventually("the runtime serves the image", async || {
            let Ok(mut images) = self.images().await else { return Ok(false) };
            let image = ImageSpec { image: IMAGE.into(), ..Default::default() };
            let request = ImageStatusRequest { image: Some(image), verbose: false };
            Ok(images.image_status(request).await.is_ok_and(|r| r.into_inner().image.is_some()))
        });
        ready.await.map_err(|e| Failure(format!("{e}; {}", self.log_tail())))
    }

    /// The last lines that the runtime logged.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("runtime.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub fn unique(&self) -> u32 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// A sandbox configuration with a name of its own.
    pub fn sandbox_config(&self) -> PodSandboxConfig {
        let n = self.unique();
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: format!("pod-{n}"),
                uid: format!("uid-{n}"),
                namespace: "test".into(),
                attempt: 0,
            }),
            hostname: format!("pod-{n}"),
            log_directory: self.dir.join("logs").join(format!("pod-{n}")).display().to_string(),
            labels: [("pod".to_owned(), n.to_string())].into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/poduid-{n}"),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn sandbox(&self, config: PodSandboxConfig) -> Result<Pod, Failure> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut runtime = self.runtime().await?;
        let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config, runtime, counter: AtomicU32::new(0) })
    }

    pub async fn pod(&self) -> Result<Pod, Failure> {
        self.sandbox(self.sandbox_config()).await
    }

    /// Runs a script in a pod of its own to its end.
    pub async fn script(&self, script: &str) -> Result<Ran, Failure> {
        self.pod().await?.run(sh(script)).await
    }

    /// Runs a container in a pod of its own to its end.
    pub async fn run(&self, config: ContainerConfig) -> Result<Ran, Failure> {
        self.pod().await?.run(config).await
    }

    /// Removes every sandbox.
    pub async fn remove_all(&self) {
        let Ok(mut runtime) = self.runtime().await else { return };
        let Ok(list) = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await else { return };
        for item in list.into_inner().items {
            let request = RemovePodSandboxRequest { pod_sandbox_id: item.id };
            if let Err(e) = runtime.remove_pod_sandbox(request).await {
                println!("cannot remove a sandbox: {e}");
            }
        }
    }
}

fn spawn(dir: &Path) -> Result<Child, Failure> {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("runtime.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(RUNTIME).arg(dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command.spawn()?)
}

/// Tries until it holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> Result<bool, Failure>) -> Outcome {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if holds().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(Failure(format!("within {PATIENCE:?} it never held that {what}")))
}

/// A sandbox that runs.
pub struct Pod {
    pub id: String,
    pub config: PodSandboxConfig,
    pub runtime: RuntimeServiceClient<Channel>,
    pub counter: AtomicU32,
}

/// How a container ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub status: ContainerStatus,
}

impl Ran {
    /// Its output when it ended well.
    pub fn good(self) -> Result<String, Failure> {
        if self.code == 0 {
            Ok(self.out)
        } else {
            Err(Failure(format!("exit {}: {} {}", self.code, self.out, self.err)))
        }
    }
}

impl Pod {
    pub async fn create(&self, mut config: ContainerConfig) -> Result<String, Failure> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        config.metadata.get_or_insert(ContainerMetadata { name: format!("c{n}"), attempt: 0 });
        if config.log_path.is_empty() {
            config.log_path = format!("c{n}.log");
        }
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, config: ContainerConfig) -> Result<String, Failure> {
        let id = self.create(config).await?;
        self.runtime.clone().start_container(StartContainerRequest { container_id: id.clone() }).await?;
        Ok(id)
    }

    pub async fn status(&self, id: &str) -> Result<ContainerStatus, Failure> {
        status(&self.runtime, id).await
    }

    pub async fn run(&self, config: ContainerConfig) -> Result<Ran, Failure> {
        let id = self.start(config).await?;
        self.wait(&id).await
    }

    pub async fn wait(&self, id: &str) -> Result<Ran, Failure> {
        eventually("the container ends", async || {
            Ok(self.status(id).await?.state == ContainerState::ContainerExited as i32)
        })
        .await?;
        let status = self.status(id).await?;
        Ok(Ran {
            code: status.exit_code,
            out: log_text(Path::new(&status.log_path), "stdout")?,
            err: log_text(Path::new(&status.log_path), "stderr")?,
            status,
        })
    }

    pub async fn exec(&self, id: &str, script: &str) -> Result<ExecSyncResponse, Failure> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 20 };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// The output of an exec that ends well.
    pub async fn output(&self, id: &str, script: &str) -> Result<String, Failure> {
        let r = self.exec(id, script).await?;
        let (out, err) = (String::from_utf8_lossy(&r.stdout), String::from_utf8_lossy(&r.stderr));
        if r.exit_code == 0 {
            Ok(out.into_owned())
        } else {
            Err(Failure(format!("exit {}: {out} {err}", r.exit_code)))
        }
    }
}

pub async fn status(runtime: &RuntimeServiceClient<Channel>, id: &str) -> Result<ContainerStatus, Failure> {
    let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
    let response = runtime.clone().container_status(request).await?.into_inner();
    response.status.ok_or_else(|| Failure("no status".into()))
}

/// The text of one stream of a log in CRI format.
pub fn log_text(path: &Path, stream: &str) -> Result<String, Failure> {
    let mut text = String::new();
    for line in fs::read_to_string(path)?.lines() {
        let mut fields = line.splitn(4, ' ');
        let (time, name, tag) = (fields.next(), fields.next(), fields.next());
        let rest = fields.next().ok_or_else(|| Failure(format!("log line {line:?}")))?;
        time.unwrap_or_default().parse::<jiff::Timestamp>()?;
        if name == Some(stream) {
            text += rest;
            if tag == Some("F") {
                text.push('\n');
            }
        }
    }
    Ok(text)
}

/// A container that runs a shell script.
pub fn sh(script: &str) -> ContainerConfig {
    ContainerConfig {
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// [`sh`] with another security context.
pub fn sh_as(script: &str, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
    let mut config = sh(script);
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    config
}

/// [`sh`] with other resources.
pub fn sh_with(script: &str, change: impl FnOnce(&mut LinuxContainerResources)) -> ContainerConfig {
    let mut config = sh(script);
    change(config.linux.get_or_insert_default().resources.get_or_insert_default());
    config
}

/// A script that runs until it is told to stop.
pub const FOREVER: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done";
