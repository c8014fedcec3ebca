//! What kubelets tell at `/metrics/resource` (KEP-727), as counters. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Counters of a node or a container at one moment. Both are needed for a sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counters {
    /// CPU time used since the start, in seconds.
    pub cpu: f64,
    /// Working set, in bytes.
    pub memory: u64,
    /// When it started, in seconds since the epoch; 0 if that is not told.
    pub started: f64,
}

/// Namespace and name of a pod.
pub type PodKey = (Box<str>, Box<str>);

/// One answer of a kubelet.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape {
    /// When it was asked for.
    pub at: Timestamp,
    /// The node as a whole.
    pub node: Option<Counters>,
    /// Containers by pod and name.
    pub pods: BTreeMap<PodKey, BTreeMap<Box<str>, Counters>>,
}

/// A line of the text format: name, labels and value.
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl<'a> Line<'a> {
    /// None for comments and whatever else is no sample.
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        // A time may follow the value.
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, c) => value.push(c),
            }
        };
        labels.push((name, value));
        rest = &after[end..];
    }
}

/// A counter of bytes. Casts saturate; what is negative or not a number is 0.
fn bytes(value: f64) -> u64 {
    value as u64
}

/// Both counters, as they come in.
#[derive(Default)]
struct Halves {
    cpu: Option<f64>,
    memory: Option<u64>,
    started: f64,
}

impl Halves {
    fn whole(self) -> Option<Counters> {
        Some(Counters { cpu: self.cpu?, memory: self.memory?, started: self.started })
    }
}

impl Scrape {
    /// Reads an answer. What is not known is left out; a container with one of its samples missing is, too.
    pub fn parse(text: &str, at: Timestamp) -> Self {
        let mut node = Halves::default();
        let mut containers: BTreeMap<(PodKey, Box<str>), Halves> = BTreeMap::new();
        for line in text.lines().filter_map(Line::parse).filter(|l| l.value.is_finite()) {
            match line.name {
                "node_cpu_usage_seconds_total" => node.cpu = Some(line.value),
                "node_memory_working_set_bytes" => node.memory = Some(bytes(line.value)),
                "container_cpu_usage_seconds_total"
                | "container_memory_working_set_bytes"
                | "container_start_time_seconds" => {
                    let label = |name| line.label(name).filter(|v| !v.is_empty());
                    let (Some(namespace), Some(pod), Some(container)) =
                        (label("namespace"), label("pod"), label("container"))
                    else {
                        continue;
                    };
                    let key = ((namespace.into(), pod.into()), container.into());
                    let halves = containers.entry(key).or_default();
                    match line.name {
                        "container_cpu_usage_seconds_total" => halves.cpu = Some(line.value),
                        "container_start_time_seconds" => halves.started = line.value,
                        _ => halves.memory = Some(bytes(line.value)),
                    }
                }
                _ => {}
            }
        }
        let mut pods: BTreeMap<PodKey, BTreeMap<Box<str>, Counters>> = BTreeMap::new();
        for ((pod, container), halves) in containers {
            if let Some(counters) = halves.whole() {
                pods.entry(pod).or_default().insert(container, counters);
            }
        }
        Self { at, node: node.whole(), pods }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_text_becomes_counters() {
        let text = r#"
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="a"} 1.5 1700000000000
container_cpu_usage_seconds_total{container="half",namespace="ns",pod="a"} 2
container_memory_working_set_bytes{container="c",namespace="ns",pod="a"} 1.048576e+06
container_start_time_seconds{container="c",namespace="ns",pod="a"} 1700000000.5
container_cpu_usage_seconds_total{container="q\"\\u",namespace="ns",pod="b"} NaN
node_cpu_usage_seconds_total 10.25
node_memory_working_set_bytes 4096
garbage{
"#;
        let at = Timestamp::UNIX_EPOCH;
        let scrape = Scrape::parse(text, at);
        assert_eq!(scrape.node, Some(Counters { cpu: 10.25, memory: 4096, started: 0.0 }));
        let pod = &scrape.pods[&("ns".into(), "a".into())];
        assert_eq!(pod.len(), 1, "half a sample is none");
        assert_eq!(pod["c"], Counters { cpu: 1.5, memory: 1 << 20, started: 1_700_000_000.5 });
        assert_eq!(scrape.pods.len(), 1);
    }

    #[test]
    fn escapes_in_labels_are_undone() {
        let line = Line::parse(r#"m{a="x\"y\\z\n", b="},{"} 3"#).expect("a line");
        assert_eq!(line.labels, [("a", "x\"y\\z\n".to_owned()), ("b", "},{".to_owned())]);
        assert!((line.value - 3.0).abs() < f64::EPSILON);
        for bad in ["m{a=\"x} 3", "m{a} 3", "m", "m x", "", "# m 3"] {
            assert!(Line::parse(bad).is_none(), "{bad}");
        }
    }
}
