//! Use of CPU and memory (`metrics.k8s.io`), read from the kubelets and served by this server itself.
//!
//! - [`samples`]: a kubelet's text → counters.
//! - [`rates`]: two answers → what is used.
//! - [`collect`]: asks the kubelets, again and again.
//! - `registry/usage.rs` answers requests with what is here.

pub mod collect;
pub mod rates;
pub mod samples;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use rates::NodeUsage;
use samples::Scrape;

/// The group version, as `runtime_config` names it.
pub const GROUP_VERSION: &str = "metrics.k8s.io/v1beta1";
/// The group.
pub const GROUP: &str = "metrics.k8s.io";

/// How often a kubelet is asked, at least: metrics-server's own setting.
const SHORTEST: Duration = Duration::from_secs(15);
/// And at most, in large clusters: metrics-server's default.
const LONGEST: Duration = Duration::from_secs(60);
/// How much of the time between two rounds each node adds.
const PER_NODE: Duration = Duration::from_millis(30);
/// For how many rounds what is known of a node counts while it does not answer.
const ROUNDS: u32 = 3;

/// The time between two questions to one kubelet, in a cluster of so many nodes.
pub fn period(nodes: usize) -> Duration {
    PER_NODE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)).clamp(SHORTEST, LONGEST)
}

struct Held {
    last: Arc<Scrape>,
    usage: Arc<NodeUsage>,
}

/// What is known of every node's use.
#[derive(Default)]
pub struct Usage {
    nodes: Mutex<HashMap<String, Held>>,
}

impl Usage {
    /// What a node and its pods use, if it is known and not too old.
    pub fn of(&self, node: &str, now: jiff::Timestamp) -> Option<Arc<NodeUsage>> {
        let nodes = self.nodes.lock();
        let usage = nodes.get(node)?.usage.clone();
        let oldest = LONGEST.max(period(nodes.len()) * ROUNDS);
        let age = now.duration_since(usage.at).unsigned_abs();
        (age <= oldest).then_some(usage)
    }

    /// Takes a kubelet's answer in.
    fn take(&self, node: &str, scrape: Scrape) {
        let before = self.nodes.lock().get(node).map(|held| held.last.clone());
        let usage = rates::usage(before.as_deref(), &scrape, SHORTEST);
        let held = Held { last: Arc::new(scrape), usage: Arc::new(usage) };
        self.nodes.lock().insert(node.to_owned(), held);
    }

    /// Forgets a node.
    fn forget(&self, node: &str) {
        self.nodes.lock().remove(node);
    }
}
