//! Configuration of the runtime: as given, and as checked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Configuration as given.
#[derive(Debug, Clone)]
pub struct Config {
    /// Durable data: images, writable layers.
    pub data_dir: PathBuf,
    /// State of what runs; may be lost with a restart of the machine, not sooner.
    pub run_dir: PathBuf,
    /// The node's cgroup: below each hierarchy's mount point when absolute, else below this process' own.
    pub cgroup_root: PathBuf,
    /// Where CRI is served; `None` for `cri.sock` in the run directory.
    pub socket: Option<PathBuf>,
    /// Archives to load at start.
    pub images_dir: Option<PathBuf>,
    /// Registries (`host` or `host:port`) spoken to without TLS, beside those on loopback.
    pub insecure_registries: Vec<String>,
    /// Where exec and attach streams are served; must be a loopback address, port 0 for any.
    pub streaming: SocketAddr,
    /// Where `Localhost` seccomp profiles with relative names lie.
    pub seccomp_dir: PathBuf,
    /// Open files a container may have: soft and hard limit.
    pub open_files: (u64, u64),
    /// Processes and threads a pod may have; `None` for no limit of the runtime's own.
    pub pod_pids_limit: Option<i64>,
}

impl Config {
    /// The defaults for these directories and this cgroup.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        cgroup_root: impl Into<PathBuf>,
    ) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            cgroup_root: cgroup_root.into(),
            socket: None,
            images_dir: None,
            insecure_registries: Vec::new(),
            streaming: SocketAddr::from(([127, 0, 0, 1], 0)),
            seccomp_dir: "/var/lib/kubelet/seccomp".into(),
            open_files: (1024, 524_288),
            pod_pids_limit: None,
        }
    }
}

/// A checked configuration with the places derived from it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What was given.
    pub config: Config,
    /// CRI socket.
    pub socket: PathBuf,
}

fn absolute(name: &str, path: &Path) -> Result<()> {
    if !path.is_absolute() {
        return Err(Error::Config(format!("{name} {} is not absolute", path.display())));
    }
    // These separate the parts of overlayfs' mount options.
    if path.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b',' | b':' | b'\\' | b'"')) {
        return Err(Error::Config(format!(
            "{name} {} has a comma, colon, quote or backslash",
            path.display()
        )));
    }
    Ok(())
}

impl Settings {
    /// Checks a configuration.
    ///
    /// # Errors
    /// `Config` with what cannot work.
    pub fn new(config: Config) -> Result<Self> {
        absolute("data directory", &config.data_dir)?;
        absolute("run directory", &config.run_dir)?;
        if config.cgroup_root.as_os_str().is_empty() || config.cgroup_root == Path::new("/") {
            return Err(Error::Config("the cgroup root must be a group of its own".into()));
        }
        if !config.streaming.ip().is_loopback() {
            return Err(Error::Config(format!(
                "streams are not protected: {} is not loopback",
                config.streaming
            )));
        }
        if config.open_files.0 > config.open_files.1 {
            return Err(Error::Config("the soft limit of open files is above the hard one".into()));
        }
        let socket = config.socket.clone().unwrap_or_else(|| config.run_dir.join("cri.sock"));
        Ok(Self { config, socket })
    }

    /// One directory per sandbox: its spec, state, shim socket and files.
    pub fn sandboxes(&self) -> PathBuf {
        self.config.run_dir.join("sandboxes")
    }

    /// One directory per container: its spec, state, and how it ended.
    pub fn containers(&self) -> PathBuf {
        self.config.run_dir.join("containers")
    }

    /// Bound network namespaces, named by sandbox.
    pub fn netns(&self) -> PathBuf {
        self.config.run_dir.join("netns")
    }

    /// Writable layers, one directory per container.
    pub fn layers(&self) -> PathBuf {
        self.config.data_dir.join("containers")
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.config.data_dir.join("images")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused() {
        let good = Config::new("/d", "/r", "hawser");
        assert!(Settings::new(good.clone()).is_ok_and(|s| s.socket == Path::new("/r/cri.sock")));
        let bad: [fn(&mut Config); 6] = [
            |c| c.data_dir = "d".into(),
            |c| c.data_dir = "/a:b".into(),
            |c| c.cgroup_root = "/".into(),
            |c| c.cgroup_root = "".into(),
            |c| c.streaming = SocketAddr::from(([0, 0, 0, 0], 1)),
            |c| c.open_files = (2, 1),
        ];
        for (n, change) in bad.iter().enumerate() {
            let mut c = good.clone();
            change(&mut c);
            assert!(Settings::new(c).is_err(), "case {n}");
        }
    }
}
