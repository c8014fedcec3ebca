//! GangScheduling: the pods of a PodGroup with a gang policy go at once or not at all (KEP-4671).

use crate::framework::{ClusterEvent, Plugin, PreEnqueue, Reason};
use crate::objects::{Object, Objects};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

/// A pod of a gang enters the queue when there are pods enough. Their nodes are chosen in one cycle
/// ([`crate::run`]), so that no gang holds a part of the nodes it needs while it waits for the others.
pub struct GangScheduling;

/// The group that a pod belongs to, `namespace/name`.
pub fn group_of(pod: &PodInfo) -> Option<String> {
    pod.group.as_ref().map(|group| format!("{}/{group}", pod.key.namespace))
}

impl Plugin for GangScheduling {
    fn name(&self) -> &'static str {
        "GangScheduling"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        let own = group_of(pod);
        match event {
            ClusterEvent::PodWaits(other) => own.is_some() && group_of(other) == own,
            ClusterEvent::Object { name, before: None, after: Some(Object::PodGroup(_)) } => {
                own.as_deref() == Some(*name)
            }
            _ => false,
        }
    }
}

impl PreEnqueue for GangScheduling {
    fn admit(&self, pod: &PodInfo, objects: &Objects) -> Result<(), Reason> {
        let Some(name) = group_of(pod) else { return Ok(()) };
        let Some(group) = objects.groups.get(name.as_str()) else {
            let quoted = hawser_api::text::quote(pod.group.as_deref().unwrap_or_default());
            return Err(Reason::new(format!(
                "waiting for pods's pod group {quoted} to appear in scheduling queue"
            )));
        };
        if group.min_count.is_some_and(|min| objects.members(&name).0 < min) {
            return Err(Reason::new("waiting for minCount pods from a gang to appear in scheduling queue"));
        }
        Ok(())
    }
}
