//! PURE: which addresses of the node's prefix are free.
//!
//! Addresses are given out in turn, so that one that was just released comes back as late as possible;
//! and never before [`REUSE_DELAY`] has passed, because peers may still send to the pod that had it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

/// How long a released address stays unused.
pub const REUSE_DELAY: Duration = Duration::from_secs(10);
/// The network address, and the one that other implementations give the gateway.
const RESERVED: u32 = 2;

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
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// The address given out last.
    cursor: Option<Ipv4Addr>,
}

impl Pool {
    /// Notes an address that was given out in an earlier life.
    pub fn restore(&mut self, address: Ipv4Addr, lease: Lease) {
        self.leases.insert(address, lease);
        if lease == Lease::Held {
            self.cursor = self.cursor.max(Some(address));
        }
    }

    /// Takes the next free address of a prefix; `None` when there is none at this time.
    pub fn allocate(&mut self, cidr: Ipv4Net, now: Duration) -> Option<Ipv4Addr> {
        let first = u32::from(cidr.network()).checked_add(RESERVED)?;
        let last = u32::from(cidr.broadcast()).checked_sub(1)?;
        if first > last {
            return None;
        }
        let start = match self.cursor.map(u32::from) {
            Some(cursor) if cursor >= first && cursor < last => cursor + 1,
            _ => first,
        };
        let address =
            (start..=last).chain(first..start).map(Ipv4Addr::from).find(|a| self.is_free(*a, now))?;
        self.leases.insert(address, Lease::Held);
        self.cursor = Some(address);
        Some(address)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr, now: Duration) {
        self.leases.insert(address, Lease::Released(now));
    }

    fn is_free(&self, address: Ipv4Addr, now: Duration) -> bool {
        match self.leases.get(&address) {
            None => true,
            Some(Lease::Held) => false,
            Some(Lease::Released(at)) => now.saturating_sub(*at) >= REUSE_DELAY,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn skips_reserved_addresses_and_ends() {
        let cidr: Ipv4Net = "10.0.0.0/29".parse().expect("a prefix");
        let mut pool = Pool::default();
        let got: Vec<_> =
            std::iter::from_fn(|| pool.allocate(cidr, Duration::ZERO)).map(|a| a.octets()[3]).collect();
        assert_eq!(got, [2, 3, 4, 5, 6]);
        pool.release(Ipv4Addr::new(10, 0, 0, 4), Duration::from_secs(100));
        assert_eq!(pool.allocate(cidr, Duration::from_secs(105)), None, "too early");
        assert_eq!(pool.allocate(cidr, Duration::from_secs(110)), Some(Ipv4Addr::new(10, 0, 0, 4)));
        for cidr in ["10.0.0.0/31", "10.0.0.0/32"] {
            assert_eq!(Pool::default().allocate(cidr.parse().expect("a prefix"), Duration::ZERO), None);
        }
    }

    proptest! {
        #[test]
        fn never_twice_and_never_too_early(steps in prop::collection::vec((any::<bool>(), 0u64..4, any::<prop::sample::Index>()), 1..200)) {
            let cidr: Ipv4Net = "10.0.0.0/28".parse().expect("a prefix");
            let mut pool = Pool::default();
            let mut now = Duration::from_secs(1000);
            let mut held: Vec<Ipv4Addr> = Vec::new();
            let mut released: HashMap<Ipv4Addr, Duration> = HashMap::new();
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
