//! How healthy zones are, and how fast pods may be evicted from their nodes.
//!
//! When much of a zone goes silent, the fault is rather with what watches than with the nodes: evictions
//! slow down or stop. A count per zone is kept as nodes change, so nothing here looks at all nodes.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::object;

/// The state of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneState {
    /// Few nodes are unhealthy.
    Normal,
    /// Many are.
    Partial,
    /// All are.
    Full,
}

/// The rates, in nodes per second, and what counts as disrupted.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// In healthy zones, and in a zone that is wholly gone while others are well.
    pub normal: f64,
    /// In large zones where many nodes are unhealthy.
    pub secondary: f64,
    /// The share of unhealthy nodes from which a zone is disrupted.
    pub threshold: f32,
    /// Up to this many nodes a disrupted zone is left alone.
    pub large: usize,
}

#[derive(Default)]
struct Zone {
    ready: usize,
    unready: usize,
    /// Fractions of a node that may be evicted now, at most one.
    tokens: f64,
    refilled: Option<Timestamp>,
}

/// All zones.
pub struct Zones {
    rates: Rates,
    zones: HashMap<String, Zone>,
    /// Where each node is counted.
    nodes: HashMap<String, (String, bool)>,
}

/// The zone of a node: its region and zone labels.
pub fn zone_of(node: &Node) -> String {
    let get = |key| object::label(&node.metadata, key).unwrap_or_default();
    format!("{}:{}", get("topology.kubernetes.io/region"), get("topology.kubernetes.io/zone"))
}

impl Zones {
    /// No zones yet.
    pub fn new(rates: Rates) -> Self {
        Self { rates, zones: HashMap::new(), nodes: HashMap::new() }
    }

    /// Counts a node (again) by its zone and readiness; `None` when it is gone.
    pub fn count(&mut self, node: &str, state: Option<(String, bool)>) {
        let before = match &state {
            Some(state) => self.nodes.insert(node.to_owned(), state.clone()),
            None => self.nodes.remove(node),
        };
        if before == state {
            return;
        }
        if let Some((zone, ready)) = before
            && let Some(z) = self.zones.get_mut(&zone)
        {
            let n = if ready { &mut z.ready } else { &mut z.unready };
            *n = n.saturating_sub(1);
            if z.ready + z.unready == 0 {
                self.zones.remove(&zone);
            }
        }
        if let Some((zone, ready)) = state {
            let z = self.zones.entry(zone).or_insert_with(|| Zone { tokens: 1.0, ..Zone::default() });
            *(if ready { &mut z.ready } else { &mut z.unready }) += 1;
        }
    }

    fn state(&self, zone: &Zone) -> ZoneState {
        let total = zone.ready + zone.unready;
        if zone.ready == 0 && zone.unready > 0 {
            ZoneState::Full
        } else if zone.unready > 2 && zone.unready as f32 / total as f32 >= self.rates.threshold {
            ZoneState::Partial
        } else {
            ZoneState::Normal
        }
    }

    /// Whether every zone is wholly unhealthy: then it is us who are cut off, and nobody is evicted.
    pub fn all_disrupted(&self) -> bool {
        self.zones.values().all(|zone| self.state(zone) == ZoneState::Full)
    }

    /// Takes the right to evict one node of `zone`. Else how long to wait; `None`: until things change.
    pub fn take(&mut self, zone: &str, now: Timestamp) -> Result<(), Option<Duration>> {
        if self.all_disrupted() {
            return Err(None);
        }
        let Some(z) = self.zones.get(zone) else { return Err(None) };
        let rate = match self.state(z) {
            ZoneState::Normal | ZoneState::Full => self.rates.normal,
            ZoneState::Partial if z.ready + z.unready > self.rates.large => self.rates.secondary,
            ZoneState::Partial => 0.0,
        };
        if rate <= 0.0 {
            return Err(None);
        }
        let Some(z) = self.zones.get_mut(zone) else { return Err(None) };
        let passed = z.refilled.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        z.tokens = (z.tokens + passed * rate).min(1.0);
        z.refilled = Some(now);
        if z.tokens < 1.0 {
            return Err(Some(Duration::from_secs_f64((1.0 - z.tokens) / rate)));
        }
        z.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(ready: usize, unready: usize) -> Zones {
        let mut zones = Zones::new(Rates { normal: 0.1, secondary: 0.01, threshold: 0.55, large: 50 });
        for n in 0..ready {
            zones.count(&format!("r{n}"), Some(("z".into(), true)));
        }
        for n in 0..unready {
            zones.count(&format!("u{n}"), Some(("z".into(), false)));
        }
        zones
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_healthy_zone_evicts_one_node_in_ten_seconds() {
        let mut z = zones(5, 2);
        assert_eq!(z.take("z", at(0)), Ok(()));
        assert_eq!(z.take("z", at(0)), Err(Some(Duration::from_secs(10))));
        assert!(z.take("z", at(5)).is_err());
        assert_eq!(z.take("z", at(11)), Ok(()));
    }

    #[test]
    fn disrupted_zones_are_spared() {
        assert_eq!(zones(0, 3).take("z", at(0)), Err(None), "all is gone: so are we");
        assert_eq!(zones(2, 5).take("z", at(0)), Err(None), "a small disrupted zone");
        let mut large = zones(20, 40);
        assert_eq!(large.take("z", at(0)), Ok(()));
        assert_eq!(large.take("z", at(0)), Err(Some(Duration::from_secs(100))));
        let mut other = zones(0, 3);
        other.count("healthy", Some(("elsewhere".into(), true)));
        assert_eq!(other.take("z", at(0)), Ok(()), "one zone of several is gone");
    }

    #[test]
    fn counts_follow_nodes() {
        let mut z = zones(1, 1);
        z.count("u0", Some(("z".into(), true)));
        z.count("r0", None);
        assert_eq!((z.zones["z"].ready, z.zones["z"].unready), (1, 0));
        z.count("u0", None);
        assert!(z.zones.is_empty());
    }
}
