//! Ranges that addresses and ports are given out from, each with a lower band that is kept for what is asked for by
//! number (KEP-3070, KEP-3668). Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use rand::Rng as _;
use rand::rngs::StdRng;

/// Shortest prefix of IPv6 that addresses are given out from (as kube-apiserver).
pub const SHORTEST_V6: u8 = 64;

/// Name of an address' family, as Services have it.
pub fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// How many of `size` are kept for those that are asked for by number: one in `step`, at least 16, at most `most`; none
/// of a range of 16 or fewer.
fn reserved(size: u128, step: u128, most: u128) -> u128 {
    const LEAST: u128 = 16;
    if size <= LEAST { 0 } else { (size / step).clamp(LEAST, most) }
}

/// Numbers that are given out from the upper band first: each once, from a random one on, then from the lower band.
pub fn order(
    first: u128,
    last: u128,
    reserved: u128,
    rng: &mut StdRng,
) -> impl Iterator<Item = u128> + use<> {
    let middle = first + reserved;
    let mut band = |from: u128, to: u128| {
        let start = if from > to { from } else { rng.random_range(from..=to) };
        (start..=to).chain(from..start.min(to.saturating_add(1)))
    };
    let upper = band(middle, last);
    let lower = (reserved > 0).then(|| band(first, middle - 1));
    upper.chain(lower.into_iter().flatten())
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses(IpNet);

impl Addresses {
    /// The range of a prefix; `None` if it is too wide for an allocator.
    pub fn new(net: IpNet) -> Option<Self> {
        let narrow = matches!(net, IpNet::V4(_)) || net.prefix_len() >= SHORTEST_V6;
        narrow.then_some(Self(net.trunc()))
    }

    /// The prefix.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Name of the family.
    pub fn family(self) -> &'static str {
        family(&self.0.addr())
    }

    /// First and last address that can be given out, as numbers: not the network's, and of IPv4 not the broadcast's.
    fn bounds(self) -> (u128, u128) {
        match self.0 {
            IpNet::V4(net) => (
                u128::from(u32::from(net.network())) + 1,
                u128::from(u32::from(net.broadcast())).saturating_sub(1),
            ),
            IpNet::V6(net) => (u128::from(net.network()) + 1, u128::from(net.broadcast())),
        }
    }

    fn number(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(a) => u32::from(a).into(),
            IpAddr::V6(a) => a.into(),
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match (self.0, u32::try_from(number)) {
            (IpNet::V4(_), Ok(n)) => IpAddr::V4(n.into()),
            _ => IpAddr::V6(number.into()),
        }
    }

    /// Whether the address can be given out.
    pub fn contains(self, address: IpAddr) -> bool {
        let (first, last) = self.bounds();
        address.is_ipv4() == self.0.addr().is_ipv4() && (first..=last).contains(&Self::number(address))
    }

    /// The first address.
    pub fn first(self) -> IpAddr {
        self.address(self.bounds().0)
    }

    /// All addresses, in the order in which they are tried.
    pub fn order(self, rng: &mut StdRng) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, last) = self.bounds();
        // One for every address of the range, the network's included, as kube-apiserver counts.
        let bits = u32::from(self.0.max_prefix_len() - self.0.prefix_len());
        let kept = reserved(1u128 << bits.min(64), 16, 256).min(last.saturating_sub(first));
        let found = (first <= last).then(|| order(first, last, kept, rng));
        found.into_iter().flatten().map(move |n| self.address(n))
    }
}

/// A range of node ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(RangeInclusive<u16>);

impl Default for Ports {
    fn default() -> Self {
        Self(30000..=32767)
    }
}

impl Ports {
    /// A range; `None` if it is empty or begins with 0.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self(first..=last))
    }

    /// Whether the port can be given out.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }

    /// All ports, in the order in which they are tried.
    pub fn order(&self, rng: &mut StdRng) -> impl Iterator<Item = u16> + use<> {
        let (first, last) = (u128::from(*self.0.start()), u128::from(*self.0.end()));
        let kept = reserved(last - first + 1, 32, 128);
        order(first, last, kept, rng).filter_map(|n| u16::try_from(n).ok())
    }
}

/// As the flag has it: first, minus, last.
impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// Reads `FIRST-LAST` or `FIRST+COUNT` (as kube-apiserver's flag).
impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?}: {why}");
        let number =
            |t: &str| t.trim().parse::<u16>().map_err(|_| wrong("expected port numbers as in 30000-32767"));
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (number(first)?, number(last)?)
        } else if let Some((first, more)) = text.split_once('+') {
            let first = number(first)?;
            (first, first.checked_add(number(more)?).ok_or_else(|| wrong("ends beyond port 65535"))?)
        } else {
            (number(text)?, number(text)?)
        };
        Self::new(first, last).ok_or_else(|| wrong("the range is empty"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use std::collections::HashSet;

    fn range(text: &str) -> Addresses {
        Addresses::new(text.parse().expect("a prefix")).expect("a range")
    }

    #[test]
    fn bands() {
        for (size, step, most, kept) in [
            (16, 16, 256, 0),
            (32, 16, 256, 16),
            (256, 16, 256, 16),
            (1024, 16, 256, 64),
            (65536, 16, 256, 256),
            (2768, 32, 128, 86),
            (16, 32, 128, 0),
            (128, 32, 128, 16),
            (4096, 32, 128, 128),
            (65000, 32, 128, 128),
        ] {
            assert_eq!(reserved(size, step, most), kept, "{size}");
        }
    }

    #[test]
    fn what_can_be_given_out() {
        let v4 = range("10.96.0.0/24");
        for (text, inside) in [
            ("10.96.0.0", false),
            ("10.96.0.1", true),
            ("10.96.0.254", true),
            ("10.96.0.255", false),
            ("fd00::1", false),
        ] {
            assert_eq!(v4.contains(text.parse().expect("an address")), inside, "{text}");
        }
        let v6 = range("fd00:96::/108");
        for (text, inside) in
            [("fd00:96::", false), ("fd00:96::1", true), ("fd00:96::f:ffff", true), ("fd00:96::10:0", false)]
        {
            assert_eq!(v6.contains(text.parse().expect("an address")), inside, "{text}");
        }
        assert_eq!(Addresses::new("fd00::/63".parse().expect("a prefix")), None);
        assert_eq!(range("fd00::/64").first(), "fd00::1".parse::<IpAddr>().expect("an address"));
        let mut rng = StdRng::seed_from_u64(7);
        assert_eq!(range("10.0.0.0/32").order(&mut rng).count(), 0);
        assert_eq!(range("fd00::/128").order(&mut rng).count(), 0);
        // The first that is tried of a wide range is in the upper band.
        assert!(
            range("fd00::/64")
                .order(&mut rng)
                .next()
                .is_some_and(|a| Addresses::number(a) & 0xffff_ffff > 256)
        );
    }

    #[test]
    fn flags() {
        for (text, shown) in [
            ("30000-32767", Some("30000-32767")),
            ("30000+10", Some("30000-30010")),
            ("80", Some("80-80")),
            ("5-4", None),
            ("x-4", None),
            ("0-5", None),
            ("65535+1", None),
            ("70000-70001", None),
        ] {
            assert_eq!(text.parse::<Ports>().ok().map(|p| p.to_string()).as_deref(), shown, "{text}");
        }
    }

    proptest! {
        /// Every address comes once, and those of the lower band come last.
        #[test]
        fn orders(prefix in 22u8..=32, seed: u64) {
            let net: IpNet = format!("10.0.0.0/{prefix}").parse().expect("a prefix");
            let range = Addresses::new(net).expect("a range");
            let all: Vec<IpAddr> = range.order(&mut StdRng::seed_from_u64(seed)).collect();
            let size = 1usize << (32 - prefix);
            prop_assert_eq!(all.len(), size.saturating_sub(2));
            prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
            prop_assert!(all.iter().all(|a| range.contains(*a)));
            let kept = (reserved(size as u128, 16, 256) as usize).min(all.len().saturating_sub(1));
            let base = Addresses::number(range.first());
            let (upper, lower) = all.split_at(all.len() - kept);
            prop_assert!(upper.iter().all(|a| Addresses::number(*a) >= base + kept as u128));
            prop_assert!(lower.iter().all(|a| Addresses::number(*a) < base + kept as u128));
        }
    }
}
