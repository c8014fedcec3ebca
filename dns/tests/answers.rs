//! What each kind of name gets: one table per kind of Service.

use std::net::IpAddr;

use hawser_dns::answer::{Answer, answer};
use hawser_dns::convert;
use hawser_dns::records::Index;
use hawser_dns::zone::Zone;
use hickory_proto::rr::{Name, Record, RecordType};
use serde_json::{Value, json};

fn zone() -> Zone {
    Zone {
        origin: Name::from_ascii("cluster.local.").expect("name"),
        reverse: vec!["10.96.0.0/12".parse().expect("range"), "fd00:96::/112".parse().expect("range")],
        servers: vec!["10.96.0.10".parse().expect("address")],
    }
}

fn service(index: &mut Index, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    let object = serde_json::from_value(object).expect("a Service");
    index.set_service(&hawser_watch::object_name(&object), convert::service(&object));
}

fn slice(index: &mut Index, service: &str, number: usize, family: &str, ports: Value, endpoints: Value) {
    let object = json!({
        "metadata": {"name": format!("{service}-{number}"), "namespace": "ns",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    });
    let object = serde_json::from_value(object).expect("a slice");
    index.set_slice(&hawser_watch::object_name(&object), convert::slice(&object));
}

/// Services of every kind.
fn cluster() -> Index {
    let mut index = Index::default();
    index.set_namespace(&"ns".into(), true);
    index.set_namespace(&"empty".into(), true);
    let http = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let two =
        json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 9}]);
    service(
        &mut index,
        "web",
        json!({"clusterIP": "10.96.0.80", "clusterIPs": ["10.96.0.80"], "ports": two}),
    );
    slice(
        &mut index,
        "web",
        1,
        "IPv4",
        http.clone(),
        json!([{"addresses": ["10.244.0.80"], "hostname": "one"}]),
    );
    let dual = json!(["10.96.0.81", "fd00:96::81"]);
    service(&mut index, "dual", json!({"clusterIP": "10.96.0.81", "clusterIPs": dual, "ports": http}));
    service(
        &mut index,
        "six",
        json!({"clusterIP": "fd00:96::6", "clusterIPs": ["fd00:96::6"], "ports": http}),
    );
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": http});
    service(&mut index, "set", headless.clone());
    let endpoints = json!([
        {"addresses": ["10.244.1.1"], "hostname": "set-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.1.2"], "hostname": "Set-1"},
        {"addresses": ["10.244.1.3"], "conditions": {"ready": true}},
        {"addresses": ["10.244.1.4"], "hostname": "set-4", "conditions": {"ready": false}},
    ]);
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    slice(&mut index, "set", 1, "IPv4", ports.clone(), endpoints);
    let six = json!([{"addresses": ["fd00:244::1"], "hostname": "set-0"}, {"addresses": ["fd00:244::"]}]);
    slice(&mut index, "set", 2, "IPv6", ports.clone(), six);
    service(&mut index, "none", headless.clone());
    let unready = json!([{"addresses": ["10.244.1.9"], "conditions": {"ready": false}}]);
    slice(&mut index, "none", 1, "IPv4", ports.clone(), unready.clone());
    let mut published = headless.clone();
    published["publishNotReadyAddresses"] = json!(true);
    service(&mut index, "early", published);
    slice(&mut index, "early", 1, "IPv4", ports, unready);
    service(&mut index, "portless", json!({"clusterIP": "None"}));
    slice(&mut index, "portless", 1, "IPv4", json!([]), json!([{"addresses": ["10.244.1.7"]}]));
    service(&mut index, "ext", json!({"type": "ExternalName", "externalName": "www.example.com"}));
    service(&mut index, "extip", json!({"type": "ExternalName", "externalName": "192.0.2.1"}));
    index
}

/// An answer in a line: records as `TYPE DATA`, sorted, a `+` before additional ones.
fn line(answer: &Answer) -> String {
    let text = |record: &Record| format!("{} {}", record.record_type(), record.data);
    let sorted = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(text).collect();
        lines.sort();
        lines
    };
    match answer {
        Answer::Records(answers, additional) => {
            let mut all = sorted(answers);
            all.extend(sorted(additional).into_iter().map(|line| format!("+{line}")));
            all.join(", ")
        }
        Answer::Alias { record, target } => format!("{} -> {target}", text(record)),
        Answer::NoData(zone) => format!("no data in {zone}"),
        Answer::NoName(zone) => format!("no name in {zone}"),
        Answer::Elsewhere => "elsewhere".to_owned(),
    }
}

fn ask(index: &Index, name: &str, kind: RecordType) -> Answer {
    answer(index, &zone(), &Name::from_ascii(name).expect("name"), kind, 0)
}

const NO_DATA: &str = "no data in cluster.local.";
const NO_NAME: &str = "no name in cluster.local.";

#[track_caller]
fn check(cases: &[(&str, RecordType, &str)]) {
    let index = cluster();
    for (name, kind, wanted) in cases {
        assert_eq!(line(&ask(&index, name, *kind)), *wanted, "{name} {kind}");
    }
}

#[test]
fn services_with_an_address() {
    check(&[
        ("web.ns.svc.cluster.local.", RecordType::A, "A 10.96.0.80"),
        ("WEB.Ns.svc.Cluster.Local.", RecordType::A, "A 10.96.0.80"),
        ("web.ns.svc.cluster.local.", RecordType::AAAA, NO_DATA),
        ("web.ns.svc.cluster.local.", RecordType::TXT, NO_DATA),
        ("web.ns.svc.cluster.local.", RecordType::MX, NO_DATA),
        ("web.ns.svc.cluster.local.", RecordType::CNAME, NO_DATA),
        ("web.ns.svc.cluster.local.", RecordType::HTTPS, NO_DATA),
        ("dual.ns.svc.cluster.local.", RecordType::A, "A 10.96.0.81"),
        ("dual.ns.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:96::81"),
        ("dual.ns.svc.cluster.local.", RecordType::ANY, "A 10.96.0.81, AAAA fd00:96::81"),
        ("six.ns.svc.cluster.local.", RecordType::A, NO_DATA),
        ("six.ns.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:96::6"),
        ("gone.ns.svc.cluster.local.", RecordType::A, NO_NAME),
        ("web.other.svc.cluster.local.", RecordType::A, NO_NAME),
        ("web.ns.cluster.local.", RecordType::A, NO_NAME),
        ("one.web.ns.svc.cluster.local.", RecordType::A, "A 10.244.0.80"),
        ("two.web.ns.svc.cluster.local.", RecordType::A, NO_NAME),
    ]);
}

#[test]
fn named_ports_of_services_with_an_address() {
    check(&[
        (
            "_http._tcp.web.ns.svc.cluster.local.",
            RecordType::SRV,
            "SRV 0 100 80 web.ns.svc.cluster.local., +A 10.96.0.80",
        ),
        (
            "_DNS._udp.web.ns.svc.cluster.local.",
            RecordType::SRV,
            "SRV 0 100 53 web.ns.svc.cluster.local., +A 10.96.0.80",
        ),
        (
            "_http._tcp.dual.ns.svc.cluster.local.",
            RecordType::SRV,
            "SRV 0 100 80 dual.ns.svc.cluster.local., +A 10.96.0.81, +AAAA fd00:96::81",
        ),
        ("_http._udp.web.ns.svc.cluster.local.", RecordType::SRV, NO_NAME),
        ("_https._tcp.web.ns.svc.cluster.local.", RecordType::SRV, NO_NAME),
        ("_http._tcp.web.ns.svc.cluster.local.", RecordType::A, NO_DATA),
        ("_tcp.web.ns.svc.cluster.local.", RecordType::SRV, NO_DATA),
        ("_udp.dual.ns.svc.cluster.local.", RecordType::SRV, NO_NAME),
        ("_sctp.web.ns.svc.cluster.local.", RecordType::SRV, NO_NAME),
    ]);
    let all = line(&ask(&cluster(), "web.ns.svc.cluster.local.", RecordType::SRV));
    assert_eq!(all.matches("SRV 0 33 ").count(), 3, "{all}");
}

#[test]
fn headless_services() {
    check(&[
        ("set.ns.svc.cluster.local.", RecordType::A, "A 10.244.1.1, A 10.244.1.2, A 10.244.1.3"),
        ("set.ns.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:244::, AAAA fd00:244::1"),
        ("set-0.set.ns.svc.cluster.local.", RecordType::A, "A 10.244.1.1"),
        ("set-0.set.ns.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:244::1"),
        ("set-1.set.ns.svc.cluster.local.", RecordType::A, "A 10.244.1.2"),
        ("set-1.set.ns.svc.cluster.local.", RecordType::AAAA, NO_DATA),
        ("set-4.set.ns.svc.cluster.local.", RecordType::A, NO_NAME),
        ("10-244-1-3.set.ns.svc.cluster.local.", RecordType::A, "A 10.244.1.3"),
        ("10-244-1-1.set.ns.svc.cluster.local.", RecordType::A, NO_NAME),
        ("fd00-244--0.set.ns.svc.cluster.local.", RecordType::AAAA, "AAAA fd00:244::"),
        ("none.ns.svc.cluster.local.", RecordType::A, NO_NAME),
        ("_http._tcp.none.ns.svc.cluster.local.", RecordType::SRV, NO_NAME),
        ("early.ns.svc.cluster.local.", RecordType::A, "A 10.244.1.9"),
        ("portless.ns.svc.cluster.local.", RecordType::A, "A 10.244.1.7"),
        ("portless.ns.svc.cluster.local.", RecordType::SRV, NO_DATA),
        (
            "_http._tcp.set.ns.svc.cluster.local.",
            RecordType::SRV,
            "SRV 0 25 8080 10-244-1-3.set.ns.svc.cluster.local., \
             SRV 0 25 8080 fd00-244--0.set.ns.svc.cluster.local., SRV 0 25 8080 set-0.set.ns.svc.cluster.local., \
             SRV 0 25 8080 set-1.set.ns.svc.cluster.local., +A 10.244.1.1, +A 10.244.1.2, +A 10.244.1.3, \
             +AAAA fd00:244::, +AAAA fd00:244::1",
        ),
        (
            "set-1.set.ns.svc.cluster.local.",
            RecordType::SRV,
            "SRV 0 100 8080 set-1.set.ns.svc.cluster.local., +A 10.244.1.2",
        ),
    ]);
}

#[test]
fn external_names() {
    let alias = "CNAME www.example.com. -> www.example.com.";
    check(&[
        ("ext.ns.svc.cluster.local.", RecordType::A, alias),
        ("ext.ns.svc.cluster.local.", RecordType::AAAA, alias),
        ("ext.ns.svc.cluster.local.", RecordType::CNAME, "CNAME www.example.com."),
        ("_http._tcp.ext.ns.svc.cluster.local.", RecordType::SRV, NO_NAME),
        ("a.ext.ns.svc.cluster.local.", RecordType::A, NO_NAME),
        ("extip.ns.svc.cluster.local.", RecordType::A, NO_NAME),
    ]);
}

#[test]
fn pods_namespaces_and_the_zone() {
    let soa = "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";
    check(&[
        ("10-1-2-3.ns.pod.cluster.local.", RecordType::A, "A 10.1.2.3"),
        ("10-1-2-3.ns.pod.cluster.local.", RecordType::AAAA, NO_DATA),
        ("fd00--7.ns.pod.cluster.local.", RecordType::AAAA, "AAAA fd00::7"),
        ("10-1-2-3.gone.pod.cluster.local.", RecordType::A, NO_NAME),
        ("10-1-2.ns.pod.cluster.local.", RecordType::A, NO_NAME),
        ("empty.svc.cluster.local.", RecordType::A, NO_DATA),
        ("empty.pod.cluster.local.", RecordType::A, NO_DATA),
        ("gone.svc.cluster.local.", RecordType::A, NO_NAME),
        ("svc.cluster.local.", RecordType::A, NO_DATA),
        ("cluster.local.", RecordType::A, NO_DATA),
        ("cluster.local.", RecordType::SOA, soa),
        ("cluster.local.", RecordType::NS, "NS ns.dns.cluster.local., +A 10.96.0.10"),
        ("ns.dns.cluster.local.", RecordType::A, "A 10.96.0.10"),
        ("dns-version.cluster.local.", RecordType::TXT, "TXT 1.1.0"),
        ("dns-version.cluster.local.", RecordType::A, NO_DATA),
        ("example.com.", RecordType::A, "elsewhere"),
        (".", RecordType::NS, "elsewhere"),
    ]);
}

#[test]
fn reverse_names() {
    let name = |address: &str| Name::from(address.parse::<IpAddr>().expect("address")).to_string();
    let index = cluster();
    let cases = [
        (name("10.96.0.80"), RecordType::PTR, "PTR web.ns.svc.cluster.local.".to_owned()),
        (name("fd00:96::81"), RecordType::PTR, "PTR dual.ns.svc.cluster.local.".into()),
        (name("10.244.1.1"), RecordType::PTR, "PTR set-0.set.ns.svc.cluster.local.".into()),
        (name("10.244.1.3"), RecordType::PTR, "PTR 10-244-1-3.set.ns.svc.cluster.local.".into()),
        (name("fd00:244::1"), RecordType::PTR, "PTR set-0.set.ns.svc.cluster.local.".into()),
        (name("10.244.1.9"), RecordType::PTR, "PTR 10-244-1-9.early.ns.svc.cluster.local.".into()),
        // Not ready, or behind an address: such endpoints have no name.
        (name("10.244.1.4"), RecordType::PTR, "elsewhere".into()),
        (name("10.244.0.80"), RecordType::PTR, "elsewhere".into()),
        (name("10.96.0.80"), RecordType::A, "no data in 96.10.in-addr.arpa.".into()),
        (name("10.97.9.9"), RecordType::PTR, "no name in 97.10.in-addr.arpa.".into()),
        (name("10.1.2.3"), RecordType::PTR, "elsewhere".into()),
        ("0.96.10.in-addr.arpa.".into(), RecordType::PTR, "no data in 96.10.in-addr.arpa.".into()),
        ("10.in-addr.arpa.".into(), RecordType::PTR, "elsewhere".into()),
        ("x.10.in-addr.arpa.".into(), RecordType::PTR, "elsewhere".into()),
    ];
    for (name, kind, wanted) in cases {
        assert_eq!(line(&ask(&index, &name, kind)), wanted, "{name} {kind}");
    }
}

#[test]
fn owners_keep_the_letters_of_the_client_and_addresses_take_turns() {
    let index = cluster();
    let name = Name::from_ascii("SeT.ns.SVC.cluster.local.").expect("name");
    let mut first = std::collections::HashSet::new();
    for turn in 0..3 {
        let Answer::Records(records, _) = answer(&index, &zone(), &name, RecordType::A, turn) else {
            panic!("no records")
        };
        assert!(records.iter().all(|record| record.name.eq_case(&name) && record.ttl == 5));
        assert_eq!(records.len(), 3);
        first.insert(records[0].data.to_string());
    }
    assert_eq!(first.len(), 3);
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut index = cluster();
    let names = ["web", "dual", "six", "set", "none", "early", "portless", "ext", "extip"];
    for name in names {
        index.set_service(&format!("ns/{name}").into(), None);
        index.set_slice(&format!("ns/{name}-1").into(), None);
        index.set_slice(&format!("ns/{name}-2").into(), None);
    }
    index.set_namespace(&"ns".into(), false);
    index.set_namespace(&"empty".into(), false);
    assert_eq!(index, Index::default());
}
