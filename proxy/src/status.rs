//! What the dataplane says of itself, where kube-proxy does: `/healthz` and `/livez` on port 10256 of all addresses,
//! `/metrics` on 127.0.0.1:10249 in Prometheus' text format.
//!
//! No map is walked for a scrape: the counters of packets are an array, and entries are counted by whoever walks a map
//! anyway.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use hawser_ebpf_common::metrics::{direction, reason};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::sync::watch;

use crate::healthcheck::{Listen, serve};
use crate::maps::{KernelMaps, MetricsRecord};
use crate::pressure::{Fill, Pressure};

/// kube-proxy's `healthzBindAddress` and `metricsBindAddress`.
const HEALTH_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;

/// Serves until dropped. Healthy is a dataplane whose maps have held what the API says.
pub async fn run(maps: PathBuf, synced: watch::Receiver<bool>, pressure: Arc<Pressure>) {
    let health = serve("health".to_string(), Listen::Everywhere(HEALTH_PORT), move |path| {
        health(path, *synced.borrow())
    });
    let metrics = serve("metrics".to_string(), Listen::Loopback(METRICS_PORT), move |path| match path {
        "/metrics" => match KernelMaps::open(&maps).and_then(|maps| maps.metrics()) {
            Ok(records) => text(StatusCode::OK, render(&records, &pressure.all())),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => text(StatusCode::NOT_FOUND, "there is /metrics".to_string()),
    });
    tokio::join!(health, metrics);
}

fn health(path: &str, synced: bool) -> Response<Full<Bytes>> {
    match path {
        // kube-proxy lives as long as it answers.
        "/livez" => text(StatusCode::OK, "ok".to_string()),
        "/healthz" if synced => text(StatusCode::OK, "ok".to_string()),
        "/healthz" => {
            text(StatusCode::SERVICE_UNAVAILABLE, "the maps do not hold what the API says yet".to_string())
        }
        _ => text(StatusCode::NOT_FOUND, "there are /healthz and /livez".to_string()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}

/// Counters and gauges in Prometheus' text format.
fn render(records: &[MetricsRecord], maps: &BTreeMap<&'static str, Fill>) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, String)>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    };
    let name = |names: &[&'static str], index: u32| names.get(index as usize).copied().unwrap_or("unknown");
    let labels = |record: &MetricsRecord| {
        let (direction, reason) =
            (name(&direction::NAMES, record.direction), name(&reason::NAMES, record.reason));
        format!("direction=\"{direction}\",reason=\"{reason}\"")
    };
    let of = |dropped: bool| {
        let is_drop = |record: &&MetricsRecord| {
            (record.reason >= reason::FIRST_DROP && record.reason != reason::ANNOUNCED) == dropped
        };
        records.iter().filter(is_drop).map(|r| (labels(r), r.value.packets.to_string())).collect()
    };
    family("hawser_packets_total", "counter", "Packets by what became of them.", of(false));
    family("hawser_dropped_packets_total", "counter", "Packets that were dropped or refused.", of(true));
    let each = |value: fn(&Fill) -> String| {
        maps.iter().map(|(map, fill)| (format!("map_name=\"{map}\""), value(fill))).collect()
    };
    // Cilium's name and label.
    let part = |fill: &Fill| format!("{:.4}", fill.entries as f64 / fill.capacity.max(1) as f64);
    family(
        "hawser_bpf_map_pressure",
        "gauge",
        "Part of a map that was full when it was last walked.",
        each(part),
    );
    family(
        "hawser_bpf_map_entries",
        "gauge",
        "Entries of a map then.",
        each(|fill| fill.entries.to_string()),
    );
    let capacity = each(|fill| fill.capacity.to_string());
    family("hawser_bpf_map_capacity", "gauge", "Entries that a map has room for.", capacity);
    out
}

#[cfg(test)]
mod tests {
    use hawser_ebpf_common::metrics::MetricsValue;

    use super::*;

    #[test]
    fn drops_are_told_apart() {
        let record = |reason| MetricsRecord {
            direction: direction::FROM_UPLINK,
            reason,
            value: MetricsValue { packets: 3, bytes: 300 },
        };
        let maps = BTreeMap::from([("hawser_ct4", Fill { entries: 5, capacity: 10 })]);
        let text =
            render(&[record(reason::TRANSLATED), record(reason::ANNOUNCED), record(reason::CT_FULL)], &maps);
        for line in [
            "hawser_packets_total{direction=\"from-uplink\",reason=\"Translated\"} 3",
            "hawser_packets_total{direction=\"from-uplink\",reason=\"Announced\"} 3",
            "hawser_dropped_packets_total{direction=\"from-uplink\",reason=\"Connection tracking full\"} 3",
            "hawser_bpf_map_pressure{map_name=\"hawser_ct4\"} 0.5000",
            "hawser_bpf_map_entries{map_name=\"hawser_ct4\"} 5",
            "hawser_bpf_map_capacity{map_name=\"hawser_ct4\"} 10",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }

    #[test]
    fn health_waits_for_the_maps_and_life_does_not() {
        for (path, synced, status) in
            [("/healthz", false, 503), ("/healthz", true, 200), ("/livez", false, 200), ("/", true, 404)]
        {
            assert_eq!(health(path, synced).status().as_u16(), status, "{path} {synced}");
        }
    }
}
