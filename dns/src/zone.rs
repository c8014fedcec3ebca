//! PURE: the names and addresses that the cluster's DNS speaks for.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{NS, SOA};
use hickory_proto::rr::{Name, RData, Record};
use ipnet::IpNet;

/// Seconds for which the cluster's records may be kept: the default of CoreDNS' kubernetes plugin. kubeadm's Corefile
/// has 30, which spares a Deployment of two servers most queries. Here every node answers its own from memory, so that
/// nothing is gained by letting clients keep what has changed.
pub const TTL: u32 = 5;
/// The version of the schema (Kubernetes' DNS specification, 2.2), and how long that may be kept.
pub const SCHEMA: (&str, u32) = ("1.1.0", 28_800);

/// The cluster's zone and its reverse zones.
#[derive(Debug, Clone)]
pub struct Zone {
    /// The domain: in lower case, and fully qualified.
    pub origin: Name,
    /// Ranges in which no other server knows a name.
    pub reverse: Vec<IpNet>,
    /// Addresses of the Service `kube-dns`, which are those of the zone's name server.
    pub servers: Vec<IpAddr>,
}

impl Zone {
    /// A name below the domain, of labels that the API has checked; the domain itself if they do not fit into a name.
    pub fn below<'a>(&self, labels: impl DoubleEndedIterator<Item = &'a str>) -> Name {
        let name =
            labels.rev().try_fold(self.origin.clone(), |name, label| name.prepend_label(label.as_bytes()));
        name.unwrap_or_else(|_| self.origin.clone())
    }

    /// The name of the zone's name server.
    pub fn server_name(&self) -> Name {
        self.below(["ns", "dns"].into_iter())
    }

    /// The name server record of the zone.
    pub fn ns(&self, owner: Name) -> Record {
        Record::from_rdata(owner, TTL, RData::NS(NS(self.server_name())))
    }

    /// The authority over a zone, which says how long it may be kept that something is not there.
    pub fn soa(&self, owner: Name) -> Record {
        let mail = self.below(["hostmaster"].into_iter());
        // Nobody transfers the zone, so that its serial number means nothing.
        let soa = SOA::new(self.server_name(), mail, 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(owner, TTL, RData::SOA(soa))
    }

    /// The zone that answers for an address in one of the ranges: the smallest whole number of labels around the range.
    pub fn reverse_zone(&self, name: &Name, net: &IpNet) -> Option<Name> {
        let range = self.reverse.iter().find(|range| range.contains(net))?;
        let bits = match range {
            IpNet::V4(_) => 8,
            IpNet::V6(_) => 4,
        };
        let labels = usize::from(range.prefix_len().div_ceil(bits)) + 2;
        Some(name.trim_to(labels.min(usize::from(name.num_labels()))))
    }
}
