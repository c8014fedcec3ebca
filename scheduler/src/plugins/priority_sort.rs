//! PrioritySort: pods of higher priority first.

use crate::framework::QueueSort;
use crate::pod::PodInfo;

/// Pods of higher `spec.priority` go first, among equals the older.
pub struct PrioritySort;

impl QueueSort for PrioritySort {
    fn rank(&self, pod: &PodInfo) -> i64 {
        -i64::from(pod.priority)
    }
}
