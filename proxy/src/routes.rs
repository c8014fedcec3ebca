//! The kernel's routes to the pods of other nodes, for what the node itself sends and for what the
//! programs leave to the stack.

use std::collections::HashMap;
use std::net::IpAddr;

use hawser_ebpf_common::endpoint::IDENTITY_PODS;
use ipnet::IpNet;

use crate::netlink::{Netlink, NetlinkError, RouteTarget};
use crate::types::PrefixSpec;

/// How other nodes' pods are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Through their nodes, on an interface's link.
    Uplink(u32),
    /// Through an interface where the programs name the other end.
    Tunnel {
        /// The interface.
        index: u32,
        /// This node's addresses, from which it speaks to pods.
        sources: Vec<IpAddr>,
    },
}

impl Way {
    /// The route that a prefix needs: pods of another node this way, pods of this node nowhere (each has a
    /// route of its own), others none.
    fn wanted(&self, prefix: IpNet, spec: Option<&PrefixSpec>) -> Option<RouteTarget> {
        let spec = spec.filter(|spec| spec.identity == IDENTITY_PODS && prefix.prefix_len() > 0)?;
        let Some(node) = spec.node else { return Some(RouteTarget::Unreachable) };
        Some(match self {
            Self::Uplink(index) => RouteTarget::Gateway { address: node, index: *index },
            Self::Tunnel { index, sources } => {
                let of_family = |source: &&IpAddr| source.is_ipv6() == prefix.addr().is_ipv6();
                RouteTarget::Link { index: *index, source: sources.iter().find(of_family).copied() }
            }
        })
    }

    /// Whether a route is one of these; the others of ours lead to this node's pods.
    fn is_ours(&self, target: &RouteTarget) -> bool {
        match target {
            RouteTarget::Link { index, .. } => {
                matches!(self, Self::Tunnel { index: tunnel, .. } if tunnel == index)
            }
            RouteTarget::Gateway { .. } | RouteTarget::Unreachable => true,
        }
    }
}

/// Keeps the routes.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    way: Way,
    held: HashMap<IpNet, RouteTarget>,
    in_sync: bool,
}

impl Routes {
    /// Touches nothing before the first [`Self::reconcile`].
    pub fn new(netlink: Netlink, way: Way) -> Self {
        Self { netlink, way, held: HashMap::new(), in_sync: false }
    }

    /// Whether the kernel has the routes it should have, as far as is known.
    pub fn in_sync(&self) -> bool {
        self.in_sync
    }

    /// Brings some prefixes' routes to what is known of them.
    ///
    /// # Errors
    /// A request failed; [`Self::reconcile`] is due.
    pub async fn apply(&mut self, changes: &[(IpNet, Option<PrefixSpec>)]) -> Result<(), NetlinkError> {
        if !self.in_sync {
            return Ok(());
        }
        self.in_sync = false;
        for (prefix, spec) in changes {
            self.set(*prefix, self.way.wanted(*prefix, spec.as_ref())).await?;
        }
        self.in_sync = true;
        Ok(())
    }

    /// Reads our routes back and brings them to what is known of all prefixes: update, delete, prune.
    ///
    /// # Errors
    /// A request failed; call again.
    pub async fn reconcile(&mut self, all: &[(IpNet, PrefixSpec)]) -> Result<(), NetlinkError> {
        self.in_sync = false;
        let ours = self.netlink.our_routes().await?;
        self.held = ours.into_iter().filter(|(_, target)| self.way.is_ours(target)).collect();
        let wanted =
            all.iter().filter_map(|(prefix, spec)| Some((*prefix, self.way.wanted(*prefix, Some(spec))?)));
        let desired: HashMap<IpNet, RouteTarget> = wanted.collect();
        let gone: Vec<IpNet> =
            self.held.keys().filter(|prefix| !desired.contains_key(*prefix)).copied().collect();
        for prefix in gone {
            self.set(prefix, None).await?;
        }
        for (prefix, target) in desired {
            self.set(prefix, Some(target)).await?;
        }
        self.in_sync = true;
        Ok(())
    }

    async fn set(&mut self, prefix: IpNet, target: Option<RouteTarget>) -> Result<(), NetlinkError> {
        match target {
            Some(target) if self.held.get(&prefix) == Some(&target) => {}
            Some(target) => {
                self.netlink.set_route(prefix, target).await?;
                self.held.insert(prefix, target);
            }
            None if self.held.contains_key(&prefix) => {
                self.netlink.delete_route(prefix).await?;
                self.held.remove(&prefix);
            }
            None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(node: Option<&str>, identity: u32) -> PrefixSpec {
        let node = node.map(|node| node.parse().expect("an address"));
        PrefixSpec { node, identity, flags: 0 }
    }

    #[test]
    fn pods_of_other_nodes_and_no_others_get_a_route() {
        let sources: Vec<IpAddr> = ["172.16.0.1", "fd00::1"].map(|ip| ip.parse().expect("an address")).into();
        let [v4, v6] = [Some(sources[0]), Some(sources[1])];
        let tunnel = Way::Tunnel { index: 9, sources };
        let uplink = Way::Uplink(2);
        let through =
            |address: &str| RouteTarget::Gateway { address: address.parse().expect("one"), index: 2 };
        let cases = [
            ("10.1.0.0/24", spec(Some("172.16.0.2"), IDENTITY_PODS), through("172.16.0.2"), v4),
            ("fd01::/64", spec(Some("fd00::2"), IDENTITY_PODS), through("fd00::2"), v6),
        ];
        for (prefix, spec, routed, source) in cases {
            let prefix: IpNet = prefix.parse().expect("a prefix");
            assert_eq!(uplink.wanted(prefix, Some(&spec)), Some(routed));
            let tunnelled = RouteTarget::Link { index: 9, source };
            assert_eq!(tunnel.wanted(prefix, Some(&spec)), Some(tunnelled));
            assert!(uplink.is_ours(&routed) && tunnel.is_ours(&tunnelled) && !uplink.is_ours(&tunnelled));
            for way in [&uplink, &tunnel] {
                let own = PrefixSpec { node: None, ..spec };
                assert_eq!(way.wanted(prefix, Some(&own)), Some(RouteTarget::Unreachable));
                assert_eq!(way.wanted(prefix, None), None);
                let node = PrefixSpec { identity: IDENTITY_PODS + 1, ..spec };
                assert_eq!(way.wanted(prefix, Some(&node)), None);
            }
        }
    }
}
