//! PURE: question + index → the parts of an answer. Kubernetes' DNS specification, and CoreDNS where that is silent.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::question::{Place, place};
use crate::records::{Endpoint, Entry, Index, Port, Protocol, Service, Target};
use crate::zone::{SCHEMA, TTL, Zone};

/// What the cluster has to say to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Records of the name, and others that will be asked for next.
    Records(Vec<Record>, Vec<Record>),
    /// The name is another one for `target`, which is to be followed.
    Alias {
        /// The record that says so.
        record: Box<Record>,
        /// The other name.
        target: Name,
    },
    /// The name is there, without records of this type. In this zone.
    NoData(Name),
    /// There is no such name. In this zone.
    NoName(Name),
    /// It is not the cluster's to answer.
    Elsewhere,
}

/// Answers a question of class IN. Addresses come in an order that `turn` shifts, so that those who take the first
/// one are spread.
pub fn answer(index: &Index, zone: &Zone, name: &Name, kind: RecordType, turn: usize) -> Answer {
    let ask = Ask { index, zone, name, kind, turn };
    match place(zone, name) {
        Some(place) => ask.forward(place),
        None => ask.reverse(),
    }
}

struct Ask<'a> {
    index: &'a Index,
    zone: &'a Zone,
    name: &'a Name,
    kind: RecordType,
    turn: usize,
}

// Records are owned by the name as it was asked, in the letters of the client.
impl Ask<'_> {
    fn forward(&self, place: Place) -> Answer {
        let (zone, index) = (self.zone, self.index);
        match place {
            Place::Nothing => self.no_name(),
            Place::Branch => self.no_data(),
            Place::Apex => match self.kind {
                RecordType::SOA => self.records(vec![zone.soa(self.name.clone())]),
                RecordType::NS => {
                    let addresses = addresses(&zone.server_name(), &zone.servers, None);
                    Answer::Records(vec![zone.ns(self.name.clone())], addresses)
                }
                _ => self.no_data(),
            },
            Place::Version if self.asks(RecordType::TXT) => {
                let text = RData::TXT(TXT::new(vec![SCHEMA.0.to_owned()]));
                self.records(vec![Record::from_rdata(self.name.clone(), SCHEMA.1, text)])
            }
            Place::Version => self.no_data(),
            Place::NameServer => self.addresses(&zone.servers),
            Place::Namespace(namespace) if index.has_namespace(&namespace) => self.no_data(),
            Place::Pod(namespace, address) if index.has_namespace(&namespace) => self.addresses(&[address]),
            Place::Namespace(_) | Place::Pod(..) => self.no_name(),
            Place::Service(namespace, service) => self.below(&namespace, &service, Self::service),
            Place::Endpoint(namespace, service, label) => {
                self.below(&namespace, &service, |this, entry, _| this.endpoint(entry, &label))
            }
            Place::Transport(namespace, service, protocol) => {
                self.below(&namespace, &service, |this, entry, service| {
                    let named = |port: &Port| port.protocol == protocol && !port.name.is_empty();
                    if has_port(entry, service, named) { this.no_data() } else { this.no_name() }
                })
            }
            Place::Port(namespace, service, protocol, port) => {
                self.below(&namespace, &service, |this, entry, service| {
                    this.port(entry, service, protocol, &port)
                })
            }
        }
    }

    /// An answer about a Service that is there.
    fn below(
        &self,
        namespace: &str,
        name: &str,
        answer: impl FnOnce(&Self, &Entry, &Service) -> Answer,
    ) -> Answer {
        match self.index.entry(namespace, name).and_then(|entry| Some((entry, entry.service()?))) {
            Some((entry, service)) => answer(self, entry, service),
            None => self.no_name(),
        }
    }

    fn service(&self, entry: &Entry, service: &Service) -> Answer {
        match &service.target {
            Target::External(target) => self.alias(target),
            Target::Cluster(ips) if self.kind == RecordType::SRV => {
                let ports = service.ports.iter().map(|port| (port.number, self.name.clone()));
                self.srv(ports.collect(), addresses(self.name, ips, None))
            }
            Target::Cluster(ips) => self.addresses(ips),
            Target::Headless if self.kind == RecordType::SRV => self.endpoint_srv(entry, self.name, |_| true),
            Target::Headless => {
                let ips: Vec<IpAddr> = entry.endpoints().map(|(endpoint, _)| endpoint.address).collect();
                // The specification's 2.4.1: without ready endpoints there is no such name.
                if ips.is_empty() { self.no_name() } else { self.addresses(&ips) }
            }
        }
    }

    /// Endpoints of a ClusterIP Service have names as well, as with CoreDNS.
    fn endpoint(&self, entry: &Entry, label: &str) -> Answer {
        let matching = || entry.endpoints().filter(|(endpoint, _)| endpoint.label() == label);
        if matching().next().is_none() {
            return self.no_name();
        }
        let ips: Vec<IpAddr> = matching().map(|(endpoint, _)| endpoint.address).collect();
        if self.kind == RecordType::SRV {
            let ports: HashSet<u16> = matching().flat_map(|(_, ports)| ports).map(|p| p.number).collect();
            let ports = ports.into_iter().map(|port| (port, self.name.clone()));
            return self.srv(ports.collect(), addresses(self.name, &ips, None));
        }
        self.addresses(&ips)
    }

    fn port(&self, entry: &Entry, service: &Service, protocol: Protocol, name: &str) -> Answer {
        let wanted = |port: &Port| port.protocol == protocol && *port.name == *name;
        if !has_port(entry, service, wanted) {
            return self.no_name();
        }
        if !self.asks(RecordType::SRV) {
            return self.no_data();
        }
        // Below `_port._protocol` is the Service's own name.
        let target = self.name.base_name().base_name();
        match &service.target {
            Target::Cluster(ips) => {
                let ports = service.ports.iter().filter(|port| wanted(port));
                let ports = ports.map(|port| (port.number, target.clone()));
                self.srv(ports.collect(), addresses(&target, ips, None))
            }
            Target::Headless => self.endpoint_srv(entry, &target, wanted),
            Target::External(_) => self.no_name(),
        }
    }

    /// One record for each endpoint and port, to names below `service`.
    fn endpoint_srv(&self, entry: &Entry, service: &Name, wanted: impl Fn(&Port) -> bool) -> Answer {
        let (mut seen, mut told) = (HashSet::new(), HashSet::new());
        let (mut targets, mut additional) = (Vec::new(), Vec::new());
        for (endpoint, ports) in entry.endpoints() {
            let Some(target) = endpoint_name(endpoint, service) else { continue };
            for port in ports.iter().filter(|port| wanted(port)) {
                if seen.insert((target.clone(), port.number)) {
                    targets.push((port.number, target.clone()));
                }
            }
            // One name may have several addresses, and an endpoint be in several slices.
            if ports.iter().any(&wanted) && told.insert((target.clone(), endpoint.address)) {
                additional.extend(addresses(&target, &[endpoint.address], None));
            }
        }
        if targets.is_empty() {
            return if entry.endpoints().next().is_none() { self.no_name() } else { self.no_data() };
        }
        self.srv(targets, additional)
    }

    /// Equal weights that add up to about 100, as CoreDNS gives them.
    fn srv(&self, targets: Vec<(u16, Name)>, additional: Vec<Record>) -> Answer {
        if targets.is_empty() {
            return self.no_data();
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(1).max(1);
        let record = |(port, target)| {
            Record::from_rdata(self.name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target)))
        };
        let mut records: Vec<Record> = targets.into_iter().map(record).collect();
        self.shift(&mut records);
        Answer::Records(records, additional)
    }

    fn alias(&self, target: &str) -> Answer {
        // An address is no name (CoreDNS); neither is what cannot be read as one.
        if target.parse::<IpAddr>().is_ok() {
            return self.no_name();
        }
        let Ok(mut target) = Name::from_ascii(target) else { return self.no_name() };
        target.set_fqdn(true);
        let record = Record::from_rdata(self.name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
        if matches!(self.kind, RecordType::CNAME | RecordType::ANY) {
            return self.records(vec![record]);
        }
        Answer::Alias { record: Box::new(record), target }
    }

    /// The addresses of the type that is asked for.
    fn addresses(&self, ips: &[IpAddr]) -> Answer {
        let mut records = addresses(self.name, ips, Some(self.kind));
        if records.is_empty() {
            return self.no_data();
        }
        self.shift(&mut records);
        self.records(records)
    }

    fn reverse(&self) -> Answer {
        let Ok(net) = self.name.parse_arpa_name() else { return Answer::Elsewhere };
        let zone = self.zone.reverse_zone(self.name, &net);
        if net.prefix_len() < net.max_prefix_len() {
            return zone.map_or(Answer::Elsewhere, Answer::NoData);
        }
        let mut names: Vec<(bool, Name)> = Vec::new();
        for (key, entry) in self.index.by_address(net.addr()) {
            let Some((namespace, service)) = key.split_once('/') else { continue };
            let service = self.zone.below([service, namespace, "svc"].into_iter());
            if let Some(Target::Cluster(_)) = entry.service().map(|service| &service.target) {
                names.push((true, service));
                continue;
            }
            for (endpoint, _) in entry.endpoints().filter(|(endpoint, _)| endpoint.address == net.addr()) {
                names.extend(
                    endpoint_name(endpoint, &service).map(|name| (endpoint.hostname.is_some(), name)),
                );
            }
        }
        // A pod behind several Services has a name below each; those that it was given come before those made up.
        let given = names.iter().any(|(given, _)| *given);
        let mut seen = HashSet::new();
        names.retain(|(own, name)| *own == given && seen.insert(name.clone()));
        match (names.is_empty(), self.asks(RecordType::PTR)) {
            (true, _) => zone.map_or(Answer::Elsewhere, Answer::NoName),
            (false, false) => Answer::NoData(zone.unwrap_or_else(|| self.name.base_name())),
            (false, true) => self.records(
                names
                    .into_iter()
                    .map(|(_, name)| Record::from_rdata(self.name.clone(), TTL, RData::PTR(PTR(name))))
                    .collect(),
            ),
        }
    }

    /// Whether records of this type are wanted. A question for ANY gets what the name is there for (RFC 8482, 4.1).
    fn asks(&self, kind: RecordType) -> bool {
        self.kind == kind || self.kind == RecordType::ANY
    }

    fn shift<T>(&self, records: &mut [T]) {
        if !records.is_empty() {
            records.rotate_left(self.turn % records.len());
        }
    }

    fn records(&self, records: Vec<Record>) -> Answer {
        Answer::Records(records, Vec::new())
    }

    fn no_data(&self) -> Answer {
        Answer::NoData(self.zone.origin.clone())
    }

    fn no_name(&self) -> Answer {
        Answer::NoName(self.zone.origin.clone())
    }
}

/// Address records, each address once; of one type, or of both for `None` and ANY.
fn addresses(owner: &Name, ips: &[IpAddr], kind: Option<RecordType>) -> Vec<Record> {
    let wanted = |of: RecordType| kind.is_none_or(|kind| kind == of || kind == RecordType::ANY);
    let mut seen = HashSet::with_capacity(ips.len());
    let data = ips.iter().filter(|ip| seen.insert(**ip)).filter_map(|ip| match ip {
        IpAddr::V4(ip) if wanted(RecordType::A) => Some(RData::A(A(*ip))),
        IpAddr::V6(ip) if wanted(RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
        _ => None,
    });
    data.map(|data| Record::from_rdata(owner.clone(), TTL, data)).collect()
}

fn endpoint_name(endpoint: &Endpoint, service: &Name) -> Option<Name> {
    service.prepend_label(endpoint.label().as_bytes()).ok()
}

fn has_port(entry: &Entry, service: &Service, wanted: impl Fn(&Port) -> bool) -> bool {
    match service.target {
        Target::Cluster(_) => service.ports.iter().any(wanted),
        Target::Headless => entry.endpoints().any(|(_, ports)| ports.iter().any(&wanted)),
        Target::External(_) => false,
    }
}
