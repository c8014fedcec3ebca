//! A whole sandbox for tests: removed when dropped, also after a failure.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use xtask::sandbox::Sandbox;
use xtask::{build, images};

/// The image of a program of the tests' own.
pub const PROGRAM: &str = "hawser.local/test/program:1";

/// A running sandbox.
pub struct Cluster {
    sandbox: Sandbox,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts a sandbox of `nodes` nodes with the demo's images and, if given, an image [`PROGRAM`] of a program.
    pub fn start(
        name: &str,
        binary: &Path,
        nodes: u8,
        server_flags: &[&str],
        program: Option<&Path>,
    ) -> Result<Self> {
        Self::start_as(name, binary, nodes, program, |sandbox| sandbox.with_server_flags(server_flags))
    }

    /// The same with a sandbox of another kind.
    pub fn start_as(
        name: &str,
        binary: &Path,
        nodes: u8,
        program: Option<&Path>,
        configure: impl FnOnce(Sandbox) -> Sandbox,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hawser-test-").tempdir()?;
        let name = format!("{name}-{}", std::process::id());
        let sandbox = configure(Sandbox::new(&name, &directory.path().join("sandbox"), binary));
        let cluster = Cluster { sandbox, _directory: directory };
        let mut archives = images::build_demo(&build::demo_images_dir())?;
        if let Some(program) = program {
            let archive = cluster._directory.path().join("program.tar");
            images::build_program(PROGRAM, program, &archive)?;
            archives.push(archive);
        }
        cluster
            .sandbox
            .start(nodes, &archives, &|_| {})
            .with_context(|| cluster.logs_tail())
            .context("starting the sandbox")?;
        Ok(cluster)
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.sandbox.kubeconfig()
    }

    /// A client with the administrator's certificate.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// The last lines of every log, for a failure's message.
    pub fn logs_tail(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.sandbox.logs()).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- {}\n", entry.file_name().to_string_lossy()));
            for line in lines.iter().skip(lines.len().saturating_sub(30)) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.sandbox.remove() {
            eprintln!("the sandbox could not be removed: {error:#}");
        }
    }
}

/// A client for a kubeconfig.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
