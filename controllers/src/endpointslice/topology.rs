//! Hints of the annotation `service.kubernetes.io/topology-mode: Auto`: endpoints are shared out among zones in proportion
//! to the zones' CPUs (KEP-2433). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

use crate::object;
use crate::services;

/// How much more load than its share an endpoint may get.
const OVERLOAD: f64 = 0.2;
/// The annotation, and its older name.
const ANNOTATIONS: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
/// Labels of nodes that are not counted.
const EXCLUDED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// Whether the Service asks for such hints.
pub fn is_wanted(service: &Service) -> bool {
    let value = ANNOTATIONS.iter().find_map(|a| object::annotation(&service.metadata, a));
    value.is_some_and(|v| v == "Auto" || v == "auto")
}

/// The share of each zone in the CPUs of all nodes; `None` if a node does not tell its zone or CPUs, or there is but one
/// zone.
pub fn shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<BTreeMap<String, f64>> {
    let mut cpus: BTreeMap<String, f64> = BTreeMap::new();
    for node in nodes {
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
        if !ready || EXCLUDED.iter().any(|l| object::label(&node.metadata, l).is_some()) {
            continue;
        }
        let zone = services::zone(node).filter(|z| !z.is_empty())?;
        let cpu = node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?;
        let cpu = hawser_api::quantity::Quantity::parse(&cpu.0).ok()?.as_f64();
        if cpu <= 0.0 {
            return None;
        }
        *cpus.entry(zone).or_default() += cpu;
    }
    let total: f64 = cpus.values().sum();
    (cpus.len() > 1).then(|| cpus.into_iter().map(|(zone, cpu)| (zone, cpu / total)).collect())
}

/// Why there are no hints.
pub type Why = String;

/// How many endpoints each zone should have at least; `None` of what is left over.
fn wanted(shares: &BTreeMap<String, f64>, endpoints: usize) -> Result<BTreeMap<&str, f64>, Why> {
    if shares.len() > endpoints {
        let zones = shares.len();
        return Err(format!("Insufficient number of endpoints ({endpoints} endpoints, {zones} zones)"));
    }
    let mut left = endpoints as f64;
    let mut wanted = BTreeMap::new();
    for (zone, share) in shares {
        let fair = share * endpoints as f64;
        let least = (fair / (1.0 + OVERLOAD)).ceil();
        left -= least;
        wanted.insert(zone.as_str(), fair.max(least));
    }
    if left < 0.0 {
        let zones = shares.len();
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
             ({endpoints} endpoints, {zones} zones)"
        ));
    }
    Ok(wanted)
}

fn most(zones: &BTreeMap<String, f64>) -> Option<(String, f64)> {
    zones.iter().filter(|(_, n)| **n > 0.0).max_by(|a, b| a.1.total_cmp(b.1)).map(|(z, n)| (z.clone(), *n))
}

/// Gives every ready endpoint the zone that it is for: its own, unless its zone has more endpoints than its share.
///
/// # Errors
/// Why it cannot be done; no endpoint has a hint then.
pub fn hint(shares: Option<&BTreeMap<String, f64>>, endpoints: &mut [&mut Endpoint]) -> Result<(), Why> {
    let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(false);
    endpoints.iter_mut().for_each(|e| e.hints = None);
    let shares = shares
        .ok_or("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes")?;
    let count = endpoints.iter().filter(|e| ready(e)).count();
    let wanted = wanted(shares, count)?;
    let mut has: BTreeMap<String, f64> = shares.keys().map(|z| (z.clone(), 0.0)).collect();
    for endpoint in endpoints.iter().filter(|e| ready(e)) {
        let zone = endpoint.zone.clone().filter(|z| !z.is_empty());
        let zone = zone.ok_or("One or more endpoints do not have a zone specified")?;
        *has.entry(zone).or_default() += 1.0;
    }
    let (mut over, mut under) = (BTreeMap::new(), BTreeMap::new());
    for (zone, fair) in &wanted {
        let has = has.get(*zone).copied().unwrap_or(0.0);
        let more = has - fair;
        if more > 0.0 {
            over.insert((*zone).to_owned(), more);
        } else {
            under.insert((*zone).to_owned(), -more);
        }
    }
    // From the zone that has most too many to the one that misses most, while both are better off.
    let mut moves: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while let (Some((from, give)), Some((to, take))) = (most(&over), most(&under)) {
        if (give < 1.0 && take < 1.0) || give < 0.5 || take < 0.5 {
            break;
        }
        over.insert(from.clone(), give - 1.0);
        under.insert(to.clone(), take - 1.0);
        moves.entry(from).or_default().push(to);
    }
    // What has gone first comes first.
    moves.values_mut().for_each(|to| to.reverse());
    for endpoint in endpoints.iter_mut().filter(|e| ready(e)) {
        let own = endpoint.zone.clone().unwrap_or_default();
        let zone = moves.get_mut(&own).and_then(Vec::pop).unwrap_or(own);
        endpoint.hints =
            Some(EndpointHints { for_zones: Some(vec![ForZone { name: zone }]), ..Default::default() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::EndpointConditions;
    use proptest::prelude::*;

    fn endpoints(zones: &[(&str, usize)]) -> Vec<Endpoint> {
        let one = |zone: &str| Endpoint {
            zone: Some(zone.to_owned()),
            conditions: Some(EndpointConditions { ready: Some(true), ..Default::default() }),
            ..Default::default()
        };
        zones.iter().flat_map(|(zone, n)| (0..*n).map(move |_| one(zone))).collect()
    }

    fn hinted(
        shares: &BTreeMap<String, f64>,
        zones: &[(&str, usize)],
    ) -> Result<BTreeMap<String, usize>, Why> {
        let mut all = endpoints(zones);
        let mut refs: Vec<&mut Endpoint> = all.iter_mut().collect();
        let done = hint(Some(shares), &mut refs);
        let mut counts = BTreeMap::new();
        for zone in
            all.iter().filter_map(|e| Some(e.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone()))
        {
            *counts.entry(zone).or_default() += 1;
        }
        done.map(|()| counts)
    }

    fn shares_of(of: &[(&str, f64)]) -> BTreeMap<String, f64> {
        of.iter().map(|(z, s)| ((*z).to_owned(), *s)).collect()
    }

    #[test]
    fn cases() {
        let even = shares_of(&[("a", 0.5), ("b", 0.5)]);
        let counts = |of: &[(&str, usize)]| Ok(of.iter().map(|(z, n)| ((*z).to_owned(), *n)).collect());
        assert_eq!(hinted(&even, &[("a", 3), ("b", 3)]), counts(&[("a", 3), ("b", 3)]));
        assert_eq!(hinted(&even, &[("a", 5), ("b", 1)]), counts(&[("a", 3), ("b", 3)]));
        assert!(hinted(&even, &[("a", 1)]).is_err_and(|w| w.contains("(1 endpoints, 2 zones)")));
        // Three endpoints cannot be shared by two halves within the limit: one half would have a third.
        assert!(hinted(&even, &[("a", 2), ("b", 1)]).is_err_and(|w| w.contains("overload threshold")));
        let thirds = shares_of(&[("a", 0.25), ("b", 0.25), ("c", 0.5)]);
        assert_eq!(hinted(&thirds, &[("a", 8)]), counts(&[("a", 2), ("b", 2), ("c", 4)]));
    }

    #[test]
    fn nodes_that_do_not_tell() {
        assert_eq!(shares([].iter()), None);
        let node = |zone: Option<&str>, cpu: &str| {
            let labels = zone.map(|z| serde_json::json!({services::ZONE: z}));
            serde_json::from_value::<Node>(serde_json::json!({"metadata": {"labels": labels}, "status": {
                "allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}}))
            .expect("a node")
        };
        let good = [node(Some("a"), "3"), node(Some("b"), "500m"), node(Some("b"), "500m")];
        assert_eq!(shares(good.iter()), Some(shares_of(&[("a", 0.75), ("b", 0.25)])));
        assert_eq!(shares(good[..1].iter()), None);
        assert_eq!(shares([node(Some("a"), "3"), node(None, "3")].iter()), None);
    }

    proptest! {
        /// Every endpoint has a zone that exists, and no endpoint's share of the load is more than a fifth above the
        /// mean one.
        #[test]
        fn nobody_is_overloaded(cpus in proptest::collection::vec(1..9u32, 2..5), spread in proptest::collection::vec(0..20usize, 5)) {
            let names = ["a", "b", "c", "d"];
            let total: u32 = cpus.iter().sum();
            let shares: BTreeMap<String, f64> = cpus.iter().zip(names)
                .map(|(c, z)| (z.to_owned(), f64::from(*c) / f64::from(total))).collect();
            let zones: Vec<(&str, usize)> = names.iter().take(cpus.len()).copied().zip(spread).collect();
            let count: usize = zones.iter().map(|(_, n)| n).sum();
            if let Ok(counts) = hinted(&shares, &zones) {
                prop_assert_eq!(counts.values().sum::<usize>(), count);
                for (zone, share) in &shares {
                    let least = (share * count as f64 / (1.0 + OVERLOAD)).ceil() as usize;
                    // Rounding moves may leave a zone one short of its least.
                    prop_assert!(counts.get(zone).copied().unwrap_or(0) + 1 >= least, "{zone}: {counts:?} of {shares:?}");
                }
            }
        }
    }
}
