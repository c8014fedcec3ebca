//! The shim's side of a container's processes: making them, watching them, recording how they end.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::finish::Report;
use super::init::{self, Channels};
use super::log::LogFile;
use super::proto::Event;
use super::server::Shim;
use super::{exec, stdio};
use crate::cgroup::{self, stats::keyed};
use crate::fsutil;
use crate::spec::{ContainerSpec, ExitRecord, PidMode, StartRecord};
use crate::sys::{fd, process, socket};

/// Names of a container's files in its directory.
pub mod files {
    /// The spec, from the runtime.
    pub const SPEC: &str = "spec.json";
    /// How it began, from the shim.
    pub const START: &str = "start.json";
    /// How it ended, from the shim.
    pub const EXIT: &str = "exit.json";
}

/// How long output of a dead container is waited for, when something outside holds its pipe open.
const DRAIN: Duration = Duration::from_secs(2);

/// A container of this shim.
pub struct Container {
    /// Its id.
    pub id: String,
    /// What it was started from.
    pub spec: ContainerSpec,
    /// Its directory.
    pub dir: PathBuf,
    /// How it began.
    pub start: StartRecord,
    /// Its first process.
    pub pidfd: OwnedFd,
    /// How it ended.
    pub exit: RefCell<Option<ExitRecord>>,
    /// Writing end of its stdin.
    pub stdin: RefCell<Option<OwnedFd>>,
    /// Master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Those attached to its stdout.
    pub stdout: Rc<stdio::Fanout>,
    /// Those attached to its stderr.
    pub stderr: Rc<stdio::Fanout>,
    /// Its log.
    pub log: Rc<RefCell<LogFile>>,
}

/// A forked child that has not run its program yet.
pub struct Launched {
    pid: i32,
    pidfd: OwnedFd,
    exit: oneshot::Receiver<i32>,
    status: OwnedFd,
    console: Option<OwnedFd>,
}

/// The ends of a child's streams that the shim keeps.
#[derive(Default)]
pub struct Kept {
    /// Writing end of stdin.
    pub stdin: Option<OwnedFd>,
    /// Reading end of stdout.
    pub stdout: Option<OwnedFd>,
    /// Reading end of stderr.
    pub stderr: Option<OwnedFd>,
}

/// Which PID namespace a child goes into.
enum PidNamespace {
    New,
    Inherit,
    Join(OwnedFd),
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; field 3 follows the last one.
    let rest = stat.rsplit_once(") ").map_or("", |(_, r)| r);
    rest.split(' ').nth(19).and_then(|f| f.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Shim {
    /// The PID namespace shared by the pod, made when it is first needed.
    fn pod_pid_namespace(&self) -> io::Result<OwnedFd> {
        let mut pause = self.pause.borrow_mut();
        if let Some(fd) = pause.as_ref() {
            return fd.try_clone();
        }
        let (_, pidfd) = process::spawn_bare(libc::CLONE_NEWPID as u64, init::pause)?;
        let fd = pidfd.try_clone()?;
        *pause = Some(pidfd);
        Ok(fd)
    }

    fn pid_namespace(&self, mode: &PidMode) -> io::Result<PidNamespace> {
        Ok(match mode {
            PidMode::Container => PidNamespace::New,
            PidMode::Host => PidNamespace::Inherit,
            PidMode::Pod => PidNamespace::Join(self.pod_pid_namespace()?),
            PidMode::Target(id) => {
                let containers = self.containers.borrow();
                let target = containers
                    .get(id)
                    .filter(|c| c.exit.borrow().is_none())
                    .ok_or_else(|| io::Error::other(format!("target container {id} is not running")))?;
                PidNamespace::Join(target.pidfd.try_clone()?)
            }
        })
    }

    /// Forks `child` into a PID namespace, in the cgroup when the kernel can; the child is told whether it is.
    fn launch(
        &self,
        pid_namespace: &PidNamespace,
        extra_flags: u64,
        v2: Option<&Path>,
        tty: bool,
        stdio: [Option<OwnedFd>; 3],
        child: impl Fn(Channels, bool) -> i32,
    ) -> io::Result<Launched> {
        let (status, status_child) = stdio::pipe()?;
        let (console, console_child) = if tty {
            let flags = SockFlag::SOCK_CLOEXEC;
            let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
            (Some(pair.0), Some(pair.1))
        } else {
            (None, None)
        };
        let channels = || -> io::Result<Channels> {
            let clone = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
            Ok(Channels {
                status: status_child.try_clone()?,
                console: clone(&console_child)?,
                stdio: [clone(&stdio[0])?, clone(&stdio[1])?, clone(&stdio[2])?],
            })
        };
        let mut flags = extra_flags;
        let home = match pid_namespace {
            PidNamespace::New => {
                flags |= libc::CLONE_NEWPID as u64;
                None
            }
            PidNamespace::Inherit => None,
            PidNamespace::Join(fd) => {
                let home = File::open("/proc/self/ns/pid")?;
                setns(fd, CloneFlags::CLONE_NEWPID)?;
                Some(home)
            }
        };
        let cgroup = v2.map(File::open).transpose()?;
        let ready = channels()?;
        let spawned = match cgroup {
            Some(dir) => process::spawn(flags, Some(dir.as_fd()), || child(ready, true)).or_else(|_| {
                // Where CLONE_INTO_CGROUP is not to be had the child joins by itself.
                let ready = channels()?;
                process::spawn(flags, None, || child(ready, false))
            }),
            None => process::spawn(flags, None, || child(ready, false)),
        };
        if let Some(home) = home {
            setns(home, CloneFlags::CLONE_NEWPID)?;
        }
        let (pid, pidfd) = spawned?;
        let (sender, exit) = oneshot::channel();
        self.children.borrow_mut().insert(pid, (sender, pidfd.try_clone()?));
        Ok(Launched { pid, pidfd, exit, status, console })
    }

    /// Starts a container from the spec in its directory.
    ///
    /// # Errors
    /// Why it does not run, for people.
    pub async fn start(self: &Rc<Self>, id: &str) -> io::Result<StartRecord> {
        if self.ending() {
            return Err(io::Error::other("the pod is ending"));
        }
        if self.containers.borrow().contains_key(id) {
            return Err(io::Error::other("it has been started before"));
        }
        let dir = self.spec.containers_dir.join(id);
        let spec: ContainerSpec = serde_json::from_slice(&fs::read(dir.join(files::SPEC))?)?;
        let log = Rc::new(RefCell::new(LogFile::open(spec.log_path.clone())?));
        let tty = spec.process.tty;
        let (child_stdio, mut kept) = if tty { Default::default() } else { pipes(spec.stdin, true, true)? };
        let namespace = self.pid_namespace(&spec.pid_mode)?;
        let v2 = spec.cgroups.v2.as_deref();
        let new_mounts = libc::CLONE_NEWNS as u64;
        let launched = self.launch(&namespace, new_mounts, v2, tty, child_stdio, |channels, in_v2| {
            init::run(&spec, channels, in_v2)
        })?;
        let Launched { pid, pidfd, exit, status, console } = launched;
        let report = read_reports(status).await?;
        let user = match report {
            Report { error: Some(error), .. } => {
                let _ = exit.await;
                return Err(io::Error::other(error));
            }
            Report { user: Some(user), .. } => user,
            Report { .. } => {
                let code = exit.await.unwrap_or(-1);
                return Err(io::Error::other(format!("init died with {code} before its program ran")));
            }
        };
        let terminal = match console {
            Some(channel) => Some(receive_console(&channel)?),
            None => None,
        };
        let start = StartRecord {
            pid,
            start_ticks: start_ticks(pid).unwrap_or(0),
            started_at: fsutil::now_nanos(),
            user,
        };
        fsutil::write_json(&dir.join(files::START), &start, false)?;

        let (stdout, stderr) = (Rc::<stdio::Fanout>::default(), Rc::<stdio::Fanout>::default());
        let mut pumps = Vec::new();
        if let Some(master) = &terminal {
            if spec.stdin {
                kept.stdin = Some(master.try_clone()?);
            }
            kept.stdout = Some(master.try_clone()?);
        }
        for (fd, name, fanout) in
            [(kept.stdout.take(), "stdout", &stdout), (kept.stderr.take(), "stderr", &stderr)]
        {
            if let Some(fd) = fd {
                let source = stdio::asynchronous(fd)?;
                let pump = stdio::pump(source, name, Rc::clone(&log), Rc::clone(fanout));
                pumps.push(tokio::task::spawn_local(pump));
            }
        }
        let container = Rc::new(Container {
            id: id.to_owned(),
            spec,
            dir,
            start: start.clone(),
            pidfd,
            exit: RefCell::default(),
            stdin: RefCell::new(kept.stdin),
            terminal,
            stdout,
            stderr,
            log,
        });
        self.containers.borrow_mut().insert(id.to_owned(), Rc::clone(&container));
        self.tell(&Event::Running { container: id.to_owned(), start: start.clone() });
        tokio::task::spawn_local(supervise(Rc::clone(self), container, exit, pumps));
        Ok(start)
    }

    /// Runs a program in a container. Answers its process, its end, and the streams that the caller gets.
    ///
    /// # Errors
    /// Why it does not run, for people.
    pub async fn exec(
        &self,
        container: &Container,
        args: Vec<String>,
        tty: bool,
        streams: [bool; 3],
    ) -> io::Result<(i32, OwnedFd, oneshot::Receiver<i32>, Vec<OwnedFd>)> {
        if container.exit.borrow().is_some() {
            return Err(io::Error::other("the container is not running"));
        }
        let mut process = container.spec.process.clone();
        process.args = args;
        process.tty = tty;
        let (child_stdio, kept) =
            if tty { Default::default() } else { pipes(streams[0], streams[1], streams[2])? };
        let namespace = match container.spec.pid_mode {
            PidMode::Host => PidNamespace::Inherit,
            _ => PidNamespace::Join(container.pidfd.try_clone()?),
        };
        let cgroups = &container.spec.cgroups;
        let launched =
            self.launch(&namespace, 0, cgroups.v2.as_deref(), tty, child_stdio, |channels, in_v2| {
                let target = container.pidfd.as_fd();
                exec::run(&process, cgroups, &container.start.user, target, channels, in_v2)
            })?;
        let Launched { pid, pidfd, exit, status, console } = launched;
        if let Report { error: Some(error), .. } = read_reports(status).await? {
            let _ = exit.await;
            return Err(io::Error::other(error));
        }
        let fds = match console {
            Some(channel) => vec![receive_console(&channel)?],
            None => [kept.stdin, kept.stdout, kept.stderr].into_iter().flatten().collect(),
        };
        Ok((pid, pidfd, exit, fds))
    }
}

/// Pipes for a child's streams: (the child's ends, ours).
fn pipes(stdin: bool, stdout: bool, stderr: bool) -> io::Result<([Option<OwnedFd>; 3], Kept)> {
    let mut child = [None, None, None];
    let mut kept = Kept::default();
    if stdin {
        let (reader, writer) = stdio::pipe()?;
        (child[0], kept.stdin) = (Some(reader), Some(writer));
    }
    if stdout {
        let (reader, writer) = stdio::pipe()?;
        (child[1], kept.stdout) = (Some(writer), Some(reader));
    }
    if stderr {
        let (reader, writer) = stdio::pipe()?;
        (child[2], kept.stderr) = (Some(writer), Some(reader));
    }
    Ok((child, kept))
}

/// Reads a child's reports until its program runs (the pipe is close-on-exec) or it gives up; later ones win.
async fn read_reports(status: OwnedFd) -> io::Result<Report> {
    let status = stdio::asynchronous(status)?;
    let mut text = Vec::new();
    let mut buffer = [0u8; 1024];
    loop {
        match stdio::read(&status, &mut buffer).await? {
            0 => break,
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
    let mut all = Report::default();
    for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let report: Report = serde_json::from_slice(line)?;
        all.user = report.user.or(all.user);
        all.error = report.error.or(all.error);
    }
    Ok(all)
}

/// Takes the terminal that a child has sent; it has by the time its program runs.
fn receive_console(channel: &OwnedFd) -> io::Result<OwnedFd> {
    fd::set_nonblocking(channel)?;
    let mut byte = [0u8];
    let (_, fds) = socket::recv_with_fds(channel, &mut byte)?;
    fds.into_iter().next().ok_or_else(|| io::Error::other("the child sent no terminal"))
}

/// Waits for the end of a container, gathers its last output, and records how it ended.
async fn supervise(
    shim: Rc<Shim>,
    container: Rc<Container>,
    exit: oneshot::Receiver<i32>,
    pumps: Vec<JoinHandle<()>>,
) {
    let code = exit.await.unwrap_or(255);
    let finished_at = fsutil::now_nanos();
    // What a container leaves behind (in a shared PID namespace) ends with it.
    if let Err(e) = cgroup::kill_group(&container.spec.cgroups) {
        eprintln!("kill what {} left: {e}", container.id);
    }
    container.stdin.take();
    let drained = async {
        for pump in pumps {
            let _ = pump.await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        eprintln!("output of {} is held open by another process", container.id);
    }
    let kills = container
        .spec
        .cgroups
        .oom_file
        .as_ref()
        .and_then(|f| fs::read_to_string(f).ok())
        .and_then(|t| keyed(&t, "oom_kill"))
        .unwrap_or(0);
    let oom_killed = kills > 0 && code != 0;
    let record = ExitRecord { code, finished_at, oom_killed, reason: None, message: None };
    if let Err(e) = fsutil::write_json(&container.dir.join(files::EXIT), &record, true) {
        eprintln!("record exit of {}: {e}", container.id);
    }
    *container.exit.borrow_mut() = Some(record.clone());
    shim.tell(&Event::Exited { container: container.id.clone(), exit: record });
}
