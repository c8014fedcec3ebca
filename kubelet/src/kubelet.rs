//! The kubelet as one component: makes the parts and runs them together.

use crate::config::{Checked, Config, ConfigError};
use crate::cri::Runtime;
use crate::events::Recorder;
use crate::images::Images;
use crate::manager::{self, Pods};
use crate::node::{NodeKeeper, machine};
use crate::objects::Cache;
use crate::pod::NodeFacts;
use crate::server::{self, Server};
use crate::services::Services;
use crate::shared::Shared;
use crate::volumes::{Roots, ensure_tmpfs};
use crate::{dns, logs};
use hawser_api::dataplane::Programmed;
use kube::Client;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// The kubelet of one node.
pub struct Kubelet {
    config: Checked,
    client: Client,
    heartbeat: Arc<Notify>,
    programmed: watch::Sender<Option<Programmed>>,
}

/// Why a kubelet does not start.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory cannot be made.
    #[error("{0}: {1}")]
    Directory(String, #[source] std::io::Error),
    /// The streaming server cannot start.
    #[error("the kubelet's server: {0}")]
    Server(#[from] server::ServerError),
}

impl Kubelet {
    /// A kubelet with a configuration, which is checked here, and a client of the API.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: Config, client: Client) -> Result<Kubelet, KubeletError> {
        Ok(Kubelet {
            config: config.check()?,
            client,
            heartbeat: Arc::default(),
            programmed: watch::Sender::new(None),
        })
    }

    /// Told each time that the kubelet has renewed its Lease or gone through a ready node's status.
    pub fn heartbeat(&self) -> Arc<Notify> {
        self.heartbeat.clone()
    }

    /// Takes what the node's dataplane has programmed: the resourceVersion up to which all EndpointSlices are in the
    /// kernel's maps. The kubelet says so in its Lease.
    pub fn programmed(&self) -> watch::Sender<Option<Programmed>> {
        self.programmed.clone()
    }

    /// Runs until cancelled. Containers outlive it.
    ///
    /// # Errors
    /// When directories or the server's port or certificate are not to be had.
    pub async fn run(self, stop: CancellationToken) -> Result<(), KubeletError> {
        let Kubelet { config, client, heartbeat, programmed } = self;
        let roots = Roots {
            disk: config.data_dir.join("pods"),
            memory: config.data_dir.join("memory"),
            tmpfs: config.tmpfs,
        };
        for dir in [&config.data_dir, &roots.disk, &roots.memory] {
            make_private(dir)?;
        }
        make_dir(&config.log_dir)?;
        if config.tmpfs {
            ensure_tmpfs(&roots.memory)
                .map_err(|e| KubeletError::Directory(roots.memory.display().to_string(), e))?;
        }
        let runtime = Runtime::new(&config.cri_socket);
        let recorder = Recorder::start(client.clone(), &config.node_name);
        let shared = Arc::new(Shared {
            images: Images::new(runtime.clone()),
            config_maps: Cache::new(client.clone()),
            secrets: Cache::new(client.clone()),
            services: Services::start(client.clone()),
            host_dns: dns::host_resolver(&config.resolv_conf, &config.node_ips),
            facts: NodeFacts {
                host_ips: config.node_ips.iter().map(ToString::to_string).collect(),
                acknowledged: config.await_dataplanes,
            },
            node_memory: machine::memory_bytes(),
            allocatable: machine::capacity(&config.data_dir, config.max_pods),
            config: config.clone(),
            client: client.clone(),
            runtime: runtime.clone(),
            recorder: recorder.clone(),
            roots,
        });
        let pods = Pods::default();
        let server = match config.listen.is_empty() {
            false => Some(Server::bind(shared.clone(), pods.clone()).await?),
            true => None,
        };
        let node = NodeKeeper {
            config: config.clone(),
            client,
            runtime: runtime.clone(),
            recorder,
            heartbeat,
            programmed: programmed.subscribe(),
        };
        let serving = async {
            match server {
                Some(server) => server.run(stop.child_token()).await,
                None => stop.cancelled().await,
            }
        };
        tokio::join!(
            manager::run(shared, pods, stop.child_token()),
            node.run(stop.child_token()),
            logs::rotate(runtime, config.log_max_size, config.log_max_files, stop.child_token()),
            serving,
        );
        Ok(())
    }
}

fn make_dir(dir: &Path) -> Result<(), KubeletError> {
    std::fs::create_dir_all(dir).map_err(|e| KubeletError::Directory(dir.display().to_string(), e))
}

/// Pod directories hold secrets; but the paths to them must be passable for mounts, which the runtime makes as root.
fn make_private(dir: &Path) -> Result<(), KubeletError> {
    make_dir(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))
        .map_err(|e| KubeletError::Directory(dir.display().to_string(), e))
}
