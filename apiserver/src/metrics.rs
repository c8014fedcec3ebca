//! `/metrics`: what was asked, how it ended, and what is held, with Kubernetes' names.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::kinds::Table;

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug, Default)]
struct Latency {
    buckets: [AtomicU64; BUCKETS.len()],
    micros: AtomicU64,
    count: AtomicU64,
}

/// Verb, group, resource, subresource.
type Target = (&'static str, Box<str>, Box<str>, Box<str>);

/// Counters of a server.
#[derive(Debug)]
pub struct Metrics {
    requests: DashMap<(Target, u16), AtomicU64>,
    latency: DashMap<&'static str, Latency>,
    inflight: AtomicI64,
    watches: AtomicI64,
    started: Instant,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: DashMap::new(),
            latency: DashMap::new(),
            inflight: AtomicI64::new(0),
            watches: AtomicI64::new(0),
            started: Instant::now(),
        }
    }
}

impl Metrics {
    /// A request has come.
    pub fn begin(&self) {
        self.inflight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is answered.
    pub fn end(&self, verb: &'static str, group: &str, resource: &str, sub: &str, code: u16, took: Duration) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
        let key = ((verb, group.into(), resource.into(), sub.into()), code);
        match self.requests.get(&key) {
            Some(n) => n.fetch_add(1, Ordering::Relaxed),
            None => self.requests.entry(key).or_default().fetch_add(1, Ordering::Relaxed),
        };
        if verb == "watch" {
            return;
        }
        let latency = match self.latency.get(verb) {
            Some(l) => l,
            None => self.latency.entry(verb).or_default().downgrade(),
        };
        let seconds = took.as_secs_f64();
        for (bucket, bound) in latency.buckets.iter().zip(BUCKETS) {
            if seconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        latency.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        latency.count.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch begins (1) or ends (-1).
    pub fn watch(&self, change: i64) {
        self.watches.fetch_add(change, Ordering::Relaxed);
    }

    /// The text exposition format.
    pub fn render(&self, table: &Table) -> String {
        let mut out = String::new();
        let help = |out: &mut String, name: &str, kind: &str, text: &str| {
            let _ = writeln!(out, "# HELP {name} {text}\n# TYPE {name} {kind}");
        };
        help(&mut out, "apiserver_request_total", "counter", "Requests by verb, resource and code.");
        for entry in &self.requests {
            let (((verb, group, resource, sub), code), n) = entry.pair();
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",group=\"{group}\",resource=\"{resource}\",\
                 subresource=\"{sub}\",verb=\"{}\"}} {}",
                verb.to_uppercase(),
                n.load(Ordering::Relaxed)
            );
        }
        help(&mut out, "apiserver_request_duration_seconds", "histogram", "Latency by verb.");
        for entry in &self.latency {
            let (verb, latency) = (entry.key().to_uppercase(), entry.value());
            let name = "apiserver_request_duration_seconds";
            for (bucket, bound) in latency.buckets.iter().zip(BUCKETS) {
                let n = bucket.load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"{bound}\"}} {n}");
            }
            let n = latency.count.load(Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "a sum of seconds for people and graphs")]
            let sum = latency.micros.load(Ordering::Relaxed) as f64 / 1e6;
            let _ = writeln!(
                out,
                "{name}_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {n}\n{name}_sum{{verb=\"{verb}\"}} {sum}\n\
                 {name}_count{{verb=\"{verb}\"}} {n}"
            );
        }
        help(&mut out, "apiserver_current_inflight_requests", "gauge", "Requests that are being answered.");
        let inflight = self.inflight.load(Ordering::Relaxed);
        let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"all\"}} {inflight}");
        help(&mut out, "apiserver_longrunning_requests", "gauge", "Watches that are open.");
        let watches = self.watches.load(Ordering::Relaxed);
        let _ = writeln!(out, "apiserver_longrunning_requests{{verb=\"WATCH\"}} {watches}");
        help(
            &mut out,
            "apiserver_storage_objects",
            "gauge",
            "Objects held, of resources that were asked for.",
        );
        for cache in table.caches().iter().filter(|c| c.is_live()) {
            let (objects, _) = cache.size();
            let _ = writeln!(
                out,
                "apiserver_storage_objects{{resource=\"{}\"}} {objects}",
                cache.kind().group_resource()
            );
        }
        help(&mut out, "process_uptime_seconds", "gauge", "Seconds since the start.");
        let _ = writeln!(out, "process_uptime_seconds {}", self.started.elapsed().as_secs());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let metrics = Metrics::default();
        for code in [200, 200, 404] {
            metrics.begin();
            metrics.end("get", "", "pods", "", code, Duration::from_millis(2));
        }
        let text = metrics.render(&Table::default());
        for line in [
            "apiserver_request_total{code=\"200\",group=\"\",resource=\"pods\",subresource=\"\",verb=\"GET\"} 2",
            "apiserver_request_duration_seconds_bucket{verb=\"GET\",le=\"0.0025\"} 3",
            "apiserver_request_duration_seconds_bucket{verb=\"GET\",le=\"0.001\"} 0",
            "apiserver_current_inflight_requests{request_kind=\"all\"} 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
