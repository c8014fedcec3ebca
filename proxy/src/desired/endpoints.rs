//! Which endpoints a port of a Service may use: readiness, terminating ones, hints, the node's own.
//!
//! As kube-proxy's `CategorizeEndpoints` decides: terminating endpoints are fallen back to for the whole
//! cluster and for this node apart (KEP-1669), and hints count only when every ready endpoint has one and
//! at least one names this place (KEP-2433, KEP-3015).

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_ebpf_common::lb::BACKEND_TERMINATING;

use super::{Desired, Hints, ObjectName, ServicePort, SliceEndpoint};
use crate::types::{Backends, Family, L4Addr};

/// The usable endpoints of one port, of one family.
#[derive(Debug, Default)]
pub(super) struct Usable {
    /// For traffic policy Cluster.
    pub cluster: Backends,
    /// For traffic policy Local.
    pub local: Backends,
    /// Some node of the cluster has one.
    pub anywhere: bool,
}

/// What the hints of the ready endpoints amount to.
#[derive(Clone, Copy, PartialEq)]
enum Prefer {
    Any,
    SameZone,
    SameNode,
}

impl Desired {
    pub(super) fn usable(
        &self,
        service: &ObjectName,
        port: &ServicePort,
        family: Family,
        local: bool,
    ) -> Usable {
        let mut all = Vec::new();
        for slice in self.slices_of(service) {
            let targets = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for target in targets {
                let of_family = slice.endpoints.iter().filter(|one| Family::of(one.address) == family);
                all.extend(of_family.map(|one| (L4Addr::new(one.address, target.port, port.protocol), one)));
            }
        }
        let prefer = self.preference(all.iter().filter(|(_, one)| one.ready).map(|(_, one)| *one));
        let is_local = |one: &SliceEndpoint| one.node.as_deref() == Some(&*self.local.node_name);
        Usable {
            cluster: ready_or_terminating(&all, |one| self.is_preferred(one, prefer), |_| true),
            local: match local {
                true => ready_or_terminating(&all, is_local, is_local),
                false => Backends::default(),
            },
            anywhere: all.iter().any(|(_, one)| one.ready || one.is_last_resort()),
        }
    }

    fn preference<'a>(&self, ready: impl Iterator<Item = &'a SliceEndpoint>) -> Prefer {
        let (mut any, mut all_nodes, mut all_zones) = (false, true, true);
        let (mut for_node, mut for_zone) = (false, false);
        for endpoint in ready {
            any = true;
            let (nodes, zones) = match endpoint.hints.as_deref() {
                Some(Hints { zones, nodes }) => (&nodes[..], &zones[..]),
                None => (&[][..], &[][..]),
            };
            all_nodes &= !nodes.is_empty();
            all_zones &= !zones.is_empty();
            for_node |= self.is_here(nodes);
            for_zone |= self.is_in_zone(zones);
        }
        match any {
            true if all_nodes && for_node => Prefer::SameNode,
            true if all_zones && for_zone => Prefer::SameZone,
            _ => Prefer::Any,
        }
    }

    fn is_preferred(&self, endpoint: &SliceEndpoint, prefer: Prefer) -> bool {
        let hints = endpoint.hints.as_deref();
        match prefer {
            Prefer::Any => true,
            Prefer::SameNode => hints.is_some_and(|hints| self.is_here(&hints.nodes)),
            Prefer::SameZone => hints.is_some_and(|hints| self.is_in_zone(&hints.zones)),
        }
    }

    fn is_here(&self, nodes: &[Arc<str>]) -> bool {
        nodes.iter().any(|node| **node == *self.local.node_name)
    }

    fn is_in_zone(&self, zones: &[Arc<str>]) -> bool {
        self.zone.as_ref().is_some_and(|zone| zones.contains(zone))
    }
}

/// The ready endpoints that one filter lets through; when there is none, the terminating ones of the other.
fn ready_or_terminating(
    all: &[(L4Addr, &SliceEndpoint)],
    ready: impl Fn(&SliceEndpoint) -> bool,
    terminating: impl Fn(&SliceEndpoint) -> bool,
) -> Backends {
    let chosen: BTreeMap<L4Addr, u8> =
        all.iter().filter(|(_, one)| one.ready && ready(one)).map(|(address, _)| (*address, 0)).collect();
    if !chosen.is_empty() {
        return chosen.into_iter().collect();
    }
    let last = all.iter().filter(|(_, one)| !one.ready && one.is_last_resort() && terminating(one));
    let chosen: BTreeMap<L4Addr, u8> = last.map(|(address, _)| (*address, BACKEND_TERMINATING)).collect();
    chosen.into_iter().collect()
}
