//! PURE: which addresses of the node's prefix are free.
//!
//! Addresses are given out in turn, so that one that was just released comes back as late as possible;
//! and never before [`REUSE_DELAY`] has passed, because peers may still send to the pod that had it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// How long a released address stays unused.
pub const REUSE_DELAY: Duration = Duration::from_secs(10);
/// The network address, and the one that other implementations give the gateway.
const RESERVED: u128 = 2;
/// So many addresses of a prefix are used at most: more than a node has pods, and few enough to remember who had them.
const MOST: u128 = 1 << 16;

/// What an address is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// A pod has it.
    Held,
    /// Released at this time (since the epoch).
    Released(Duration),
}

/// The addresses of one prefix.
#[derive(Debug, Default)]
pub struct Pool {
    leases: BTreeMap<IpAddr, Lease>,
    /// The address given out last.
    cursor: Option<IpAddr>,
}

impl Pool {
    /// Notes an address that was given out in an earlier life, in any order: that a pod has it counts more than that
    /// another had it, and the latest release more than others.
    pub fn restore(&mut self, address: IpAddr, lease: Lease) {
        let latest = match (self.leases.get(&address), lease) {
            (Some(Lease::Held), _) => Lease::Held,
            (Some(Lease::Released(known)), Lease::Released(at)) => Lease::Released(at.max(*known)),
            (_, lease) => lease,
        };
        self.leases.insert(address, latest);
        if latest == Lease::Held {
            self.cursor = self.cursor.max(Some(address));
        }
    }

    /// Takes the next free address of a prefix; `None` when there is none at this time.
    pub fn allocate(&mut self, cidr: IpNet, now: Duration) -> Option<IpAddr> {
        let first = number(cidr.network()).checked_add(RESERVED)?;
        let last = number(cidr.broadcast()).checked_sub(1)?.min(first.saturating_add(MOST - 1));
        if first > last {
            return None;
        }
        let start = match self.cursor.map(number) {
            Some(cursor) if cursor >= first && cursor < last => cursor + 1,
            _ => first,
        };
        let is_v4 = cidr.addr().is_ipv4();
        let numbers = (start..=last).chain(first..start);
        let address = numbers.map(|n| address(n, is_v4)).find(|address| self.is_free(*address, now))?;
        self.leases.insert(address, Lease::Held);
        self.cursor = Some(address);
        Some(address)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr, now: Duration) {
        self.leases.insert(address, Lease::Released(now));
    }

    /// Gives an address back that nobody has seen.
    pub fn forget(&mut self, address: IpAddr) {
        self.leases.remove(&address);
    }

    fn is_free(&self, address: IpAddr, now: Duration) -> bool {
        match self.leases.get(&address) {
            None => true,
            Some(Lease::Held) => false,
            Some(Lease::Released(at)) => now.saturating_sub(*at) >= REUSE_DELAY,
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Reverse of [`number`]; a number of IPv4 is never larger than its addresses.
fn address(number: u128, is_v4: bool) -> IpAddr {
    if is_v4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn skips_reserved_addresses_and_ends() {
        for (cidr, four, names) in [
            ("10.0.0.0/29", "10.0.0.4", ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),
            ("fd00::/125", "fd00::4", ["fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6"]),
        ] {
            let cidr: IpNet = cidr.parse().expect("a prefix");
            let mut pool = Pool::default();
            let got: Vec<_> = std::iter::from_fn(|| pool.allocate(cidr, Duration::ZERO)).collect();
            assert_eq!(got, names.map(ip));
            pool.release(ip(four), Duration::from_secs(100));
            assert_eq!(pool.allocate(cidr, Duration::from_secs(105)), None, "too early");
            assert_eq!(pool.allocate(cidr, Duration::from_secs(110)), Some(ip(four)));
            pool.forget(ip(four));
            assert_eq!(pool.allocate(cidr, Duration::from_secs(110)), Some(ip(four)));
        }
        for cidr in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
            assert_eq!(Pool::default().allocate(cidr.parse().expect("a prefix"), Duration::ZERO), None);
        }
    }

    #[test]
    fn of_a_large_prefix_it_remembers_few() {
        let cidr: IpNet = "fd00:1::/64".parse().expect("a prefix");
        let mut pool = Pool::default();
        for second in 0..200_000 {
            let address = pool.allocate(cidr, Duration::from_secs(second)).expect("an address");
            pool.release(address, Duration::from_secs(second));
        }
        assert_eq!(pool.leases.len(), 1 << 16);
    }

    #[test]
    fn what_is_on_disk_counts_in_any_order() {
        let at = |seconds| Lease::Released(Duration::from_secs(seconds));
        let cases = [
            ([at(1), Lease::Held], Lease::Held),
            ([Lease::Held, at(1)], Lease::Held),
            ([at(5), at(1)], at(5)),
            ([at(1), at(5)], at(5)),
        ];
        for (order, wanted) in cases {
            let mut pool = Pool::default();
            order.into_iter().for_each(|lease| pool.restore(ip("10.0.0.2"), lease));
            assert_eq!(pool.leases[&ip("10.0.0.2")], wanted);
        }
    }

    proptest! {
        #[test]
        fn never_twice_and_never_too_early(steps in prop::collection::vec((any::<bool>(), 0u64..4, any::<prop::sample::Index>()), 1..200)) {
            let cidr: IpNet = "10.0.0.0/28".parse().expect("a prefix");
            let mut pool = Pool::default();
            let mut now = Duration::from_secs(1000);
            let mut held: Vec<IpAddr> = Vec::new();
            let mut released: HashMap<IpAddr, Duration> = HashMap::new();
            for (allocate, seconds, which) in steps {
                now += Duration::from_secs(seconds);
                if allocate {
                    if let Some(address) = pool.allocate(cidr, now) {
                        prop_assert!(cidr.contains(&address) && !held.contains(&address));
                        if let Some(at) = released.get(&address) {
                            prop_assert!(now - *at >= REUSE_DELAY);
                        }
                        held.push(address);
                    } else {
                        let waiting = released.iter().filter(|(a, at)| !held.contains(a) && now - **at < REUSE_DELAY).count();
                        prop_assert_eq!(held.len() + waiting, 13, "refused although one was free");
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(which.index(held.len()));
                    pool.release(address, now);
                    released.insert(address, now);
                }
            }
        }
    }
}
