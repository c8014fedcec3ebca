//! Endpoints that a Service has lost for good, so that what still speaks to them must be cut.
//!
//! Datagrams: as kube-proxy cleans conntrack, when the endpoint is gone or answers no more. One that terminates and
//! still answers keeps its clients. Connections: only when the endpoint terminated before it went. One that merely
//! stopped being an endpoint, because a label changed or its Service was deleted, lives, and so do its connections.

use std::collections::HashMap;

use super::{Desired, ObjectName, Slice, SliceEndpoint};
use crate::types::{L4Addr, Protocol};

/// Whether datagrams to an endpoint have a sense.
fn answers(endpoint: &SliceEndpoint) -> bool {
    endpoint.ready || endpoint.serving
}

fn targets(slice: &Slice) -> impl Iterator<Item = (L4Addr, &SliceEndpoint)> {
    slice.endpoints.iter().flat_map(|endpoint| {
        slice
            .ports
            .iter()
            .map(move |port| (L4Addr::new(endpoint.address, port.port, port.protocol), endpoint))
    })
}

impl Desired {
    /// What a Service has lost with the old version of one of its slices; the new version is in place.
    pub(super) fn departed_with(&self, old: &Slice) -> Vec<(ObjectName, L4Addr)> {
        let mut held: HashMap<L4Addr, bool> = HashMap::new();
        for (address, endpoint) in self.slices_of(&old.service).flat_map(targets) {
            *held.entry(address).or_default() |= answers(endpoint);
        }
        let lost = targets(old).filter(|(address, endpoint)| match address.protocol {
            Protocol::Udp => answers(endpoint) && !held.get(address).is_some_and(|answers| *answers),
            Protocol::Tcp => endpoint.terminating && !held.contains_key(address),
            Protocol::Sctp => false,
        });
        lost.map(|(address, _)| (old.service.clone(), address)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::desired::{Local, ServicePort};

    const READY: u8 = 0;
    const NOT_SERVING: u8 = 1;
    const TERMINATING: u8 = 2;
    const TERMINATING_DEAF: u8 = 3;

    fn slice(protocol: Protocol, endpoints: &[(u8, u8)]) -> Slice {
        let endpoint = |(last, state): &(u8, u8)| SliceEndpoint {
            address: Ipv4Addr::new(10, 244, 0, *last).into(),
            ready: *state == READY,
            serving: *state == READY || *state == TERMINATING,
            terminating: *state == TERMINATING || *state == TERMINATING_DEAF,
            node: None,
            hints: None,
        };
        Slice {
            service: "ns/web".into(),
            ports: Box::new([ServicePort { name: String::new(), port: 80, protocol, node_port: 0 }]),
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }

    /// Endpoints before and after, and which of them are lost for TCP and for UDP.
    #[test]
    fn what_is_lost_depends_on_the_protocol() {
        type Case = (&'static [(u8, u8)], Option<&'static [(u8, u8)]>, &'static [u8], &'static [u8]);
        let cases: [Case; 7] = [
            (&[(1, READY), (2, READY)], Some(&[(1, READY)]), &[], &[2]),
            (&[(1, READY)], Some(&[(1, TERMINATING)]), &[], &[]),
            (&[(1, TERMINATING)], Some(&[]), &[1], &[1]),
            (&[(1, TERMINATING)], None, &[1], &[1]),
            (&[(1, TERMINATING)], Some(&[(1, TERMINATING_DEAF)]), &[], &[1]),
            (&[(1, TERMINATING_DEAF)], Some(&[]), &[1], &[]),
            (&[(1, READY)], Some(&[(1, NOT_SERVING)]), &[], &[1]),
        ];
        for (before, after, tcp, udp) in cases {
            for (protocol, expected) in
                [(Protocol::Tcp, tcp), (Protocol::Udp, udp), (Protocol::Sctp, &[][..])]
            {
                let mut desired = Desired::new(Local::default());
                desired.set_slice(&"ns/a".into(), Some(slice(protocol, before)));
                let touched = desired.set_slice(&"ns/a".into(), after.map(|after| slice(protocol, after)));
                let lost: Vec<L4Addr> = touched.departed.iter().map(|(_, address)| *address).collect();
                let expected: Vec<L4Addr> = expected
                    .iter()
                    .map(|last| L4Addr::new(Ipv4Addr::new(10, 244, 0, *last), 80, protocol))
                    .collect();
                assert_eq!(lost, expected, "{protocol} {before:?} -> {after:?}");
            }
        }
    }

    #[test]
    fn an_endpoint_that_moves_to_another_slice_is_not_lost() {
        let mut desired = Desired::new(Local::default());
        desired.set_slice(&"ns/a".into(), Some(slice(Protocol::Udp, &[(1, READY)])));
        desired.set_slice(&"ns/b".into(), Some(slice(Protocol::Udp, &[(1, READY)])));
        assert!(desired.set_slice(&"ns/a".into(), None).departed.is_empty());
        assert_eq!(desired.set_slice(&"ns/b".into(), None).departed.len(), 1);
    }
}
