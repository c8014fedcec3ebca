//! A pod's volumes on the node: made, kept current, released.
//!
//! Layout below the kubelet's directory: `pods/<uid>/volumes/<plugin>/<name>`, with the plugin names of the
//! kubelet (`kubernetes.io~empty-dir`, …). Volumes with secrets live at the same path below a tmpfs.

pub(crate) mod atomic;
mod hostpath;
mod mounts;
pub(crate) mod payload;
mod subpath;

pub(crate) use mounts::{ensure_tmpfs, unmount_below};
pub(crate) use subpath::{SubPath, open as open_subpath};

use atomic::Payload;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a volume cannot be had.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub(crate) struct VolumeError {
    pub volume: String,
    pub message: String,
}

/// Where the pods of this node keep their volumes.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    /// Pod directories on disk.
    pub disk: PathBuf,
    /// Pod directories in memory.
    pub memory: PathBuf,
    /// Whether anything may be mounted.
    pub tmpfs: bool,
}

impl Roots {
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.disk.join(uid)
    }

    fn volume_dir(&self, uid: &str, volume: &Volume) -> Option<PathBuf> {
        let (root, plugin) = if volume.empty_dir.is_some() {
            (&self.disk, "kubernetes.io~empty-dir")
        } else if volume.config_map.is_some() {
            (&self.disk, "kubernetes.io~configmap")
        } else if volume.secret.is_some() {
            (&self.memory, "kubernetes.io~secret")
        } else if volume.downward_api.is_some() {
            (&self.memory, "kubernetes.io~downward-api")
        } else if volume.projected.is_some() {
            (&self.memory, "kubernetes.io~projected")
        } else {
            return None;
        };
        Some(root.join(uid).join("volumes").join(plugin).join(&volume.name))
    }

    /// The host path of a volume, once it is set up; `None` for a type that this node does not have.
    pub fn host_path(&self, uid: &str, volume: &Volume) -> Option<PathBuf> {
        match &volume.host_path {
            Some(h) => Some(PathBuf::from(&h.path)),
            None => self.volume_dir(uid, volume),
        }
    }

    /// Makes one volume ready. `payload` are the files of a volume made of files. Blocking.
    pub fn set_up(&self, pod: &Pod, volume: &Volume, payload: Option<&Payload>) -> Result<(), VolumeError> {
        let fail = |message: String| VolumeError { volume: volume.name.clone(), message };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(h) = &volume.host_path {
            return hostpath::check(h).map_err(fail);
        }
        let Some(dir) = self.volume_dir(uid, volume) else {
            return Err(fail(format!("volume type {} is not supported by this node", type_name(volume))));
        };
        let group = fs_group(pod);
        let done = match (&volume.empty_dir, payload) {
            (Some(e), _) => self.set_up_empty_dir(&dir, e, group),
            (None, Some(payload)) => {
                make_dir(&dir, 0o755).and_then(|()| atomic::write(&dir, payload, group).map(|_| ()))
            }
            (None, None) => Err(io::Error::other("no contents")),
        };
        done.map_err(|e| fail(e.to_string()))
    }

    /// Makes an emptyDir, unless it is there since before a restart of the kubelet: then it holds data.
    fn set_up_empty_dir(&self, dir: &Path, e: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
        let own = |dir: &Path| group.map_or(Ok(()), |gid| atomic::give_to_group(dir, gid, true));
        match e.medium.as_deref().unwrap_or_default() {
            "Memory" if self.tmpfs => {
                if mounts::is_mounted(dir)? {
                    return Ok(());
                }
                make_dir(dir, 0o777)?;
                let size = e.size_limit.as_ref().and_then(crate::resources::units).filter(|s| *s > 0);
                mounts::mount_tmpfs(dir, size, 0o777)?;
                own(dir)
            }
            "" | "Memory" => {
                if dir.exists() {
                    return Ok(());
                }
                // What is seen under the final name is complete.
                let staging = dir.with_extension("staging");
                make_dir(&staging, 0o777)?;
                own(&staging)?;
                fs::rename(&staging, dir)
            }
            other => Err(io::Error::other(format!("medium {other} is not supported by this node"))),
        }
    }

    /// Releases all volumes of a pod and forgets their contents. Blocking.
    pub fn tear_down(&self, uid: &str) -> io::Result<()> {
        for root in [&self.disk, &self.memory] {
            let dir = root.join(uid);
            if self.tmpfs {
                unmount_below(&dir)?;
            }
            remove_tree(&dir.join("volume-subpaths"))?;
            remove_tree(&dir.join("volumes"))?;
        }
        remove_tree(&self.memory.join(uid))
    }

    /// Removes a pod's directory. Blocking.
    pub fn remove_pod(&self, uid: &str) -> io::Result<()> {
        self.tear_down(uid)?;
        remove_tree(&self.disk.join(uid))
    }
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The group that owns the pod's volumes.
pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// The name of a volume's type as the API has it.
fn type_name(volume: &Volume) -> String {
    let object = serde_json::to_value(volume).ok();
    let names = object.as_ref().and_then(|o| o.as_object()).into_iter().flat_map(|o| o.keys());
    names.into_iter().find(|k| *k != "name").cloned().unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn empty_dir_survives_a_second_set_up_and_goes_with_the_pod() {
        let tmp = tempfile::tempdir().unwrap();
        let roots = Roots { disk: tmp.path().join("pods"), memory: tmp.path().join("memory"), tmpfs: false };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "e", "emptyDir": {}},
                {"name": "p", "persistentVolumeClaim": {"claimName": "c"}}
            ]}
        }))
        .unwrap();
        let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
        roots.set_up(&pod, &volumes[0], None).unwrap();
        let dir = roots.host_path("u", &volumes[0]).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o777);
        fs::write(dir.join("f"), "x").unwrap();
        roots.set_up(&pod, &volumes[0], None).unwrap();
        assert!(dir.join("f").exists());
        let error = roots.set_up(&pod, &volumes[1], None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MountVolume.SetUp failed for volume \"p\" : volume type persistentVolumeClaim is not supported by \
             this node"
        );
        roots.remove_pod("u").unwrap();
        assert!(!roots.pod_dir("u").exists());
        roots.remove_pod("u").unwrap();
    }
}
