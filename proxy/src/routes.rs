//! The kernel's routes to the pods of other nodes, for what the node itself sends and for what the
//! programs leave to the stack.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use hawser_ebpf_common::endpoint::{IDENTITY_PODS, IpcacheEntry4};
use ipnet::Ipv4Net;

use crate::netlink::{Netlink, NetlinkError, RouteTarget};
use crate::types::address_from_be;

/// Keeps the routes. `None` stands for "unreachable": the part of this node's own prefix that no pod has.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    uplink: u32,
    held: HashMap<Ipv4Net, Option<Ipv4Addr>>,
    in_sync: bool,
}

impl Routes {
    /// Routes through an uplink.
    pub fn new(netlink: Netlink, uplink: u32) -> Self {
        Self { netlink, uplink, held: HashMap::new(), in_sync: false }
    }

    /// Whether the kernel has the routes it should have, as far as is known.
    pub fn in_sync(&self) -> bool {
        self.in_sync
    }

    /// Brings some prefixes' routes to what the ipcache says.
    ///
    /// # Errors
    /// A request failed; [`Self::reconcile`] is due.
    pub async fn apply(&mut self, changes: &[(Ipv4Net, Option<IpcacheEntry4>)]) -> Result<(), NetlinkError> {
        if !self.in_sync {
            return Ok(());
        }
        self.in_sync = false;
        for (prefix, entry) in changes {
            self.set(*prefix, wanted(*prefix, entry.as_ref())).await?;
        }
        self.in_sync = true;
        Ok(())
    }

    /// Reads our routes back and brings them to what the ipcache says: update, delete, prune.
    ///
    /// # Errors
    /// A request failed; call again.
    pub async fn reconcile(&mut self, all: &[(Ipv4Net, IpcacheEntry4)]) -> Result<(), NetlinkError> {
        self.in_sync = false;
        self.held = self.netlink.our_routes().await?.into_iter().collect();
        let desired: HashMap<Ipv4Net, Option<Ipv4Addr>> =
            all.iter().filter_map(|(prefix, entry)| Some((*prefix, wanted(*prefix, Some(entry))?))).collect();
        let gone: Vec<Ipv4Net> =
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

    async fn set(&mut self, prefix: Ipv4Net, target: Option<Option<Ipv4Addr>>) -> Result<(), NetlinkError> {
        match target {
            Some(target) if self.held.get(&prefix) == Some(&target) => {}
            Some(target) => {
                let to = match target {
                    Some(address) => RouteTarget::Gateway { address, index: self.uplink },
                    None => RouteTarget::Unreachable,
                };
                self.netlink.set_route(prefix, to).await?;
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

/// The route that a prefix needs: pods of another node through that node, pods of this node nowhere
/// (each has a route of its own), others none.
fn wanted(prefix: Ipv4Net, entry: Option<&IpcacheEntry4>) -> Option<Option<Ipv4Addr>> {
    let entry = entry.filter(|entry| entry.identity == IDENTITY_PODS && prefix.prefix_len() > 0)?;
    Some((entry.node_ip_be != 0).then(|| address_from_be(entry.node_ip_be)))
}
