//! Which node answers for a load balancer's address. Pure.
//!
//! The node that has it keeps it while it can. Otherwise rendezvous hashing picks one: every node has a rank for each
//! address, and the highest rank wins, so that the addresses of a lost node spread over all others.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::object;

/// Annotation with the node that answers for the Service's addresses.
pub const ANNOUNCED_BY: &str = "hawser.io/announced-by";
/// Label of nodes that take no traffic of load balancers.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Whether a node can answer for addresses: it is ready, stays, and is not excluded.
pub fn can_announce(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && !object::is_deleting(node) && object::label(&node.metadata, EXCLUDED).is_none()
}

/// Whether traffic must stay on the node that it arrives at.
pub fn is_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local")
}

/// The nodes with an endpoint that is ready.
pub fn nodes_of<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<String> {
    let endpoints = slices.flat_map(|s| s.endpoints.iter().flatten());
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    let mut nodes: Vec<String> = ready.filter_map(|e| e.node_name.clone()).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

/// A node's rank for an address.
fn rank(address: &str, node: &str) -> u64 {
    // FNV-1a with a final mix: the same everywhere and always, which std's hasher does not promise.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in address.bytes().chain([0]).chain(node.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// The node that is to answer: the current one if it is a candidate, else the one of the highest rank.
pub fn pick<'a>(address: &str, current: Option<&str>, candidates: &[&'a str]) -> Option<&'a str> {
    let stays = candidates.iter().find(|n| Some(**n) == current);
    stays.or_else(|| candidates.iter().max_by_key(|n| (rank(address, n), **n))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The pick is a candidate, does not depend on the order, does not move while it can stay, and without it the
        /// picks of other addresses stay.
        #[test]
        fn picks(nodes in proptest::collection::btree_set("[a-z]{1,6}", 1..8), address in "[0-9.]{4,10}", lost: prop::sample::Index) {
            let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
            let first = pick(&address, None, &names).expect("a node");
            prop_assert!(names.contains(&first));
            let reversed: Vec<&str> = names.iter().rev().copied().collect();
            prop_assert_eq!(pick(&address, None, &reversed), Some(first));
            for current in &names {
                prop_assert_eq!(pick(&address, Some(current), &names), Some(*current));
            }
            let gone = *lost.get(&names);
            let rest: Vec<&str> = names.iter().copied().filter(|n| *n != gone).collect();
            let after = pick(&address, Some(first), &rest);
            if gone == first { prop_assert!(after.is_none_or(|n| n != gone)) } else { prop_assert_eq!(after, Some(first)) }
        }
    }

    #[test]
    fn addresses_spread() {
        let nodes = ["n1", "n2", "n3", "n4"];
        let mut counts = [0; 4];
        for n in 0..4000 {
            let address = format!("192.0.{}.{}", n / 250, n % 250);
            let picked = pick(&address, None, &nodes).expect("a node");
            counts[nodes.iter().position(|n| *n == picked).expect("one of them")] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    }
}
