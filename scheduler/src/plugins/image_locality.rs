//! ImageLocality: nodes that have the pod's images already are better.

use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Score, State};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

const MEBIBYTE: i64 = 1024 * 1024;
/// Less than this counts as nothing.
const MIN: i64 = 23 * MEBIBYTE;
/// More than this for each container counts as no more.
const MAX_PER_CONTAINER: i64 = 1000 * MEBIBYTE;

/// The sizes of the images that are there, each in proportion to the share of nodes that have it, so that pods do not
/// crowd on the one node that has it.
pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    /// It rejects nothing.
    fn wakes(&self, _: &PodInfo, _: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        false
    }
}

impl Score for ImageLocality {
    fn score(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
        if node.images.is_empty() {
            return 0;
        }
        let nodes = snapshot.len() as f64;
        let there = pod.images.iter().filter_map(|image| Some((image, *node.images.get(&**image)?)));
        let sum: i64 = there
            .map(|(image, size)| (size as f64 * (snapshot.nodes_with_image(image) as f64 / nodes)) as i64)
            .sum();
        let max = MAX_PER_CONTAINER * pod.containers as i64;
        MAX_SCORE * (sum.clamp(MIN, max.max(MIN)) - MIN) / (max - MIN).max(1)
    }
}
