//! The shim: one small single-threaded process per pod that holds the pod's namespaces, is the parent of its
//! containers, writes their logs, records how they end, and outlives the runtime.
//!
//! Architecture invariant: the shim makes no threads. It forks children that go on running Rust code, which is
//! sound only so (`sys::process::spawn` checks).

pub mod exec;
pub mod finish;
pub mod init;
pub mod log;
pub mod process;
pub mod proto;
pub mod rootfs;
pub mod server;
pub mod stdio;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::spec::SandboxSpec;
use crate::sys::net;

/// `argv[1]` of a shim.
pub const SUBCOMMAND: &str = "shim";
/// The shim's socket, in the sandbox's directory.
pub const SOCKET: &str = "shim.sock";
/// The sandbox's spec, in its directory.
pub const SPEC: &str = "spec.json";

/// Runs a shim when `args` (with the program's name first) say so. Call it first thing in `main`, before any
/// thread starts; `None` means that this is an ordinary start.
pub fn reexec(args: &[OsString]) -> Option<ExitCode> {
    if args.get(1)? != SUBCOMMAND {
        return None;
    }
    let parent = args.get(3).and_then(|p| p.to_str()).and_then(|p| p.parse().ok());
    let (Some(dir), Some(parent)) = (args.get(2), parent) else {
        eprintln!("usage: shim SANDBOX-DIRECTORY PARENT-PROCESS");
        return Some(ExitCode::from(2));
    };
    Some(match run(Path::new(dir), parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("shim: {e}");
            ExitCode::FAILURE
        }
    })
}

/// Sets the namespaces up, tells the runtime on stdout ("ready" or what went wrong), and serves.
///
/// Until then it dies with the runtime: a runtime that comes after that one must not find a sandbox that is still
/// coming into being.
fn run(dir: &Path, parent: i32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() != parent {
        return Err(io::Error::other("the runtime is gone"));
    }
    std::env::set_current_dir(dir)?;
    let prepared = prepare();
    prctl::set_pdeathsig(None)?;
    let mut stdout = io::stdout();
    match &prepared {
        Ok(_) => writeln!(stdout, "ready")?,
        Err(e) => writeln!(stdout, "{e}")?,
    }
    stdout.flush()?;
    // The runtime's pipe must close now, and nothing may write to it later.
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    let (spec, listener) = prepared?;
    server::serve(spec, listener)
}

fn context<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> io::Error + '_ {
    move |e| {
        let e: io::Error = e.into();
        io::Error::new(e.kind(), format!("{what}: {e}"))
    }
}

fn prepare() -> io::Result<(SandboxSpec, std::os::unix::net::UnixListener)> {
    // A process group leader cannot make a session; it is then in one of its own making already.
    let _ = nix::unistd::setsid();
    prctl::set_child_subreaper(true)?;
    // Nothing in a container may read this process through /proc.
    prctl::set_dumpable(false)?;
    let _ = prctl::set_name(c"hawser-shim");
    // Best effort: an unprivileged test environment may refuse to lower it.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    let spec: SandboxSpec = serde_json::from_slice(&fs::read(SPEC)?)?;

    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, spec.netns.is_some());
    flags.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, spec.hostname.is_some());
    unshare(flags).map_err(context("make namespaces"))?;
    if let Some(name) = &spec.hostname {
        nix::unistd::sethostname(name).map_err(context("set host name"))?;
    }
    if let Some(path) = &spec.netns {
        fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        mount(Some("/proc/self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(context("bind network namespace"))?;
        net::loopback_up().map_err(context("bring lo up"))?;
    }
    for (key, value) in &spec.sysctls {
        // sysctl(8): dots and slashes swap places, so that an interface's name may have a dot.
        let file: String = key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        let path = Path::new("/proc/sys").join(file);
        fs::write(&path, value).map_err(context(&format!("set {key} to {value:?}")))?;
    }
    let listener = std::os::unix::net::UnixListener::bind(SOCKET)?;
    listener.set_nonblocking(true)?;
    Ok((spec, listener))
}
