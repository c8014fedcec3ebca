//! Test kit: scratch namespaces, cgroups and a tiny API server. Everything lives in anonymous namespaces
//! or below directories of its own, and is gone when its guard is dropped, also after a panic.
#![allow(dead_code)] // every test binary uses a part of it

pub mod api;
pub mod cluster;
pub mod node;
pub mod packet;
pub mod traffic;
pub mod world;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a test on a thread with mounts and a network of its own, and gives it a directory that is gone
/// afterwards. All threads that the test starts share them.
pub fn isolated(test: impl FnOnce(&Path) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces and needs root");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_path_buf();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("new namespaces");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("private mounts");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
        test(&path);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace that lives as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// The calling thread's.
    pub fn current() -> Self {
        Self { file: File::open("/proc/thread-self/ns/net").expect("own namespace") }
    }

    /// A new one, with loopback up.
    pub fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            run("ip link set lo up");
            Self::current()
        });
        thread.join().expect("the namespace thread")
    }

    /// A path by which anything in this process, or its children, can open it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Moves the calling thread into it.
    pub fn enter(&self) {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering a network namespace");
    }

    /// Runs something inside, on a thread of its own.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        self.run_in(None, inside)
    }

    /// As [`Self::run`], as a member of a cgroup.
    pub fn run_in<T: Send>(&self, cgroup: Option<&Cgroup>, inside: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                if let Some(cgroup) = cgroup {
                    cgroup.enter();
                }
                inside()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Runs a command line of words, in the calling thread's namespaces.
pub fn run(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the command starts");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A cgroup v2 below this process' own, which single threads can enter.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one.
    pub fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mount = mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ');
                let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
                (kind == "cgroup2").then(|| at.to_string())
            })
            .next()
            .expect("a cgroup v2 hierarchy");
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("own cgroup");
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).expect("a cgroup v2").to_string();
        let name = format!("hawser-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(&mount).join(own.trim_start_matches('/')).join(name);
        std::fs::create_dir(&path).expect("a cgroup");
        let cgroup = Self { path };
        std::fs::write(cgroup.path.join("cgroup.type"), "threaded").expect("a threaded cgroup");
        cgroup
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into it.
    pub fn enter(&self) {
        let mut file =
            File::options().write(true).open(self.path.join("cgroup.threads")).expect("cgroup.threads");
        file.write_all(b"0").expect("entering a cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads that have just ended may still be on their way out.
        for _ in 0..200 {
            match std::fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => return,
            }
        }
        eprintln!("left behind: {}", self.path.display());
    }
}

/// Waits until something is so; for what the kernel does in its own time.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never happened: {what}");
}

/// The error number of a failed call.
pub fn errno<T>(result: &io::Result<T>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}
