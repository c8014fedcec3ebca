//! The runtime itself: sandboxes and containers, their records on disk, their shims.

pub mod container;
pub mod devices;
pub mod events;
pub mod recover;
pub mod sandbox;
pub mod shim_client;
pub mod stats;
pub mod store;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::ContainerEventResponse;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::cgroup::Cgroups;
use crate::config::{Config, Settings};
use crate::error::{Error, Result};
use crate::image::pull::blocking;
use crate::image::store::{ImageRecord, ImageStore};
use crate::network::PodNetwork;
use crate::streaming::Streaming;
use crate::sys::mount;
use store::Store;

/// Events kept for a slow reader of GetContainerEvents before it loses some (and is told so).
const EVENT_BACKLOG: usize = 1024;

/// How often an image that is awaited is looked for while archives are loaded.
const LOAD_LOOK: Duration = Duration::from_millis(20);

/// The container runtime. Cheap to clone; all clones are one runtime.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

/// What the parts of the runtime share.
pub(crate) struct Inner {
    pub settings: Settings,
    pub network: Arc<dyn PodNetwork>,
    pub images: Arc<ImageStore>,
    pub cgroups: Cgroups,
    pub store: Store,
    pub events: broadcast::Sender<ContainerEventResponse>,
    pub streaming: Streaming,
    /// True once the archives of the images directory are loaded (or have failed).
    loaded: watch::Sender<bool>,
    /// This program behind a read-only mount of its own: a container that gets hold of a shim's `/proc/PID/exe`
    /// cannot write to it.
    program: OwnedFd,
}

impl Runtime {
    /// Checks the configuration, opens the image store and finds again what runs. Call within a tokio runtime.
    ///
    /// # Errors
    /// A configuration that cannot work, or what the file system answered.
    pub fn new(config: Config, network: Arc<dyn PodNetwork>) -> Result<Self> {
        let settings = Settings::new(config)?;
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::Config("the container runtime needs root".into()));
        }
        for dir in [settings.sandboxes(), settings.containers(), settings.netns(), settings.layers()] {
            std::fs::create_dir_all(&dir).map_err(Error::path("create", &dir))?;
        }
        let cgroups = Cgroups::discover(&settings.config.cgroup_root)?;
        cgroups.prepare_root()?;
        let images = Arc::new(ImageStore::open(&settings.images())?);
        let program = read_only_program().map_err(Error::io("mount this program read-only"))?;
        let inner = Arc::new(Inner {
            network,
            images,
            cgroups,
            store: Store::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            streaming: Streaming::bind(settings.config.streaming)?,
            loaded: watch::Sender::new(settings.config.images_dir.is_none()),
            program,
            settings,
        });
        Ok(Self { inner })
    }

    /// Where CRI is served.
    pub fn socket(&self) -> &Path {
        &self.inner.settings.socket
    }

    /// The runtime's root directory in the cgroup v2 (or `unified`) hierarchy: every container is below it.
    pub fn cgroup_v2_root(&self) -> Option<&Path> {
        self.inner.cgroups.v2_root()
    }

    /// Loads the images of an archive (OCI layout or `docker save`, a tar file). Answers their ids.
    ///
    /// # Errors
    /// `Corrupt` for what is no such archive, else what the file system answered.
    pub async fn load_archive(&self, path: impl Into<PathBuf>) -> Result<Vec<String>> {
        let (images, path) = (Arc::clone(&self.inner.images), path.into());
        let loaded = blocking(move || crate::image::archive::load(&images, &path)).await?;
        Ok(loaded.iter().map(|i| i.id.clone()).collect())
    }

    /// Every image there is.
    pub fn images(&self) -> Vec<Arc<ImageRecord>> {
        self.inner.images.list()
    }

    /// Loads every archive of the configured directory, one after the other so that pods are not starved.
    async fn load_images_dir(&self) {
        let Some(dir) = &self.inner.settings.config.images_dir else { return };
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) => {
                tracing::error!(dir = %dir.display(), error = %e, "cannot read the images directory");
                return;
            }
        };
        let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|x| x == "tar"));
        paths.sort();
        for path in paths {
            match self.load_archive(&path).await {
                Ok(ids) => tracing::info!(path = %path.display(), ?ids, "loaded images"),
                Err(e) => tracing::error!(path = %path.display(), error = %e, "cannot load an archive"),
            }
        }
    }

    /// Serves CRI and streams until cancelled. Containers go on running after it.
    ///
    /// # Errors
    /// When the socket cannot be served.
    pub async fn run(self, cancel: CancellationToken) -> Result<()> {
        recover::recover(&self.inner).await?;
        let streams = {
            let (inner, cancel) = (Arc::clone(&self.inner), cancel.clone());
            tokio::spawn(async move { crate::streaming::serve(inner, cancel).await })
        };
        let images = {
            let runtime = self.clone();
            tokio::spawn(async move {
                let _done = LoadDone(Arc::clone(&runtime.inner));
                runtime.load_images_dir().await;
            })
        };
        let served = crate::cri::serve(&self.inner, cancel).await;
        images.abort();
        let streams = streams.await.map_err(|e| Error::Failed(format!("streaming server: {e}")))?;
        served.and(streams)
    }
}

impl Inner {
    /// The path by which this program is started again.
    pub fn program_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
    }

    /// Finds an image; one that is not there may still come out of the archives being loaded at start, which is
    /// waited for: the kubelet would else try to pull it, fail, and back off.
    pub async fn find_image(&self, name: &str) -> Option<Arc<ImageRecord>> {
        let mut loaded = self.loaded.subscribe();
        loop {
            // In this order: what is loaded between the two looks is found by the second.
            let all = *loaded.borrow_and_update();
            let found = self.images.find(name);
            if found.is_some() || all {
                return found;
            }
            // Archives come one by one; look again from time to time, not only at the end.
            let _ = tokio::time::timeout(LOAD_LOOK, loaded.changed()).await;
        }
    }

    /// Removes layers that nothing needs, in the background.
    pub fn collect_layers(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let in_use = inner.store.layers_in_use();
            inner.images.collect(&in_use);
        });
    }
}

/// Says that loading is over, however it ended.
struct LoadDone(Arc<Inner>);

impl Drop for LoadDone {
    fn drop(&mut self) {
        self.0.loaded.send_replace(true);
    }
}

fn read_only_program() -> std::io::Result<OwnedFd> {
    let tree = mount::clone_tree(Path::new("/proc/self/exe"), false)?;
    let private = mount::Propagation::Private;
    mount::set_attributes(&tree, mount::MOUNT_ATTR_RDONLY, 0, private, false)?;
    Ok(tree)
}
