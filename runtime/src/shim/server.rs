//! The shim's event loop: connections of the runtime, children that end.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};

use super::process::Container;
use super::proto::{self, Event, Request, Response};
use crate::cgroup;
use crate::spec::SandboxSpec;
use crate::sys::{process, tty};

/// All that a shim holds.
pub struct Shim {
    /// The sandbox.
    pub spec: SandboxSpec,
    /// Containers started, by id.
    pub containers: RefCell<HashMap<String, Rc<Container>>>,
    /// Children by process id: who waits for each, and a handle to it. Those that are being started are in here too.
    pub children: RefCell<HashMap<i32, (oneshot::Sender<i32>, OwnedFd)>>,
    /// The first process of the pod's PID namespace, once there is one.
    pub pause: RefCell<Option<OwnedFd>>,
    watchers: RefCell<Vec<mpsc::UnboundedSender<Event>>>,
    shutdown: Cell<bool>,
    wake: Notify,
}

/// Serves until told to shut down.
///
/// # Errors
/// When the event loop cannot be set up.
pub fn serve(spec: SandboxSpec, listener: std::os::unix::net::UnixListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = UnixListener::from_std(listener)?;
        let mut children = signal(SignalKind::child())?;
        // The pod ends when the runtime says so, not when a terminal or a service manager does.
        let _ignored = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ];
        let shim = Rc::new(Shim {
            spec,
            containers: RefCell::default(),
            children: RefCell::default(),
            pause: RefCell::default(),
            watchers: RefCell::default(),
            shutdown: Cell::new(false),
            wake: Notify::new(),
        });
        while !shim.shutdown.get() {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::task::spawn_local(serve_connection(Rc::clone(&shim), stream));
                    }
                    Err(e) => eprintln!("accept: {e}"),
                },
                _ = children.recv() => shim.reap(),
                () = shim.wake.notified() => {}
            }
        }
        Ok(())
    })
}

impl Shim {
    /// Collects every child that has ended; orphans of containers end up here too and are forgotten.
    fn reap(&self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some((waiter, _)) = self.children.borrow_mut().remove(&pid.as_raw()) {
                let _ = waiter.send(code);
            }
        }
    }

    /// Tells those who watch.
    pub fn tell(&self, event: &Event) {
        self.watchers.borrow_mut().retain(|w| w.send(event.clone()).is_ok());
    }

    fn container(&self, id: &str) -> Result<Rc<Container>, String> {
        self.containers
            .borrow()
            .get(id)
            .cloned()
            .ok_or_else(|| format!("container {id} has not been started"))
    }

    /// True once the shim is to end; nothing may be started any more.
    pub fn ending(&self) -> bool {
        self.shutdown.get()
    }

    fn kill_everything(&self) {
        // Every child first: one that is being started may not be in its cgroup yet.
        for (_, pidfd) in self.children.borrow().values() {
            // ESRCH when it has ended and waits to be collected.
            let _ = process::pidfd_send_signal(pidfd, libc::SIGKILL);
        }
        for container in self.containers.borrow().values() {
            if container.exit.borrow().is_none()
                && let Err(e) = cgroup::kill_group(&container.spec.cgroups)
            {
                eprintln!("kill {}: {e}", container.id);
            }
        }
        if let Some(pause) = self.pause.take() {
            let _ = process::pidfd_send_signal(pause, libc::SIGKILL);
        }
    }
}

async fn serve_connection(shim: Rc<Shim>, stream: UnixStream) {
    let request = match proto::receive::<Request>(&stream).await {
        Ok(Some((request, _))) => request,
        Ok(None) => return,
        Err(e) => {
            eprintln!("request: {e}");
            return;
        }
    };
    if let Err(e) = answer(&shim, &stream, request).await {
        // The runtime went away; it will ask again.
        eprintln!("answer: {e}");
    }
}

/// Sends a plain answer.
async fn reply(stream: &UnixStream, result: Result<Response, String>) -> io::Result<()> {
    let response = result.unwrap_or_else(|message| Response::Failed { message });
    proto::send(stream, &response, &[]).await
}

fn text(e: io::Error) -> String {
    e.to_string()
}

async fn answer(shim: &Rc<Shim>, stream: &UnixStream, request: Request) -> io::Result<()> {
    match request {
        Request::Start { container } => {
            // On its own: a runtime that dies meanwhile must not leave a container half started.
            let owner = Rc::clone(shim);
            let started = tokio::task::spawn_local(async move { owner.start(&container).await }).await;
            let started = started.unwrap_or_else(|e| Err(io::Error::other(e)));
            reply(stream, started.map(Response::Started).map_err(text)).await
        }
        Request::Signal { container, signal } => {
            let result = shim.container(&container).and_then(|c| {
                if c.exit.borrow().is_some() {
                    return Ok(Response::Done);
                }
                match process::pidfd_send_signal(&c.pidfd, signal) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(text(e)),
                    _ => Ok(Response::Done),
                }
            });
            reply(stream, result).await
        }
        Request::KillAll { container } => {
            let result = shim
                .container(&container)
                .and_then(|c| cgroup::kill_group(&c.spec.cgroups).map(|()| Response::Done).map_err(text));
            reply(stream, result).await
        }
        Request::Exec { container, args, tty, stdin, stdout, stderr } => {
            let container = match shim.container(&container) {
                Ok(c) => c,
                Err(message) => return reply(stream, Err(message)).await,
            };
            serve_exec(shim, stream, &container, args, tty, [stdin, stdout, stderr]).await
        }
        Request::Attach { container, stdin, stdout, stderr } => {
            match shim.container(&container).and_then(|c| attach(&c, stdin, stdout, stderr).map_err(text)) {
                Err(message) => reply(stream, Err(message)).await,
                Ok((streams, fds)) => {
                    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
                    proto::send(stream, &Response::Attached { streams }, &raw).await
                }
            }
        }
        Request::CloseStdin { container } => {
            let result = shim.container(&container).map(|c| {
                c.stdin.take();
                Response::Done
            });
            reply(stream, result).await
        }
        Request::Resize { container, columns, rows } => {
            let result = shim.container(&container).and_then(|c| match &c.terminal {
                Some(master) => {
                    tty::set_window_size(master, columns, rows).map(|()| Response::Done).map_err(text)
                }
                None => Err("the container has no terminal".into()),
            });
            reply(stream, result).await
        }
        Request::ReopenLog { container } => {
            let result = shim
                .container(&container)
                .and_then(|c| c.log.borrow_mut().reopen().map(|()| Response::Done).map_err(text));
            reply(stream, result).await
        }
        Request::Watch => watch(shim, stream).await,
        Request::Shutdown => {
            shim.shutdown.set(true);
            shim.kill_everything();
            let sent = reply(stream, Ok(Response::Done)).await;
            shim.wake.notify_one();
            sent
        }
        Request::ExecSignal { .. } => reply(stream, Err("no exec on this connection".into())).await,
    }
}

fn attach(c: &Container, stdin: bool, stdout: bool, stderr: bool) -> io::Result<([bool; 3], Vec<OwnedFd>)> {
    if c.exit.borrow().is_some() {
        return Err(io::Error::other("the container is not running"));
    }
    let mut streams = [false; 3];
    let mut fds = Vec::new();
    if stdin && let Some(fd) = c.stdin.borrow().as_ref() {
        fds.push(fd.try_clone()?);
        streams[0] = true;
    }
    if stdout {
        fds.push(c.stdout.attach()?);
        streams[1] = true;
    }
    // A terminal has one output.
    if stderr && c.terminal.is_none() {
        fds.push(c.stderr.attach()?);
        streams[2] = true;
    }
    Ok((streams, fds))
}

async fn serve_exec(
    shim: &Shim,
    stream: &UnixStream,
    container: &Container,
    args: Vec<String>,
    tty: bool,
    streams: [bool; 3],
) -> io::Result<()> {
    let (pid, pidfd, exit, fds) = match shim.exec(container, args, tty, streams).await {
        Ok(started) => started,
        Err(e) => return reply(stream, Err(text(e))).await,
    };
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    proto::send(stream, &Response::ExecStarted { pid }, &raw).await?;
    drop(fds);
    let mut exit = exit;
    loop {
        tokio::select! {
            code = &mut exit => {
                let code = code.unwrap_or(255);
                return proto::send(stream, &Response::ExecExited { code }, &[]).await;
            }
            request = proto::receive::<Request>(stream) => match request? {
                Some((Request::ExecSignal { signal }, _)) => {
                    signal_group(pid, &pidfd, signal);
                }
                Some(_) => {}
                // The runtime is gone; the program ends by its own closed streams, or goes on.
                None => return Ok(()),
            }
        }
    }
}

/// Signals an exec'd program and what it started: it leads a session, and so a process group, of its own. Its
/// process id cannot have been given away, for its end has not been collected.
fn signal_group(pid: i32, pidfd: &OwnedFd, signal: i32) {
    if let Err(e) = process::pidfd_send_signal(pidfd, signal) {
        eprintln!("signal exec {pid}: {e}");
    }
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        // ESRCH when it was alone.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal);
    }
}

async fn watch(shim: &Shim, stream: &UnixStream) -> io::Result<()> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut past = Vec::new();
    for c in shim.containers.borrow().values() {
        past.push(match c.exit.borrow().as_ref() {
            Some(exit) => Event::Exited { container: c.id.clone(), exit: exit.clone() },
            None => Event::Running { container: c.id.clone(), start: c.start.clone() },
        });
    }
    // No await between the look at the past and this: nothing falls between them.
    shim.watchers.borrow_mut().push(sender);
    past.push(Event::Synced { pid: std::process::id().cast_signed() });
    for event in past {
        proto::send(stream, &Response::Event(event), &[]).await?;
    }
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => proto::send(stream, &Response::Event(event), &[]).await?,
                None => return Ok(()),
            },
            closed = proto::receive::<Request>(stream) => match closed? {
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }
}
