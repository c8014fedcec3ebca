//! From two answers of a kubelet to what is used now. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::samples::{Counters, PodKey, Scrape};

/// The shortest life of a container from which a rate is told.
const SHORTEST: f64 = 10.0;

/// What is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// Billionths of a core, on the average of the window.
    pub cpu_nanos: u64,
    /// Working set in bytes, at the end of the window.
    pub memory: u64,
    /// Over which time.
    pub window: Duration,
}

/// What a node and its pods use.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeUsage {
    /// End of the windows.
    pub at: Timestamp,
    /// The node as a whole.
    pub node: Option<Used>,
    /// Pods of which all containers are known.
    pub pods: BTreeMap<PodKey, Vec<(Box<str>, Used)>>,
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

/// The rate of one counter. Without an earlier value, or with one of an earlier life, the counter's own start counts if
/// it is told and lies after `since`: else the rate would be an average over the whole life.
fn used(last: Counters, at: f64, earlier: Option<(Counters, f64)>, since: Option<f64>) -> Option<Used> {
    let same = earlier.filter(|(c, _)| c.cpu <= last.cpu && c.started >= last.started);
    let (from, begin) = match same {
        Some((counters, at)) => (counters.cpu, at),
        None if last.started > 0.0 && since.is_none_or(|since| last.started >= since) => (0.0, last.started),
        None => return None,
    };
    let window = at - begin;
    if window <= 0.0 || (same.is_none() && window < SHORTEST) {
        return None;
    }
    // Casts saturate.
    let cpu_nanos = ((last.cpu - from) / window * 1e9) as u64;
    Some(Used { cpu_nanos, memory: last.memory, window: Duration::from_secs_f64(window) })
}

/// What is used between two answers; of the first answer, what has begun within `period` before it.
pub fn usage(before: Option<&Scrape>, last: &Scrape, period: Duration) -> NodeUsage {
    let at = seconds(last.at);
    let earlier = |counters: Option<Counters>| Some((counters?, seconds(before?.at)));
    let since = before.map_or(at - period.as_secs_f64(), |b| seconds(b.at));
    let node = last.node.and_then(|n| used(n, at, earlier(before.and_then(|b| b.node)), Some(since)));
    let mut pods = BTreeMap::new();
    for (key, containers) in &last.pods {
        let known = before.and_then(|b| b.pods.get(key));
        let of = containers.iter().map(|(name, counters)| {
            let earlier = earlier(known.and_then(|k| k.get(name)).copied());
            Some((name.clone(), used(*counters, at, earlier, Some(since))?))
        });
        // A pod with a container of which nothing is known would seem to use too little.
        if let Some(all) = of.collect::<Option<Vec<_>>>() {
            pods.insert(key.clone(), all);
        }
    }
    NodeUsage { at: last.at, node, pods }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PERIOD: Duration = Duration::from_secs(15);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn scrape(second: i64, containers: &[(&str, f64, f64)]) -> Scrape {
        let of = |(name, cpu, started): &(&str, f64, f64)| {
            ((*name).into(), Counters { cpu: *cpu, memory: 7, started: *started })
        };
        let pods = [(("ns".into(), "p".into()), containers.iter().map(of).collect())].into();
        Scrape { at: at(second), node: None, pods }
    }

    fn nanos(before: Option<&Scrape>, last: &Scrape) -> Option<Vec<u64>> {
        let usage = usage(before, last, PERIOD);
        let pod = usage.pods.get(&("ns".into(), "p".into()))?;
        Some(pod.iter().map(|(_, u)| u.cpu_nanos).collect())
    }

    #[test]
    fn rates_are_those_of_the_window() {
        let old = scrape(1000, &[("a", 10.0, 500.0)]);
        let cases = [
            ("half a core", Some(&old), scrape(1020, &[("a", 20.0, 500.0)]), Some(vec![500_000_000])),
            ("idle", Some(&old), scrape(1020, &[("a", 10.0, 500.0)]), Some(vec![0])),
            ("first answer, long-lived", None, scrape(1020, &[("a", 20.0, 500.0)]), None),
            ("first answer, young", None, scrape(1020, &[("a", 3.0, 1008.0)]), Some(vec![250_000_000])),
            ("restarted", Some(&old), scrape(1020, &[("a", 5.0, 1010.0)]), Some(vec![500_000_000])),
            ("restarted a moment ago", Some(&old), scrape(1020, &[("a", 5.0, 1015.0)]), None),
            ("counter went back", Some(&old), scrape(1020, &[("a", 5.0, 500.0)]), None),
            (
                "one of two is not known",
                Some(&old),
                scrape(1020, &[("a", 20.0, 500.0), ("b", 1.0, 400.0)]),
                None,
            ),
            ("asked twice at once", Some(&old), scrape(1000, &[("a", 10.0, 500.0)]), None),
        ];
        for (what, before, last, want) in cases {
            assert_eq!(nanos(before, &last), want, "{what}");
        }
    }

    proptest! {
        /// Whatever a kubelet says, a rate is never more than what the counter moved by in the window.
        #[test]
        fn a_rate_is_no_more_than_the_counter_moved(
            c0 in 0.0..1e6f64, c1 in 0.0..1e6f64, s0 in 0.0..2000.0f64, s1 in 0.0..2000.0f64, t in 1..1000i64,
        ) {
            let (old, new) = (scrape(1000, &[("a", c0, s0)]), scrape(1000 + t, &[("a", c1, s1)]));
            if let Some(rates) = nanos(Some(&old), &new) {
                prop_assert!(rates[0] as f64 <= c1 / 1.0_f64.min(t as f64) * 1e9 + 1.0);
            }
        }
    }
}
