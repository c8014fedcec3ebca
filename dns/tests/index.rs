//! However Services and slices come and go, the index is what it would be if it were made of what there is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_dns::records::{Endpoint, Index, Port, Protocol, Service, Slice, Target};
use hawser_watch::ObjectName;
use proptest::prelude::*;

fn address(number: u8) -> IpAddr {
    if number.is_multiple_of(3) {
        std::net::Ipv6Addr::from(u128::from(number)).into()
    } else {
        std::net::Ipv4Addr::from(u32::from(number)).into()
    }
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        prop::collection::vec(0..20_u8, 1..3)
            .prop_map(|numbers| Target::Cluster(numbers.into_iter().map(address).collect())),
        Just(Target::Headless),
        Just(Target::External("example.com".into())),
    ]
}

fn service() -> impl Strategy<Value = Service> {
    (target(), any::<bool>()).prop_map(|(target, publish_not_ready)| Service {
        target,
        ports: [Port { name: "http".into(), protocol: Protocol::Tcp, number: 80 }].into(),
        publish_not_ready,
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let endpoint = (0..20_u8, any::<bool>(), any::<bool>()).prop_map(|(number, ready, named)| Endpoint {
        address: address(number),
        hostname: named.then(|| format!("h{number}").into()),
        ready,
    });
    (0..4_u8, prop::collection::vec(endpoint, 0..5)).prop_map(|(service, endpoints)| Slice {
        service: service_name(service),
        ports: Box::default(),
        endpoints: endpoints.into(),
    })
}

fn service_name(number: u8) -> ObjectName {
    format!("ns/s{number}").into()
}

fn slice_name(number: u8) -> ObjectName {
    format!("ns/e{number}").into()
}

#[derive(Debug, Clone)]
enum Event {
    Service(u8, Option<Service>),
    Slice(u8, Option<Slice>),
    Namespace(u8, bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..4_u8, prop::option::of(service())).prop_map(|(number, service)| Event::Service(number, service)),
        (0..6_u8, prop::option::of(slice())).prop_map(|(number, slice)| Event::Slice(number, slice)),
        (0..2_u8, any::<bool>()).prop_map(|(number, exists)| Event::Namespace(number, exists)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_index_is_that_of_what_there_is(events in prop::collection::vec(event(), 0..60)) {
        let mut index = Index::default();
        let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
        let mut namespaces = BTreeMap::new();
        for event in events {
            match event {
                Event::Service(number, service) => {
                    index.set_service(&service_name(number), service.clone());
                    services.insert(service_name(number), service);
                }
                Event::Slice(number, slice) => {
                    index.set_slice(&slice_name(number), slice.clone());
                    slices.insert(slice_name(number), slice);
                }
                Event::Namespace(number, exists) => {
                    index.set_namespace(&format!("n{number}").into(), exists);
                    namespaces.insert(number, exists);
                }
            }
        }
        // Slices first here: the order of kinds does not matter either.
        let mut anew = Index::default();
        for (name, slice) in slices {
            anew.set_slice(&name, slice);
        }
        for (name, service) in services.clone() {
            anew.set_service(&name, service);
        }
        for (number, exists) in namespaces {
            anew.set_namespace(&format!("n{number}").into(), exists);
        }
        prop_assert_eq!(&index, &anew);
        // The reverse index leads to those Services, and to no others, that have the address.
        for number in 0..20 {
            let address = address(number);
            let found: Vec<_> = index.by_address(address).map(|(name, _)| name.clone()).collect();
            let wanted: Vec<_> = services
                .iter()
                .filter(|(_, service)| match service.as_ref().map(|s| &s.target) {
                    Some(Target::Cluster(ips)) => ips.contains(&address),
                    _ => false,
                })
                .map(|(name, _)| name.clone())
                .collect();
            prop_assert!(wanted.iter().all(|name| found.contains(name)));
            for (name, entry) in index.by_address(address) {
                let headless = entry.service().map(|s| &s.target) == Some(&Target::Headless);
                let has = entry.endpoints().any(|(endpoint, _)| endpoint.address == address);
                prop_assert!(wanted.contains(name) || (headless && has));
            }
        }
    }
}
