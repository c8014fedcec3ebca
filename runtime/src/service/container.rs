//! Containers: creating, starting, stopping, removing, changing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{
    ContainerConfig, ContainerEventType, CreateContainerRequest, LinuxContainerResources,
    LinuxContainerSecurityContext,
};

use super::Inner;
use super::devices;
use super::sandbox::{KILL_WAIT, new_id};
use super::store::{Container, ContainerRecord, Phase, STATE, SandboxRecord, container_name};
use crate::cgroup::devices as device_filter;
use crate::cgroup::limits::Resources;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::image::pull::blocking;
use crate::image::store::ImageRecord;
use crate::seccomp::{Profile, compile, default};
use crate::shim::process::files;
use crate::shim::proto::{Request, Response};
use crate::spec::build::{self, SeccompChoice, Surroundings};
use crate::spec::{ExitRecord, MountPropagation, SeccompProgram};

/// Names of signals by number (`signal(7)`, x86-64).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Reads a signal as images name it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. SIGTERM when there is none or it is
/// not understood.
pub fn parse_signal(text: &str) -> i32 {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32| {
        if rest.is_empty() { Some(base) } else { rest.parse::<i32>().ok().map(|n| base + n) }
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        real_time(rest, SIGRTMIN)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        real_time(rest, SIGRTMAX)
    } else if let Ok(n) = name.parse() {
        Some(n)
    } else {
        SIGNALS.iter().position(|s| *s == name).and_then(|n| i32::try_from(n + 1).ok())
    };
    number.filter(|n| (1..=SIGRTMAX).contains(n)).unwrap_or(libc::SIGTERM)
}

fn security_context(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

impl Inner {
    /// The directory of a container in the run directory.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.settings.containers().join(id)
    }

    /// Writes a container's record.
    pub fn save_container(&self, record: &ContainerRecord) -> Result<()> {
        let path = self.container_dir(&record.id).join(STATE);
        fsutil::write_json(&path, record, false).map_err(Error::path("write", &path))
    }

    /// Creates a container: everything is checked and put together, nothing runs yet.
    pub async fn create_container(self: &Arc<Self>, request: CreateContainerRequest) -> Result<String> {
        let config = request
            .config
            .filter(|c| c.metadata.as_ref().is_some_and(|m| !m.name.is_empty()))
            .ok_or_else(|| Error::InvalidArgument("the container needs a name".into()))?;
        let sandbox = self.store.sandbox(&request.pod_sandbox_id)?;
        let sandbox = sandbox.record.lock().clone();
        if !sandbox.ready {
            return Err(Error::FailedPrecondition(format!("sandbox {} is not running", sandbox.id)));
        }
        let wanted = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
        let image = self
            .find_image(wanted)
            .await
            .ok_or_else(|| Error::NotFound(format!("image {wanted:?} is not present; pull it first")))?;
        let name = container_name(&config, &sandbox.id);
        let id = new_id();
        self.store.reserve(&name, &id)?;
        let record = ContainerRecord {
            group: sandbox.group.join(&id),
            log_path: build::log_path(&sandbox.config, &config),
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
            layers: image.layers.clone(),
            created_at: fsutil::now_nanos(),
            stop_signal: parse_signal(&image.config.stop_signal),
            config,
        };
        if let Err(e) = self.make_container(&record, &sandbox, &image) {
            self.delete_container_files(&record).await?;
            self.store.release(&name);
            return Err(e);
        }
        self.store.add_container(Arc::new(Container::new(record, Phase::default())));
        self.tell(&sandbox.id, &id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    fn make_container(
        &self,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        image: &ImageRecord,
    ) -> Result<()> {
        let sc = security_context(&record.config);
        let seccomp = self.seccomp_program(&sc)?;
        let resources = record.config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
        let resources = Resources::from_cri(&resources)?;
        let given = devices::resolve(&record.config.devices)?;
        let (data_dir, run_dir) = (self.settings.layers().join(&record.id), self.container_dir(&record.id));
        let mut spec = build::container(
            &record.config,
            &sandbox.config,
            &image.config,
            Surroundings {
                id: &record.id,
                hostname: &sandbox.hostname,
                layers_dir: &self.images.layers_dir(),
                layers: &record.layers,
                data_dir: &data_dir,
                run_dir: &run_dir,
                sandbox_dir: &self.sandbox_dir(&sandbox.id),
                cgroups: self.cgroups.membership(&record.group),
                devices: given,
                seccomp,
                open_files: self.settings.config.open_files,
            },
        )?;
        for dir in [&spec.rootfs.upper, &spec.rootfs.work, &spec.rootfs.mount_point] {
            fs::create_dir_all(dir).map_err(Error::path("create", dir))?;
        }
        for mount in &spec.mounts {
            // As container runtimes do for host paths that nobody made.
            if !mount.source.exists() {
                fs::create_dir_all(&mount.source).map_err(Error::path("create", &mount.source))?;
            }
            if mount.propagation == MountPropagation::Bidirectional {
                check_shared(&mount.source)?;
            }
        }
        self.cgroups.create(&record.group, &resources)?;
        if sc.privileged {
            spec.devices.extend(devices::all()?);
        } else if let Some(dir) = self.cgroups.v2_dir(&record.group) {
            let mut rules = device_filter::default_rules();
            rules.extend(spec.devices.iter().map(device_filter::rule_for));
            device_filter::attach(&dir, &rules).map_err(Error::io("attach the device filter"))?;
        } else {
            return Err(Error::Unavailable("devices are confined by cgroup v2, which is not mounted".into()));
        }
        let spec_path = run_dir.join(files::SPEC);
        fsutil::write_json(&spec_path, &spec, false).map_err(Error::path("write", &spec_path))?;
        self.save_container(record)
    }

    fn seccomp_program(&self, sc: &LinuxContainerSecurityContext) -> Result<Option<SeccompProgram>> {
        let invalid = |e: crate::seccomp::ProfileError| Error::InvalidArgument(e.to_string());
        let profile = match build::seccomp_choice(sc)? {
            SeccompChoice::Unconfined => return Ok(None),
            SeccompChoice::Default => default::profile(build::capability_sets(sc)?.permitted),
            SeccompChoice::File(path) => {
                let path = self.settings.config.seccomp_dir.join(path);
                let bytes = fs::read(&path).map_err(Error::path("read seccomp profile", &path))?;
                Profile::from_json(&bytes).map_err(invalid)?
            }
        };
        compile::compile(&profile).map(Some).map_err(invalid)
    }

    /// Starts a created container.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.store.container(id)?;
        let _held = container.lock.lock().await;
        let record = container.record.lock().clone();
        let phase = container.phase.borrow().clone();
        if phase.start.is_some() || phase.exit.is_some() {
            return Err(Error::FailedPrecondition(format!(
                "container {} has been started before",
                record.id
            )));
        }
        if !self.store.sandbox(&record.sandbox_id)?.record.lock().ready {
            return Err(Error::FailedPrecondition(format!("sandbox {} is not running", record.sandbox_id)));
        }
        let request = Request::Start { container: record.id.clone() };
        match self.shim(&record.sandbox_id).call(&request).await {
            Ok((Response::Started(start), _)) => {
                // The shim's own news may be here already.
                container.phase.send_if_modified(|p| {
                    let news = p.start.is_none();
                    p.start.get_or_insert(start);
                    news
                });
                self.tell(&record.sandbox_id, &record.id, ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Ok((other, _)) => Err(Error::Failed(format!("unexpected answer of the shim: {other:?}"))),
            Err(e) => {
                let exit = ExitRecord {
                    code: 128,
                    finished_at: fsutil::now_nanos(),
                    oom_killed: false,
                    reason: Some("StartError".into()),
                    message: Some(e.to_string()),
                };
                self.record_exit(&container, exit);
                Err(Error::Failed(format!("start container: {e}")))
            }
        }
    }

    /// Records the end of a container that its shim did not record itself, and tells of it.
    pub fn record_exit(self: &Arc<Self>, container: &Arc<Container>, exit: ExitRecord) {
        let record = container.record.lock().clone();
        let path = self.container_dir(&record.id).join(files::EXIT);
        if let Err(e) = fsutil::write_json(&path, &exit, true) {
            tracing::error!(container = record.id, error = %e, "cannot record how a container ended");
        }
        self.note_exit(container, exit);
    }

    /// Takes note of the end of a container.
    pub fn note_exit(self: &Arc<Self>, container: &Arc<Container>, exit: ExitRecord) {
        let record = container.record.lock().clone();
        let news = container.phase.send_if_modified(|p| p.exit.replace(exit.clone()).as_ref() != Some(&exit));
        if news {
            self.cgroups.remove(&record.group);
            self.tell(&record.sandbox_id, &record.id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Stops a container: its stop signal, and after `grace` SIGKILL to all of it. One that does not run, or is
    /// gone, is no error.
    pub async fn stop_container(self: &Arc<Self>, id: &str, grace: Duration) -> Result<()> {
        let Ok(container) = self.store.container(id) else { return Ok(()) };
        self.stop_container_entry(&container, grace).await
    }

    pub(super) async fn stop_container_entry(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<()> {
        if !container.phase.borrow().running() {
            return Ok(());
        }
        let record = container.record.lock().clone();
        let shim = self.shim(&record.sandbox_id);
        let mut phase = container.phase.subscribe();
        if !grace.is_zero() {
            let signal = record.stop_signal;
            shim.call(&Request::Signal { container: record.id.clone(), signal }).await?;
            if tokio::time::timeout(grace, phase.wait_for(|p| !p.running())).await.is_ok() {
                return Ok(());
            }
        }
        // All of it, through the cgroup; the shim need not answer for that.
        self.cgroups.kill(&record.group)?;
        match tokio::time::timeout(KILL_WAIT, phase.wait_for(|p| !p.running())).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::DeadlineExceeded(format!("container {} does not die", record.id))),
        }
    }

    /// Removes a container, stopping it if it runs. One that is gone is no error.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(container) = self.store.container(id) else { return Ok(()) };
        self.remove_container_entry(&container).await
    }

    pub(super) async fn remove_container_entry(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _held = container.lock.lock().await;
        let record = container.record.lock().clone();
        self.stop_container_entry(container, Duration::ZERO).await?;
        self.delete_container_files(&record).await?;
        self.tell(&record.sandbox_id, &record.id, ContainerEventType::ContainerDeletedEvent);
        self.store.drop_container(&record);
        if self.images.find(&record.image_id).is_none() {
            self.collect_layers();
        }
        Ok(())
    }

    async fn delete_container_files(&self, record: &ContainerRecord) -> Result<()> {
        self.cgroups.remove(&record.group);
        let dirs = [self.settings.layers().join(&record.id), self.container_dir(&record.id)];
        blocking(move || {
            dirs.iter().try_for_each(|d| fsutil::remove_tree(d).map_err(Error::path("remove", d)))
        })
        .await
    }

    /// Changes the resources of a container.
    pub fn update_resources(&self, id: &str, resources: &LinuxContainerResources) -> Result<()> {
        let container = self.store.container(id)?;
        let group = container.record.lock().group.clone();
        if container.phase.borrow().exit.is_some() {
            return Err(Error::FailedPrecondition(format!("container {id} has ended")));
        }
        self.cgroups.update(&group, &Resources::from_cri(resources)?)?;
        let mut record = container.record.lock();
        let linux = record.config.linux.get_or_insert_default();
        merge(linux.resources.get_or_insert_default(), resources);
        self.save_container(&record)
    }

    /// Opens a container's log file anew.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.store.container(id)?;
        let record = container.record.lock().clone();
        if !container.phase.borrow().running() {
            return Err(Error::FailedPrecondition(format!("container {id} is not running")));
        }
        self.shim(&record.sandbox_id).call(&Request::ReopenLog { container: record.id }).await?;
        Ok(())
    }

    /// A running container, for exec and attach.
    pub fn running(&self, id: &str) -> Result<ContainerRecord> {
        let container = self.store.container(id)?;
        if !container.phase.borrow().running() {
            return Err(Error::FailedPrecondition(format!("container {id} is not running")));
        }
        let record = container.record.lock().clone();
        Ok(record)
    }

    /// The writable layer of a container.
    pub fn upper_dir(&self, id: &str) -> PathBuf {
        self.settings.layers().join(id).join(Path::new("upper"))
    }
}

/// Refuses a path whose mount is not shared: nothing mounted below it in a container would come out.
fn check_shared(path: &Path) -> Result<()> {
    let real = path.canonicalize().map_err(Error::path("resolve", path))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read mountinfo"))?;
    if is_shared(&mounts, &real) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("{} is not on a shared mount", path.display())))
}

/// Whether the mount that holds `path` is shared (`/proc/PID/mountinfo`, `proc(5)`): the last of those with the
/// longest mount point.
fn is_shared(mountinfo: &str, path: &Path) -> bool {
    let mut best: Option<(usize, bool)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        if path.starts_with(point) && best.is_none_or(|(n, _)| point.len() >= n) {
            let shared = fields.skip(1).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"));
            best = Some((point.len(), shared));
        }
    }
    best.is_some_and(|(_, shared)| shared)
}

/// Takes over the values that an update sets.
fn merge(into: &mut LinuxContainerResources, from: &LinuxContainerResources) {
    let number = |into: &mut i64, from: i64| {
        if from != 0 {
            *into = from;
        }
    };
    number(&mut into.cpu_period, from.cpu_period);
    number(&mut into.cpu_quota, from.cpu_quota);
    number(&mut into.cpu_shares, from.cpu_shares);
    number(&mut into.memory_limit_in_bytes, from.memory_limit_in_bytes);
    number(&mut into.memory_swap_limit_in_bytes, from.memory_swap_limit_in_bytes);
    for (into, from) in
        [(&mut into.cpuset_cpus, &from.cpuset_cpus), (&mut into.cpuset_mems, &from.cpuset_mems)]
    {
        if !from.is_empty() {
            into.clone_from(from);
        }
    }
    into.unified.extend(from.unified.clone());
}

#[cfg(test)]
mod tests {
    use super::{is_shared, parse_signal};
    use std::path::Path;

    #[test]
    fn shared_mounts() {
        let mounts = "1 0 8:1 / / rw shared:1 - ext4 d rw\n2 1 0:5 / /a rw - tmpfs t rw\n3 2 0:6 / /a/b rw master:4 \
                      shared:3 - tmpfs t rw\n";
        for (path, want) in [("/x", true), ("/a", false), ("/a/c", false), ("/a/b/c", true), ("/ab", true)] {
            assert_eq!(is_shared(mounts, Path::new(path)), want, "{path}");
        }
    }

    #[test]
    fn signals_as_images_name_them() {
        for (text, want) in [
            ("", 15),
            ("SIGTERM", 15),
            ("quit", 3),
            ("SIGWINCH", 28),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGNONSENSE", 15),
            ("999", 15),
            ("RTMIN+99", 15),
        ] {
            assert_eq!(parse_signal(text), want, "{text}");
        }
    }
}
