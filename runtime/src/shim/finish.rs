//! The last steps before a container's program runs, for its init and for an exec alike: working directory,
//! capabilities, user, seccomp, `execve`. Runs in a forked child.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use caps::CapSet;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::rootfs;
use crate::spec::user::{self, User};
use crate::spec::{CapabilitySets, ProcessSpec, SeccompProgram};
use crate::sys::{process, seccomp};

/// What a child tells its shim over the status pipe, one JSON text per line, before it runs the program; the end
/// of the pipe without an error means that it runs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Who it runs as.
    #[serde(default)]
    pub user: Option<User>,
    /// Why it cannot run.
    #[serde(default)]
    pub error: Option<String>,
}

/// Sends a report; nobody can be told when that fails.
pub fn report(status: &mut impl Write, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = status.write_all(&line);
    }
}

/// For `map_err`: says what was being done.
pub fn context<'a, E: Into<io::Error>>(what: &'a str) -> impl FnOnce(E) -> io::Error + 'a {
    move |e| {
        let e: io::Error = e.into();
        io::Error::new(e.kind(), format!("{what}: {e}"))
    }
}

/// The largest passwd or group file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads a regular file of the container, empty when there is none. A pipe or device in its place is ignored.
fn container_file(root: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let Ok(fd) = openat2(root, path, how) else { return Ok(String::new()) };
    if SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    File::from(fd).take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Resolves the user against the container's own files; `/` must be the container's root already.
///
/// # Errors
/// An unknown name.
pub fn resolve_user(request: &user::UserRequest) -> io::Result<User> {
    let root = File::open("/")?;
    let passwd = container_file(root.as_fd(), "etc/passwd")?;
    let group = container_file(root.as_fd(), "etc/group")?;
    user::resolve(request, &passwd, &group).map_err(io::Error::other)
}

/// Changes to the working directory, made when it is not there. The descriptor is opened below the container's
/// root with no magic links, so a `/proc/self/fd/N` that leads out cannot be it.
fn enter_cwd(cwd: &str) -> io::Result<()> {
    let root = File::open("/")?;
    let dir = rootfs::ensure(root.as_fd(), cwd, rootfs::Kind::Directory)?;
    nix::unistd::fchdir(&dir)?;
    Ok(())
}

/// The environment as the program gets it: the last setting of each name, with HOME and PATH always there.
pub fn environment(env: &[String], home: &str, terminal: bool) -> Vec<String> {
    let mut out: Vec<&str> = Vec::new();
    let name = |kv: &str| kv.split_once('=').map_or(kv, |(n, _)| n).to_owned();
    for kv in env {
        let n = name(kv);
        out.retain(|o| name(o) != n);
        out.push(kv);
    }
    let has = |n: &str| out.iter().any(|o| name(o) == n);
    let mut extra = Vec::new();
    if !has("PATH") {
        extra.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    if !has("HOME") {
        extra.push(format!("HOME={home}"));
    }
    if terminal && !has("TERM") {
        extra.push("TERM=xterm".to_owned());
    }
    extra.into_iter().chain(out.into_iter().map(str::to_owned)).collect()
}

/// Finds the program as a shell would, in the container's PATH.
fn find_program(program: &str, env: &[String]) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(PathBuf::from(program));
    }
    let path = env.iter().find_map(|kv| kv.strip_prefix("PATH=")).unwrap_or("");
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(program);
        let is_file = std::fs::metadata(&candidate).is_ok_and(|m| m.is_file());
        if is_file && nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
            return Ok(candidate);
        }
    }
    let text = format!("exec: {program:?}: executable file not found in $PATH");
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

fn capability_set(mask: u64) -> caps::CapsHashSet {
    caps::all().into_iter().filter(|c| mask & c.bitmask() != 0).collect()
}

fn drop_bounding(permitted: u64) -> io::Result<()> {
    for cap in caps::all() {
        if permitted & cap.bitmask() == 0
            && caps::has_cap(None, CapSet::Bounding, cap).map_err(io::Error::other)?
        {
            caps::drop(None, CapSet::Bounding, cap).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    // What this machine withholds from us cannot be given on.
    let ours = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let own = |mask| capability_set(mask).intersection(&ours).copied().collect::<caps::CapsHashSet>();
    let (permitted, ambient) = (own(sets.permitted), own(sets.ambient));
    caps::set(None, CapSet::Inheritable, &ambient).map_err(io::Error::other)?;
    // Effective first: it must stay within permitted at each step.
    caps::set(None, CapSet::Effective, &permitted).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &permitted).map_err(io::Error::other)?;
    for cap in ambient {
        caps::raise(None, CapSet::Ambient, cap).map_err(io::Error::other)?;
    }
    Ok(())
}

fn install_filter(program: Option<&SeccompProgram>) -> io::Result<()> {
    let Some(program) = program else { return Ok(()) };
    let instructions: Vec<_> = program
        .instructions
        .iter()
        .map(|&(code, jt, jf, k)| seccomp::Instruction { code, jt, jf, k })
        .collect();
    seccomp::install(&instructions, program.flags)
}

fn become_user(user: &User) -> io::Result<()> {
    let groups: Vec<_> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&groups).map_err(context("set groups"))?;
    let gid = Gid::from_raw(user.gid);
    nix::unistd::setresgid(gid, gid, gid).map_err(context("set gid"))?;
    nix::sys::prctl::set_keepcaps(true)?;
    let uid = Uid::from_raw(user.uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(context("set uid"))?;
    Ok(())
}

/// Makes stdin, stdout and stderr out of the given descriptors (`/dev/null` for those missing), owned by the
/// user so that opening `/dev/stdout` works for it.
///
/// # Errors
/// What the kernel answered.
pub fn set_stdio(stdio: [Option<OwnedFd>; 3], uid: u32) -> io::Result<()> {
    for (n, fd) in stdio.into_iter().enumerate() {
        let fd = match fd {
            Some(fd) => {
                // Terminals of privileged pods may be on read-only devices: not being able to own one is no
                // reason not to run.
                let _ = nix::unistd::fchown(&fd, Some(Uid::from_raw(uid)), None);
                fd
            }
            None => OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?),
        };
        match n {
            0 => nix::unistd::dup2_stdin(&fd)?,
            1 => nix::unistd::dup2_stdout(&fd)?,
            _ => nix::unistd::dup2_stderr(&fd)?,
        }
    }
    Ok(())
}

/// Takes on everything the process spec says and runs its program. Returns only with an error.
///
/// # Errors
/// Whatever stood in the way, in words for the person who wrote the pod.
pub fn run_program(spec: &ProcessSpec, user: &User, status: &mut File) -> io::Result<Infallible> {
    let env = environment(&spec.env, &user.home, spec.tty);
    enter_cwd(&spec.cwd).map_err(context(&format!("chdir to {:?}", spec.cwd)))?;
    let program = spec.args.first().ok_or_else(|| io::Error::other("no command specified"))?;
    let path = find_program(program, &env)?;
    let c_strings =
        |list: &[String]| list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let (args, env) = (c_strings(&spec.args)?, c_strings(&env)?);
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;

    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    report(status, &Report { user: Some(user.clone()), error: None });
    drop_bounding(spec.capabilities.permitted).map_err(context("drop bounding capabilities"))?;
    process::cloexec_from(3).map_err(context("close descriptors"))?;
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which goes away below.
    if !spec.no_new_privileges {
        install_filter(spec.seccomp.as_ref()).map_err(context("install seccomp filter"))?;
    }
    become_user(user)?;
    set_capabilities(spec.capabilities).map_err(context("set capabilities"))?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
        install_filter(spec.seccomp.as_ref()).map_err(context("install seccomp filter"))?;
    }
    let errno = match nix::unistd::execve(&path, &args, &env) {
        Err(e) => e,
        Ok(never) => match never {},
    };
    let text = format!("exec: {program:?}: {}", io::Error::from(errno));
    Err(io::Error::new(io::Error::from(errno).kind(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_keeps_the_last_and_adds_the_usual() {
        let env = ["A=1", "PATH=/x", "A=2", "B"].map(str::to_owned);
        assert_eq!(environment(&env, "/root", true), ["HOME=/root", "TERM=xterm", "PATH=/x", "A=2", "B"]);
        let home = ["HOME=/h".to_owned()];
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(environment(&home, "/root", false), [path, "HOME=/h"]);
    }
}
