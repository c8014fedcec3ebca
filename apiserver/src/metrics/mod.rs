//! `/metrics`: what was asked, how it ended, and what is held, with Kubernetes' names, labels and buckets
//! (`k8s.io/apiserver/pkg/endpoints/metrics`). A scrape costs what it prints.

pub mod histogram;
pub mod storage;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use hawser_api::exposition::{self, Exposition, Labels};
use hawser_api::kinds::Kind;
use parking_lot::Mutex;

use self::histogram::Histogram;
use crate::inflight::Inflight;
use crate::kinds::Table;
use crate::request_info::RequestInfo;
use crate::version;

/// Upper bounds of request latencies, in seconds.
pub static SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Those of the service level indicator.
static SLI_SECONDS: [f64; 21] = [
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];

/// What a request is counted as. It names its resource and does not refer to it: rows of custom resources come and go,
/// their counters stay.
#[derive(Debug, Default)]
struct Key<'a> {
    /// In capitals, as Kubernetes reports it.
    verb: &'static str,
    group: &'a str,
    version: &'a str,
    /// Empty for paths.
    resource: &'a str,
    /// Of a path: the health check.
    subresource: &'a str,
    scope: &'static str,
    dry_run: bool,
}

impl Key<'_> {
    /// What no other key has.
    fn name(&self) -> String {
        let parts = [self.verb, self.group, self.version, self.resource, self.subresource, self.scope];
        let mut name = String::with_capacity(parts.iter().map(|p| p.len() + 1).sum::<usize>() + 1);
        for part in parts {
            name.push_str(part);
            name.push(' ');
        }
        name.push(if self.dry_run { 'd' } else { '-' });
        name
    }
}

/// How often each status code was answered. The first codes that come up have places of their own; there are few.
#[derive(Debug, Default)]
struct Codes {
    places: [(AtomicU16, AtomicU64); 12],
    others: Mutex<Vec<(u16, u64)>>,
}

impl Codes {
    fn count(&self, code: u16) {
        for (place, count) in &self.places {
            let there = match place.load(Ordering::Relaxed) {
                0 => place
                    .compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed)
                    .unwrap_or_else(|c| c),
                there => there,
            };
            // An exchange answers what was there before: nothing, where the place is now this code's.
            if there == code || there == 0 {
                count.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let mut others = self.others.lock();
        match others.iter_mut().find(|(c, _)| *c == code) {
            Some((_, n)) => *n += 1,
            None => others.push((code, 1)),
        }
    }

    fn all(&self) -> Vec<(u16, u64)> {
        let places = self.places.iter().map(|(c, n)| (c.load(Ordering::Relaxed), n.load(Ordering::Relaxed)));
        let mut all: Vec<_> = places.filter(|(code, _)| *code != 0).collect();
        all.extend(self.others.lock().iter());
        all.sort_unstable();
        all
    }
}

/// The counters of one key.
#[derive(Debug)]
pub struct Series {
    verb: &'static str,
    group: Box<str>,
    version: Box<str>,
    resource: Box<str>,
    subresource: Box<str>,
    scope: &'static str,
    dry_run: bool,
    codes: Codes,
    seconds: Histogram,
    sli: Histogram,
    running: AtomicI64,
    events: AtomicU64,
    event_bytes: AtomicU64,
}

/// Health checks are the paths that are counted apart.
const HEALTH: [&str; 3] = ["healthz", "livez", "readyz"];

impl Series {
    fn new(key: &Key<'_>) -> Self {
        Self {
            verb: key.verb,
            group: key.group.into(),
            version: key.version.into(),
            resource: key.resource.into(),
            subresource: key.subresource.into(),
            scope: key.scope,
            dry_run: key.dry_run,
            codes: Codes::default(),
            seconds: Histogram::new(&SECONDS),
            sli: Histogram::new(&SLI_SECONDS),
            running: AtomicI64::new(0),
            events: AtomicU64::new(0),
            event_bytes: AtomicU64::new(0),
        }
    }

    /// A watch sent events.
    pub fn sent(&self, events: u64, bytes: usize) {
        self.events.fetch_add(events, Ordering::Relaxed);
        self.event_bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether requests end when they are answered.
    fn is_timed(&self) -> bool {
        !matches!(self.verb, "WATCH" | "CONNECT")
    }

    /// Labels that all families share, by name.
    fn labels<'a>(&'a self, more: Labels<'a>) -> Vec<(&'a str, &'a str)> {
        let mut labels = vec![
            ("component", "apiserver"),
            ("group", &*self.group),
            ("resource", &*self.resource),
            ("scope", self.scope),
            ("subresource", &*self.subresource),
            ("verb", self.verb),
            ("version", &*self.version),
        ];
        labels.extend(more);
        labels.sort_unstable();
        labels
    }
}

/// Counts a long-running request for as long as it lives.
#[derive(Debug)]
pub struct Running(Arc<Series>);

impl Running {
    /// The counters it is counted in.
    pub fn series(&self) -> &Series {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The verb as Kubernetes reports it.
fn reported_verb(info: &RequestInfo, apply: bool, connect: bool) -> &'static str {
    match info.verb {
        _ if connect => "CONNECT",
        "get" | "head" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if apply => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match () {
        () if !info.is_resource => "",
        () if !info.name.is_empty() || info.verb == "create" => "resource",
        () if !info.namespace.is_empty() => "namespace",
        () => "cluster",
    }
}

/// Counters of a server.
#[derive(Debug)]
pub struct Metrics {
    /// By the names of their keys.
    series: DashMap<String, Arc<Series>>,
    /// Requests that were turned away, by being reads and being writes.
    rejected: [AtomicU64; 2],
    /// TLS handshakes that failed.
    pub handshake_errors: AtomicU64,
    started: SystemTime,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            series: DashMap::new(),
            rejected: Default::default(),
            handshake_errors: AtomicU64::new(0),
            started: SystemTime::now(),
        }
    }
}

impl Metrics {
    /// The counters of a request. `kind` is None for what is not served: names that come from clients are not kept.
    pub fn series(
        &self,
        info: &RequestInfo,
        kind: Option<&Arc<Kind>>,
        apply: bool,
        connect: bool,
    ) -> Arc<Series> {
        let verb = reported_verb(info, apply, connect);
        let dry_run = info.param("dryRun").is_some();
        let key = match kind {
            Some(kind) => Key {
                verb,
                group: &kind.group,
                version: &kind.version,
                resource: &kind.plural,
                subresource: kind.subresource(&info.subresource).map_or("", |s| &s.name),
                scope: scope(info),
                dry_run,
            },
            None => {
                let first = info.path.trim_start_matches('/').split('/').next();
                let health = HEALTH.iter().find(|h| Some(**h) == first);
                Key { verb, subresource: health.unwrap_or(&""), dry_run, ..Key::default() }
            }
        };
        let name = key.name();
        if let Some(series) = self.series.get(&name) {
            return Arc::clone(&series);
        }
        Arc::clone(&self.series.entry(name).or_insert_with(|| Arc::new(Series::new(&key))))
    }

    /// A request is answered.
    pub fn end(&self, series: &Series, code: u16, took: Duration) {
        series.codes.count(code);
        // Requests that go on do so for as long as their clients like.
        if series.is_timed() {
            series.seconds.observe(took.as_secs_f64());
            series.sli.observe(took.as_secs_f64());
        }
    }

    /// A long-running request begins; it ends with what is returned.
    pub fn running(series: &Arc<Series>) -> Running {
        series.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(series))
    }

    /// A request was turned away because there are too many.
    pub fn reject(&self, mutating: bool) {
        self.rejected[usize::from(mutating)].fetch_add(1, Ordering::Relaxed);
    }

    fn process(&self) -> exposition::process::Texts {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        exposition::process::Texts {
            stat: text("/proc/self/stat"),
            statm: text("/proc/self/statm"),
            limits: text("/proc/self/limits"),
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            started: self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        }
    }

    /// The text exposition format.
    pub fn render(&self, table: &Table, inflight: &Inflight, storage: &storage::Measured) -> String {
        let mut out = Exposition::default();
        let mut all: Vec<Arc<Series>> = self.series.iter().map(|e| Arc::clone(e.value())).collect();
        all.sort_by_cached_key(|s| {
            let owned = |l: Vec<(&str, &str)>| l.into_iter().map(|(_, v)| v.to_owned()).collect::<Vec<_>>();
            owned(s.labels(&[]))
        });
        write_requests(&mut out, &all);
        inflight.write(&mut out);
        let name = "apiserver_request_terminations_total";
        out.family(name, "counter", "Number of requests which apiserver terminated in self-defense.");
        for (n, kind) in self.rejected.iter().zip(["readOnly", "mutating"]) {
            out.sample(name, &[("code", "429"), ("request_kind", kind)], n.load(Ordering::Relaxed));
        }
        out.single(
            "apiserver_tls_handshake_errors_total",
            "counter",
            "Number of requests dropped with 'TLS handshake error from' error",
            self.handshake_errors.load(Ordering::Relaxed),
        );
        write_objects(&mut out, table);
        storage.write(&mut out);
        let name = "kubernetes_build_info";
        out.family(
            name,
            "gauge",
            "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, \
             build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
        );
        let document = version::document();
        let text = |field: &str| document.get(field).and_then(|v| v.as_str()).unwrap_or_default();
        let labels = [
            ("build_date", "buildDate"),
            ("compiler", "compiler"),
            ("git_commit", "gitCommit"),
            ("git_tree_state", "gitTreeState"),
            ("git_version", "gitVersion"),
            ("go_version", "goVersion"),
            ("major", "major"),
            ("minor", "minor"),
            ("platform", "platform"),
        ]
        .map(|(label, field)| (label, text(field)));
        out.sample(name, &labels, 1);
        exposition::process::write(&mut out, &self.process());
        out.finish()
    }
}

fn dry_run(series: &Series) -> (&'static str, &'static str) {
    ("dry_run", if series.dry_run { "All" } else { "" })
}

fn write_requests(out: &mut Exposition, all: &[Arc<Series>]) {
    let name = "apiserver_request_total";
    let help = "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, \
                scope, component, and HTTP response code.";
    out.family(name, "counter", help);
    for series in all {
        for (code, n) in series.codes.all() {
            out.sample(name, &series.labels(&[("code", &code.to_string()), dry_run(series)]), n);
        }
    }
    let name = "apiserver_request_duration_seconds";
    let help = "Response latency distribution in seconds for each verb, dry run value, group, version, resource, \
                subresource, scope and component.";
    out.family(name, "histogram", help);
    let timed = || all.iter().filter(|s| s.is_timed());
    for series in timed() {
        series.seconds.write(out, name, &series.labels(&[dry_run(series)]));
    }
    let name = "apiserver_request_sli_duration_seconds";
    let help = "Response latency distribution (not counting webhook duration and priority & fairness queue wait \
                times) in seconds for each verb, group, version, resource, subresource, scope and component.";
    out.family(name, "histogram", help);
    // It has no label for dry runs, and they are nobody's service level.
    for series in timed().filter(|s| !s.dry_run) {
        series.sli.write(out, name, &series.labels(&[]));
    }
    let name = "apiserver_longrunning_requests";
    let help = "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, \
                scope and component. Not all requests are tracked this way.";
    out.family(name, "gauge", help);
    let long = || all.iter().filter(|s| !s.is_timed());
    for series in long() {
        out.sample(name, &series.labels(&[]), series.running.load(Ordering::Relaxed));
    }
    let watches = || all.iter().filter(|s| s.verb == "WATCH");
    let families = [
        ("apiserver_watch_events_total", "Number of events sent in watch clients"),
        ("apiserver_watch_events_bytes_total", "Bytes of events sent in watch clients"),
    ];
    for (n, (name, help)) in families.into_iter().enumerate() {
        out.family(name, "counter", help);
        for series in watches() {
            let value = if n == 0 { &series.events } else { &series.event_bytes };
            out.sample(name, &series.labels(&[]), value.load(Ordering::Relaxed));
        }
    }
}

/// What the caches of resources hold; resources that nobody has asked for are not known.
fn write_objects(out: &mut Exposition, table: &Table) {
    let sizes: Vec<_> = table.caches().iter().filter(|c| c.is_live()).map(|c| (c.kind(), c.size())).collect();
    let name = "apiserver_resource_objects";
    let help = "Number of stored objects at the time of last check split by kind. In case of a fetching error, the \
                value will be -1.";
    out.family(name, "gauge", help);
    for (kind, (count, _)) in &sizes {
        out.sample(name, &[("group", &kind.group), ("resource", &kind.plural)], count);
    }
    let name = "apiserver_resource_size_estimate_bytes";
    let help = "Estimated size of stored objects in database. Estimate is based on sum of last observed sizes of \
                serialized objects. In case of a fetching error, the value will be -1.";
    out.family(name, "gauge", help);
    for (kind, (_, bytes)) in &sizes {
        out.sample(name, &[("group", &kind.group), ("resource", &kind.plural)], bytes);
    }
    let name = "apiserver_storage_objects";
    let help = "[DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time \
                of last check split by kind. In case of a fetching error, the value will be -1.";
    out.family(name, "gauge", help);
    for (kind, (count, _)) in &sizes {
        out.sample(name, &[("resource", &kind.group_resource())], count);
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn pods() -> Arc<Kind> {
        Arc::new(Kind {
            version: "v1".into(),
            plural: "pods".into(),
            subresources: vec![hawser_api::kinds::Subresource { name: "exec".into(), ..Default::default() }],
            ..Kind::default()
        })
    }

    fn text(metrics: &Metrics) -> String {
        let mut out = Exposition::default();
        let all: Vec<_> = metrics.series.iter().map(|e| Arc::clone(e.value())).collect();
        write_requests(&mut out, &all);
        out.finish()
    }

    #[test]
    fn requests_are_counted_with_kubernetes_labels() {
        let (metrics, pods) = (Metrics::default(), pods());
        let count = |method: Method, uri: &str, kind: Option<&Arc<Kind>>, connect: bool, code: u16| {
            let info = RequestInfo::parse(&method, &uri.parse().expect("uri"));
            let series = metrics.series(&info, kind, false, connect);
            metrics.end(&series, code, Duration::from_millis(30));
            series
        };
        let pod = "/api/v1/namespaces/a/pods/p";
        count(Method::GET, pod, Some(&pods), false, 200);
        count(Method::GET, pod, Some(&pods), false, 200);
        count(Method::GET, pod, Some(&pods), false, 404);
        count(Method::POST, "/api/v1/namespaces/a/pods?dryRun=All", Some(&pods), false, 201);
        count(Method::GET, "/readyz/ping", None, false, 200);
        count(Method::GET, "/made/up", None, false, 404);
        count(Method::GET, "/made/up/too", None, false, 404);
        let exec = count(Method::POST, &format!("{pod}/exec"), Some(&pods), true, 101);
        let running = Metrics::running(&exec);
        let during = text(&metrics);
        drop(running);
        let after = text(&metrics);
        let get = "component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"GET\",version=\"v1\"";
        let exec = "component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"resource\",subresource=\"exec\",verb=\"CONNECT\",version=\"v1\"";
        let dry = "component=\"apiserver\",dry_run=\"All\",group=\"\",resource=\"pods\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",{}}} 2\n", get.replacen(",", ",dry_run=\"\",", 1)),
            format!("apiserver_request_total{{code=\"404\",{}}} 1\n", get.replacen(",", ",dry_run=\"\",", 1)),
            format!("apiserver_request_total{{code=\"201\",{dry}"),
            "dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"readyz\",verb=\"GET\",version=\"\"} 1\n".into(),
            "dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",verb=\"GET\",version=\"\"} 2\n".into(),
            format!("apiserver_longrunning_requests{{{exec}}} 0\n"),
        ] {
            assert!(after.contains(&line), "{line} in {after}");
        }
        assert!(during.contains(&format!("apiserver_longrunning_requests{{{exec}}} 1\n")), "{during}");
        assert!(after.contains("verb=\"GET\",version=\"v1\",le=\"0.025\"} 0\n"), "{after}");
        assert!(!after.contains(&format!("duration_seconds_count{{{exec}")), "{after}");
        assert_eq!(metrics.series.len(), 5, "names that clients make up are not kept");
        // A definition that changes is another row of the same name.
        count(Method::GET, pod, Some(&self::pods()), false, 200);
        assert_eq!(metrics.series.len(), 5);
    }

    #[test]
    fn any_number_of_codes() {
        let codes = Codes::default();
        let want: Vec<_> = (200..230).map(|code| (code, u64::from(code - 199))).collect();
        want.iter().for_each(|(code, n)| (0..*n).for_each(|_| codes.count(*code)));
        assert_eq!(codes.all(), want);
    }
}
