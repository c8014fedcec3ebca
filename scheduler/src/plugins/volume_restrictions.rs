//! VolumeRestrictions: disks that one node may have at a time, and claims that one pod may have at a time.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Volume;

use super::claims::{claim_name, not_found};
use crate::framework::{ClusterEvent, Filter, Moved, Plugin, Prepared, Rejection, State, state, state_mut};
use crate::objects::Object;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// Disks of GCE and AWS, iSCSI and RBD; `ReadWriteOncePod`.
pub struct VolumeRestrictions;

#[derive(Clone, Debug, Default)]
struct Known {
    /// Names of claims that only one pod may use.
    exclusive: BTreeSet<Box<str>>,
    users: i64,
}

fn is_restricted(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.rbd.is_some()
        || volume.iscsi.is_some()
}

fn conflict(a: &Volume, b: &Volume) -> bool {
    let writes = |a: Option<bool>, b: Option<bool>| !(a == Some(true) && b == Some(true));
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk)
        && a.pd_name == b.pd_name
        && writes(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store)
        && a.volume_id == b.volume_id
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi)
        && a.iqn == b.iqn
        && writes(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let pool = |pool: &Option<String>| pool.clone().unwrap_or_else(|| "rbd".into());
        return a.monitors.iter().any(|m| b.monitors.contains(m))
            && pool(&a.pool) == pool(&b.pool)
            && a.image == b.image
            && writes(a.read_only, b.read_only);
    }
    false
}

fn conflicts(pod: &PodInfo, other: &PodInfo) -> bool {
    let restricted = pod.volumes.iter().filter(|v| is_restricted(v));
    restricted.into_iter().any(|volume| other.volumes.iter().any(|v| conflict(volume, v)))
}

fn named_claims(pod: &PodInfo) -> impl Iterator<Item = &str> {
    pod.volumes.iter().filter_map(|v| Some(v.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone { pod: gone, .. } => {
                let shared = || named_claims(pod).any(|claim| named_claims(gone).any(|other| other == claim));
                gone.class.namespace == pod.class.namespace && (conflicts(pod, gone) || shared())
            }
            ClusterEvent::Object { name, before: None, after: Some(Object::PersistentVolumeClaim(_)) } => {
                named_claims(pod).any(|claim| claim_name(pod, claim) == *name)
            }
            _ => false,
        }
    }
}

impl Filter for VolumeRestrictions {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        if pod.volumes.is_empty() {
            return Prepared::Skip;
        }
        let mut known = Known::default();
        for name in named_claims(pod) {
            let key = claim_name(pod, name);
            let Some(claim) = snapshot.objects.claims.get(key.as_str()) else {
                return Prepared::Reject(Rejection::lasting(not_found("persistentvolumeclaim", name)));
            };
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
            if modes.iter().any(|mode| mode == "ReadWriteOncePod") && known.exclusive.insert(name.into()) {
                known.users += i64::from(snapshot.users_of_claim(&key) > 0);
            }
        }
        if known.users == 0 && !pod.volumes.iter().any(is_restricted) {
            return Prepared::Skip;
        }
        Prepared::Look(Box::new(known))
    }

    fn filter(
        &self,
        known: &dyn State,
        pod: &PodInfo,
        node: &NodeInfo,
        _: &Snapshot,
    ) -> Result<(), Rejection> {
        if node.residents().iter().any(|other| conflicts(pod, other)) {
            return Err(Rejection::resolvable("node(s) had no available disk"));
        }
        if state::<Known>(known).users > 0 {
            return Err(Rejection::resolvable(
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
                 another pod",
            ));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }

    fn follow(&self, known: &mut dyn State, pod: &PodInfo, moved: &Moved<'_>, _: &Snapshot) {
        let known: &mut Known = state_mut(known);
        let _ = pod;
        let used = named_claims(moved.pod).filter(|claim| known.exclusive.contains(*claim)).count() as i64;
        known.users += if moved.added { used } else { -used };
    }
}
