//! Counters of what became of each packet.

use hawser_ebpf_common::metrics;

use crate::maps::METRICS;

/// Counts one packet of `bytes` bytes.
#[inline(always)]
pub fn count(direction: u32, reason: u32, bytes: u32) {
    if let Some(value) = METRICS.get_ptr_mut(metrics::index(direction, reason)) {
        // SAFETY: the element belongs to this CPU, and tc and cgroup programs run without being
        // preempted by another program that counts in the same direction.
        unsafe {
            (*value).packets += 1;
            (*value).bytes += u64::from(bytes);
        }
    }
}
