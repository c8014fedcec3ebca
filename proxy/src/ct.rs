//! PURE: which connection tracking entries are over.
//!
//! A flow lives as long as either of its two entries saw a packet. Times are those of Linux'
//! conntrack (Documentation/networking/nf_conntrack-sysctl.rst), rounded.

use std::collections::HashSet;
use std::time::Duration;

use hawser_ebpf_common::ct::{CT_CLOSING, CT_DSR, CT_REPLY, CT_SEEN, CtEntry, CtKey};
use hawser_ebpf_common::{PROTO_TCP, PROTO_UDP};

use crate::diff::Cut;
use crate::maps::Address;
use crate::types::{L4Addr, Protocol};

const TCP_OPENING: Duration = Duration::from_secs(60);
const TCP_ESTABLISHED: Duration = Duration::from_secs(6 * 3600);
const TCP_CLOSING: Duration = Duration::from_secs(30);
const UDP: Duration = Duration::from_secs(60);
const UDP_ANSWERED: Duration = Duration::from_secs(120);
const OTHER: Duration = Duration::from_secs(30);
/// No flow's time is shorter.
const SHORTEST: Duration = Duration::from_secs(30);

/// Whether a flow is over at `now_ns` (`CLOCK_MONOTONIC`), given one of its entries and, asked for only when it
/// matters, the other.
pub fn is_over<A: Copy>(
    key: &CtKey<A>,
    entry: &CtEntry<A>,
    now_ns: u64,
    partner: impl FnOnce() -> Option<CtEntry<A>>,
) -> bool {
    let idle = |last_seen| Duration::from_nanos(now_ns.saturating_sub(last_seen));
    if idle(entry.last_seen_ns) <= SHORTEST {
        return false;
    }
    let partner = partner();
    let flags = entry.flags | partner.map_or(0, |partner| partner.flags);
    let last_seen = entry.last_seen_ns.max(partner.map_or(0, |partner| partner.last_seen_ns));
    idle(last_seen) > lifetime(key.protocol, flags)
}

/// Whether an entry belongs to a flow of datagrams whose backend is gone.
pub fn is_cut<A: Address>(key: &CtKey<A>, entry: &CtEntry<A>, cut: &HashSet<Cut>) -> bool {
    if cut.is_empty() || key.protocol != PROTO_UDP || entry.flags & CT_REPLY != 0 {
        return false;
    }
    let backend = L4Addr::new(entry.new_daddr_be.ip(), u16::from_be(entry.new_dport_be), Protocol::Udp);
    cut.contains(&Cut { rev_nat_id: entry.rev_nat_id, backend })
}

/// How long a flow may be idle, given the flags of both its entries.
fn lifetime(protocol: u8, flags: u32) -> Duration {
    let answered = flags & CT_SEEN != 0 && flags & (CT_REPLY | CT_DSR) != 0;
    match protocol {
        PROTO_TCP if flags & CT_CLOSING != 0 => TCP_CLOSING,
        PROTO_TCP if answered => TCP_ESTABLISHED,
        PROTO_TCP => TCP_OPENING,
        PROTO_UDP if answered => UDP_ANSWERED,
        PROTO_UDP => UDP,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use hawser_ebpf_common::ct::{CtEntry4, CtKey4};

    use super::*;
    use crate::maps::CtRecord;

    const SECOND: u64 = 1_000_000_000;

    fn pair(protocol: u8, flags: u32, seen: u64, reply_seen: u64) -> Vec<CtRecord> {
        let key = CtKey4 { saddr_be: 1, daddr_be: 2, sport_be: 3, dport_be: 4, protocol, pad: [0; 3] };
        let entry = CtEntry4 {
            last_seen_ns: seen,
            new_saddr_be: 1,
            new_daddr_be: 9,
            new_sport_be: 3,
            new_dport_be: 8,
            flags,
            ..Default::default()
        };
        let reply_key = key.partner(&entry);
        let reply = CtEntry4 {
            last_seen_ns: reply_seen,
            new_saddr_be: 2,
            new_daddr_be: 1,
            new_sport_be: 4,
            new_dport_be: 3,
            flags: CT_REPLY | if reply_seen > 0 { CT_SEEN } else { 0 },
            ..Default::default()
        };
        assert_eq!(reply_key.partner(&reply), key, "partners name each other");
        vec![(key, entry), (reply_key, reply)]
    }

    #[test]
    fn both_directions_live_and_die_together() {
        let cases = [
            // protocol, flags, last packet, last answer, now, entries that are over
            (PROTO_TCP, 0, 100, 0, 150, 0),
            (PROTO_TCP, 0, 100, 0, 161, 2),
            (PROTO_TCP, 0, 100, 5000, 20_000, 0),
            (PROTO_TCP, 0, 100, 100, 30_000, 2),
            (PROTO_TCP, CT_CLOSING, 100, 101, 120, 0),
            (PROTO_TCP, CT_CLOSING, 100, 101, 140, 2),
            (PROTO_UDP, 0, 100, 0, 161, 2),
            (PROTO_UDP, 0, 100, 101, 220, 0),
            (PROTO_UDP, 0, 100, 101, 230, 2),
            (1, 0, 100, 101, 140, 2),
        ];
        for (protocol, flags, seen, reply, now, over) in cases {
            let entries = pair(protocol, flags, seen * SECOND, reply * SECOND);
            let find = |key: CtKey4| entries.iter().find(|(other, _)| *other == key).map(|(_, entry)| *entry);
            let is_over =
                |(key, entry): &&CtRecord| is_over(key, entry, now * SECOND, || find(key.partner(entry)));
            assert_eq!(
                entries.iter().filter(is_over).count(),
                over,
                "{protocol} {flags} {seen} {reply} {now}"
            );
        }
    }
}
