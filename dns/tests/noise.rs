//! Bytes that are no question, or nearly one: nothing panics, nothing hangs, and an answer is of the question's id.

use std::net::{IpAddr, Ipv4Addr};

use hawser_dns::forward::Forward;
use hawser_dns::respond::{Reply, Responder, Transport};
use hawser_dns::zone::Zone;
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

fn responder() -> Responder {
    let zone = Zone {
        origin: Name::from_ascii("cluster.local.").expect("name"),
        reverse: vec!["10.96.0.0/12".parse().expect("range")],
        servers: vec![],
    };
    let forward = Forward::new(&[], &[]).expect("nobody upstream");
    let responder = Responder::new(zone, forward, vec!["127.0.0.0/8".parse().expect("network")]);
    responder.synced.store(true, std::sync::atomic::Ordering::Relaxed);
    responder
}

fn check(bytes: &[u8]) {
    let responder = responder();
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = match responder.respond(bytes, IpAddr::V4(Ipv4Addr::LOCALHOST), transport) {
            Reply::Silence => continue,
            Reply::Now(answer) => answer,
            Reply::Later(pending) => {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                runtime.block_on(responder.finish(pending))
            }
        };
        assert_eq!(answer[..2], bytes[..2], "the id");
        assert!(answer[2] & 0x80 != 0, "an answer");
        assert!(transport == Transport::Tcp || answer.len() <= 1232, "{} bytes", answer.len());
        Message::from_vec(&answer).expect("an answer can be read");
    }
}

fn question() -> impl Strategy<Value = Vec<u8>> {
    let label = "[a-z0-9_-]{1,12}";
    let name = prop::collection::vec(label, 0..6);
    (name, any::<u16>(), any::<bool>(), any::<bool>()).prop_map(|(labels, kind, ours, edns)| {
        let mut name = Name::root();
        let domain: &[&str] = if ours { &["cluster", "local"] } else { &["in-addr", "arpa"] };
        for label in labels.iter().map(String::as_str).chain(domain.iter().copied()).rev() {
            name = name.prepend_label(label.as_bytes()).expect("a short name");
        }
        let mut message = Message::query();
        message.add_query(Query::query(name, RecordType::from(kind)));
        if edns {
            message.set_edns(Edns::new());
        }
        message.to_vec().expect("encoded")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn bytes_without_sense(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }

    #[test]
    fn a_header_and_bytes_without_sense(
        counts in prop::array::uniform8(prop_oneof![Just(0_u8), Just(1), any::<u8>()]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = vec![7, 7, 1, 0];
        bytes.extend(counts);
        bytes.extend(rest);
        check(&bytes);
    }

    #[test]
    fn questions_with_a_few_wrong_bytes(
        mut bytes in question(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        for (place, byte) in wrong {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        check(&bytes);
    }
}
