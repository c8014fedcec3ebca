//! What was asked and answered, in numbers. CoreDNS' metrics, with Hawser's prefix.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream.
    Tcp,
}

const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
const TYPES: [(RecordType, &str); 8] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::PTR, "PTR"),
    (RecordType::SOA, "SOA"),
    (RecordType::SRV, "SRV"),
    (RecordType::TXT, "TXT"),
];
const CODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::NotImp, "NOTIMP"),
];
/// Upper bounds of the durations' buckets, in seconds: CoreDNS' (powers of two from 0.25 ms), and finer ones below.
const BUCKETS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.064, 0.512, 2.048, 8.192];

/// Counters of one server.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: [[AtomicU64; TYPES.len() + 1]; 2],
    responses: [AtomicU64; CODES.len() + 1],
    durations: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
    forwarded: AtomicU64,
}

fn place<T: PartialEq, const N: usize>(table: &[(T, &str); N], value: &T) -> usize {
    table.iter().position(|(known, _)| known == value).unwrap_or(N)
}

impl Metrics {
    /// A question came.
    pub fn request(&self, transport: Transport, kind: RecordType) {
        self.requests[transport as usize][place(&TYPES, &kind)].fetch_add(1, Relaxed);
    }

    /// It was answered.
    pub fn response(&self, code: ResponseCode, took: Duration) {
        self.responses[place(&CODES, &code)].fetch_add(1, Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.durations[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// An upstream server was asked, or the cache of what they said.
    pub fn forwarded(&self) {
        self.forwarded.fetch_add(1, Relaxed);
    }

    /// All of it in Prometheus' text format, with the numbers of Services and endpoints that are known.
    pub fn render(&self, (services, endpoints): (usize, usize), synced: bool) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        #[allow(clippy::cast_precision_loss)]
        let read = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let names = TYPES.iter().map(|(_, name)| *name).chain(["other"]);
        let requests: Vec<_> = TRANSPORTS
            .iter()
            .zip(&self.requests)
            .flat_map(|(proto, counters)| names.clone().zip(counters).map(move |(name, c)| (proto, name, c)))
            .filter(|(_, _, counter)| counter.load(Relaxed) > 0)
            .map(|(proto, name, c)| (format!("{{proto=\"{proto}\",type=\"{name}\"}}"), read(c)))
            .collect();
        family("hawser_dns_requests_total", "counter", "Questions by transport and type.", &requests);
        let codes = CODES.iter().map(|(_, name)| *name).chain(["other"]);
        let responses: Vec<_> = codes
            .zip(&self.responses)
            .filter(|(_, counter)| counter.load(Relaxed) > 0)
            .map(|(code, counter)| (format!("{{rcode=\"{code}\"}}"), read(counter)))
            .collect();
        family("hawser_dns_responses_total", "counter", "Answers by response code.", &responses);
        let forwarded = [(String::new(), read(&self.forwarded))];
        let help = "Questions for the upstream servers or the cache of their answers.";
        family("hawser_dns_forward_requests_total", "counter", help, &forwarded);
        #[allow(clippy::cast_precision_loss)]
        let objects = [
            ("{kind=\"services\"}".to_owned(), services as f64),
            ("{kind=\"endpoints\"}".to_owned(), endpoints as f64),
        ];
        family("hawser_dns_objects", "gauge", "Services and endpoints that are known.", &objects);
        let synced = [(String::new(), f64::from(u8::from(synced)))];
        family("hawser_dns_synced", "gauge", "Whether the cluster's Services have been read.", &synced);

        let name = "hawser_dns_request_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Time from a question to its answer.\n# TYPE {name} histogram");
        let mut sum = 0.0;
        for (bound, counter) in BUCKETS.iter().map(f64::to_string).chain(["+Inf".into()]).zip(&self.durations)
        {
            sum += read(counter);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {sum}", read(&self.nanoseconds) / 1e9);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_rendered() {
        let metrics = Metrics::default();
        metrics.request(Transport::Udp, RecordType::A);
        metrics.request(Transport::Tcp, RecordType::MX);
        metrics.response(ResponseCode::NXDomain, Duration::from_micros(70));
        metrics.response(ResponseCode::NoError, Duration::from_secs(60));
        let text = metrics.render((3, 4), true);
        for line in [
            "hawser_dns_requests_total{proto=\"udp\",type=\"A\"} 1",
            "hawser_dns_requests_total{proto=\"tcp\",type=\"other\"} 1",
            "hawser_dns_responses_total{rcode=\"NXDOMAIN\"} 1",
            "hawser_dns_objects{kind=\"endpoints\"} 4",
            "hawser_dns_synced 1",
            "hawser_dns_request_duration_seconds_bucket{le=\"0.00005\"} 0",
            "hawser_dns_request_duration_seconds_bucket{le=\"0.0001\"} 1",
            "hawser_dns_request_duration_seconds_bucket{le=\"8.192\"} 1",
            "hawser_dns_request_duration_seconds_bucket{le=\"+Inf\"} 2",
            "hawser_dns_request_duration_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
