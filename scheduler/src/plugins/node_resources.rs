//! NodeResourcesFit: the node must have what the pod asks for; emptier nodes are better (LeastAllocated).

use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Plugin, Reason, Score};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// CPU, memory, ephemeral storage, extended resources, and the number of pods.
pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeChanged { before, after } => {
                (before.allocatable != after.allocatable || before.allowed_pods != after.allowed_pods)
                    && self.filter(pod, after).is_ok()
            }
            _ => self.filter(pod, event.node()).is_ok(),
        }
    }
}

impl Filter for NodeResourcesFit {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        let mut short = Vec::new();
        if node.residents().len() as i64 + 1 > node.allowed_pods {
            short.push(Reason::new("Too many pods"));
        }
        let wanted = &pod.requests;
        let mut check = |name: &str, wanted: i64, allocatable: i64, requested: i64| {
            if wanted > 0 && wanted > allocatable - requested {
                short.push(Reason::new(format!("Insufficient {name}")));
            }
        };
        let (has, used) = (&node.allocatable, &node.requested);
        check("cpu", wanted.milli_cpu, has.milli_cpu, used.milli_cpu);
        check("memory", wanted.memory, has.memory, used.memory);
        check("ephemeral-storage", wanted.ephemeral_storage, has.ephemeral_storage, used.ephemeral_storage);
        for (name, amount) in &wanted.scalar {
            let of = |list: &std::collections::BTreeMap<Box<str>, i64>| list.get(name).copied().unwrap_or(0);
            check(name, *amount, of(&has.scalar), of(&used.scalar));
        }
        if short.is_empty() { Ok(()) } else { Err(short) }
    }
}

impl Score for NodeResourcesFit {
    /// LeastAllocated with weight 1 for CPU and memory: the mean of the shares that stay free.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let cpu = free_share(
            node.scoring_requested.milli_cpu + pod.scoring_requests.milli_cpu,
            node.allocatable.milli_cpu,
        );
        let memory =
            free_share(node.scoring_requested.memory + pod.scoring_requests.memory, node.allocatable.memory);
        match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu + memory) / 2,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0,
        }
    }
}

/// 0 to 100; `None` for a resource that the node does not have.
fn free_share(requested: i64, capacity: i64) -> Option<i64> {
    match capacity {
        0 => None,
        _ if requested > capacity => Some(0),
        _ => Some(((i128::from(capacity - requested) * i128::from(MAX_SCORE)) / i128::from(capacity)) as i64),
    }
}
