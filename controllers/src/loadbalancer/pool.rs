//! Address pools of load balancers: the custom resource `loadbalancerippools.hawser.io`, and what it means. Pure.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

/// A pool as the API has it. Cluster-scoped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIPPool {
    /// `hawser.io/v1alpha1`.
    #[serde(default = "api_version")]
    pub api_version: String,
    /// `LoadBalancerIPPool`.
    #[serde(default = "kind")]
    pub kind: String,
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What the pool gives out, and to whom.
    #[serde(default)]
    pub spec: PoolSpec,
    /// How full it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<PoolStatus>,
}

fn api_version() -> String {
    "hawser.io/v1alpha1".to_owned()
}

fn kind() -> String {
    "LoadBalancerIPPool".to_owned()
}

/// What a pool gives out, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// The addresses.
    #[serde(default)]
    pub blocks: Vec<BlockSpec>,
    /// Only Services with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
    /// Only Services of namespaces with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Gives out nothing more; what was given out stays.
    #[serde(default)]
    pub disabled: bool,
}

/// A block of addresses: a CIDR, or a first and a last address (the last is the first if left out).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// A CIDR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// First address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Last address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
}

/// How full a pool is. Numbers are texts, since there are more IPv6 addresses than an integer of JSON can count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Addresses of all blocks.
    #[serde(default)]
    pub total: String,
    /// Those that Services have.
    #[serde(default)]
    pub used: String,
    /// Those that nobody has.
    #[serde(default)]
    pub available: String,
    /// `Ready`: whether the blocks can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

impl kube::Resource for LoadBalancerIPPool {
    type DynamicType = ();
    type Scope = kube::core::ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "LoadBalancerIPPool".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "hawser.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "loadbalancerippools".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Addresses in a row, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
}

/// An address as a number of its family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// The address after another one; `None` after the last.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|n| IpAddr::V6(n.into())),
    }
}

impl Block {
    /// The block that a pool's entry means. Of a CIDR of more than two addresses the first one (the network's) and, of
    /// IPv4, the last one (the broadcast's) are left out.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn read(spec: &BlockSpec) -> Result<Self, String> {
        let address =
            |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address"));
        let block = match (&spec.cidr, &spec.start, &spec.stop) {
            (Some(cidr), None, None) => {
                let net: IpNet = cidr.parse().map_err(|_| format!("{cidr:?} is not a CIDR"))?;
                let all = Self { first: net.network(), last: net.broadcast() };
                if net.max_prefix_len() - net.prefix_len() < 2 {
                    return Ok(all);
                }
                let last = if net.network().is_ipv4() { before(all.last) } else { Some(all.last) };
                Self { first: next(all.first).unwrap_or(all.first), last: last.unwrap_or(all.last) }
            }
            (None, Some(start), stop) => {
                let first = address(start)?;
                Self { first, last: stop.as_deref().map_or(Ok(first), address)? }
            }
            _ => return Err("a block is either a cidr, or a start with or without a stop".to_owned()),
        };
        if block.first.is_ipv4() != block.last.is_ipv4() {
            return Err(format!("{} and {} are of different families", block.first, block.last));
        }
        if block.first > block.last {
            return Err(format!("{} is after {}", block.first, block.last));
        }
        Ok(block)
    }

    /// Whether the address is one of the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        // The order of addresses puts all IPv4 before all IPv6.
        self.first <= address && address <= self.last
    }

    /// How many addresses there are.
    pub fn size(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }
}

/// The blocks of a pool, those that overlap made one; and what is wrong with the others.
pub fn blocks(pool: &LoadBalancerIPPool) -> (Vec<Block>, Vec<String>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (n, spec) in pool.spec.blocks.iter().enumerate() {
        match Block::read(spec) {
            Ok(block) => good.push(block),
            Err(why) => bad.push(format!("spec.blocks[{n}]: {why}")),
        }
    }
    good.sort();
    let mut merged: Vec<Block> = Vec::new();
    for block in good {
        match merged.last_mut() {
            Some(last) if last.contains(block.first) => last.last = last.last.max(block.last),
            _ => merged.push(block),
        }
    }
    (merged, bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cidr: &str, start: &str, stop: &str) -> BlockSpec {
        let text = |t: &str| Some(t.to_owned()).filter(|t| !t.is_empty());
        BlockSpec { cidr: text(cidr), start: text(start), stop: text(stop) }
    }

    #[test]
    fn reading_blocks() {
        for (cidr, start, stop, want) in [
            ("192.0.2.0/24", "", "", Some(("192.0.2.1", "192.0.2.254"))),
            ("192.0.2.7/32", "", "", Some(("192.0.2.7", "192.0.2.7"))),
            ("192.0.2.6/31", "", "", Some(("192.0.2.6", "192.0.2.7"))),
            ("2001:db8::/120", "", "", Some(("2001:db8::1", "2001:db8::ff"))),
            ("", "192.0.2.10", "192.0.2.20", Some(("192.0.2.10", "192.0.2.20"))),
            ("", "2001:db8::1", "", Some(("2001:db8::1", "2001:db8::1"))),
            ("", "192.0.2.20", "192.0.2.10", None),
            ("", "192.0.2.20", "2001:db8::1", None),
            ("", "", "192.0.2.20", None),
            ("192.0.2.0/24", "192.0.2.1", "", None),
            ("192.0.2.0/33", "", "", None),
            ("", "", "", None),
        ] {
            let got = Block::read(&spec(cidr, start, stop)).ok();
            let got = got.map(|b| (b.first.to_string(), b.last.to_string()));
            assert_eq!(got, want.map(|(a, b)| (a.to_owned(), b.to_owned())), "{cidr} {start} {stop}");
        }
    }

    #[test]
    fn overlapping_blocks_count_once() {
        let mut pool = LoadBalancerIPPool::default();
        pool.spec.blocks = vec![
            spec("", "192.0.2.10", "192.0.2.20"),
            spec("", "192.0.2.15", "192.0.2.30"),
            spec("x", "", ""),
            spec("", "::1", "::2"),
        ];
        let (good, bad) = blocks(&pool);
        assert_eq!(good.iter().map(Block::size).collect::<Vec<_>>(), [21, 2]);
        assert_eq!(bad, ["spec.blocks[2]: \"x\" is not a CIDR"]);
    }
}
