//! Watches: deliveries, what many watchers of one object cost, and the memory of those that wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_tests::server::{cpu, resident};
use hawser_tests::wire::{Endpoint, Shared};
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{CONFIGMAPS, JSON, configmap, create_many, fresh};
use crate::report::{Report, Target};

const WATCHERS: usize = 100;
const EVENTS: usize = 1_000;
const ROUNDS: usize = 5;
/// Watches that share a connection of HTTP/2 (Go's client opens another one from this number on).
const PER_CONNECTION: usize = 250;
const IDLE_WATCHES: usize = 5_000;
const UPDATES: usize = 1_000;
/// How long deliveries may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures watches.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    deliveries(binary, report).await?;
    one_object(binary, report).await?;
    idle(binary, report).await
}

/// Events that watchers have been given together, and a signal at the number waited for.
struct Count {
    seen: AtomicUsize,
    bytes: AtomicUsize,
    goal: AtomicUsize,
    reached: watch::Sender<usize>,
}

impl Count {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            seen: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            goal: AtomicUsize::new(usize::MAX),
            reached: watch::Sender::new(0),
        })
    }

    async fn wait(&self, goal: usize) -> Result<()> {
        self.goal.store(goal, Ordering::SeqCst);
        let mut reached = self.reached.subscribe();
        let waiting = reached.wait_for(|_| self.seen.load(Ordering::SeqCst) >= goal);
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        let seen = self.seen.load(Ordering::SeqCst);
        waited.with_context(|| format!("{seen} of {goal} events after {PATIENCE:?}"))??;
        ensure!(seen == goal, "{seen} events instead of {goal}");
        Ok(())
    }

    /// Reads a watch to its end. Every event ends with a newline, and JSON has no other.
    async fn follow(self: Arc<Self>, mut body: Incoming) -> Result<()> {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let events = data.iter().filter(|b| **b == b'\n').count();
            self.bytes.fetch_add(data.len(), Ordering::Relaxed);
            let seen = self.seen.fetch_add(events, Ordering::SeqCst) + events;
            if seen >= self.goal.load(Ordering::SeqCst) {
                self.reached.send_replace(seen);
            }
        }
        Ok(())
    }
}

/// The newest revision, from where a watch begins with nothing.
async fn revision(endpoint: &Endpoint) -> Result<String> {
    let list = endpoint.connect().await?.get(&format!("{CONFIGMAPS}?limit=1")).await?;
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    Ok(list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?.to_owned())
}

async fn deliveries(binary: &Path, report: &mut Report) -> Result<()> {
    let (_directory, server, endpoint) = fresh(binary).await?;
    let from = revision(&endpoint).await?;
    let count = Count::new();
    let mut watchers = JoinSet::new();
    let before = cpu(server.pid())?;
    for _ in 0..WATCHERS {
        let mut wire = endpoint.connect().await?;
        let body = wire.open(&format!("{CONFIGMAPS}?watch=true&resourceVersion={from}")).await?;
        watchers.spawn(count.clone().follow(body));
    }
    let mut rates = Vec::new();
    for (round, prefix) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate().take(ROUNDS) {
        let begun = Instant::now();
        let (creates, delivered) =
            tokio::join!(create_many(&endpoint, prefix, EVENTS), count.wait(WATCHERS * EVENTS * (round + 1)));
        creates?;
        delivered?;
        rates.push(begun.elapsed());
    }
    let median = crate::report::percentile(&mut rates, 0.5);
    let rate = super::rate(WATCHERS * EVENTS, median);
    report.add("deliveries, 100 watchers × 1,000 creates", rate, "/s", Target::AtLeast(600_000.0));
    let after = cpu(server.pid())?;
    let used = (after.0 + after.1).saturating_sub(before.0 + before.1).as_secs_f64();
    report.note("processor time of the server for each round", used * 1e3 / ROUNDS as f64, "ms");
    watchers.abort_all();
    Ok(())
}

/// The server's processor time for updates of one object that `watchers` look at, and the bytes they were sent.
async fn updates(binary: &Path, watchers: usize) -> Result<(Duration, usize)> {
    let (_directory, server, endpoint) = fresh(binary).await?;
    let mut wire = endpoint.connect().await?;
    wire.create(CONFIGMAPS, configmap("watched", "0")).await?;
    let from = revision(&endpoint).await?;
    let path =
        format!("{CONFIGMAPS}?watch=true&resourceVersion={from}&fieldSelector=metadata.name%3Dwatched");
    let count = Count::new();
    let mut following = JoinSet::new();
    for body in open_shared(&endpoint, &path, watchers).await? {
        following.spawn(count.clone().follow(body));
    }
    let before = cpu(server.pid())?;
    for number in 1..=UPDATES {
        let body = configmap("watched", &number.to_string());
        wire.expect(Method::PUT, &format!("{CONFIGMAPS}/watched"), JSON, body).await?;
    }
    count.wait(watchers * UPDATES).await?;
    let after = cpu(server.pid())?;
    following.abort_all();
    let used = (after.0 + after.1).saturating_sub(before.0 + before.1);
    Ok((used, count.bytes.load(Ordering::Relaxed)))
}

/// Opens the same watch many times on as few connections as Go's client would.
async fn open_shared(endpoint: &Endpoint, path: &str, watches: usize) -> Result<Vec<Incoming>> {
    let mut bodies = Vec::with_capacity(watches);
    let mut connection: Option<Shared> = None;
    for number in 0..watches {
        if number % PER_CONNECTION == 0 {
            connection = Some(endpoint.connect_shared().await?);
        }
        let connection = connection.as_mut().context("no connection")?;
        bodies.push(connection.open(path).await?);
    }
    Ok(bodies)
}

async fn one_object(binary: &Path, report: &mut Report) -> Result<()> {
    let (few, _) = updates(binary, 10).await?;
    let (many, bytes) = updates(binary, 1_000).await?;
    // "Plus the bytes written": what the kernel needs for them at least, a write for each connection and update.
    let writes = UPDATES * 1_000usize.div_ceil(PER_CONNECTION);
    let writing = tokio::task::spawn_blocking(move || sending(bytes, writes)).await??;
    for (what, time) in [("of 10", few), ("of 1,000", many), ("of writing", writing)] {
        report.note(&format!("processor time {what}"), time.as_secs_f64() * 1e3, "ms");
    }
    let ratio = many.saturating_sub(writing).as_secs_f64() / few.as_secs_f64().max(0.01);
    report.add(
        "CPU of 1,000 watchers of one object over that of 10, less the writing",
        ratio,
        "",
        Target::Below(3.0),
    );
    report.add(
        "the same, per delivery",
        many.as_secs_f64() * 1e6 / (UPDATES as f64 * 1_000.0),
        "µs",
        Target::Below(10.0),
    );
    Ok(())
}

/// Processor time of writing `bytes` in `writes` pieces to a socket of loopback.
fn sending(bytes: usize, writes: usize) -> Result<Duration> {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let mut sender = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while receiver.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
    let piece = vec![b'x'; bytes / writes.max(1)];
    let before = thread_cpu()?;
    for _ in 0..writes {
        sender.write_all(&piece)?;
    }
    let used = thread_cpu()?.saturating_sub(before);
    drop(sender);
    // The reader ends with the connection and cannot panic.
    let _ = reading.join();
    Ok(used)
}

/// Processor time of the calling thread.
fn thread_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() * 1_000_000 + t.tv_usec();
    Ok(Duration::from_micros(u64::try_from(micros(usage.user_time()) + micros(usage.system_time()))?))
}

async fn idle(binary: &Path, report: &mut Report) -> Result<()> {
    let (_directory, server, endpoint) = fresh(binary).await?;
    let from = revision(&endpoint).await?;
    let path = format!("{CONFIGMAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={from}");
    // The first ones pay for what all share.
    let warm = open_shared(&endpoint, &path, PER_CONNECTION).await?;
    let before = resident(server.pid())?;
    let watches = open_shared(&endpoint, &path, IDLE_WATCHES).await?;
    let each = resident(server.pid())?.saturating_sub(before) as f64 / 1024.0 / IDLE_WATCHES as f64;
    report.add("memory per idle watch", each, "KiB", Target::Below(20.0));
    drop((warm, watches));

    let before = resident(server.pid())?;
    let mut alone = Vec::new();
    for _ in 0..500 {
        let mut wire = endpoint.connect().await?;
        alone.push((wire.open(&path).await?, wire));
    }
    let each = resident(server.pid())?.saturating_sub(before) as f64 / 1024.0 / alone.len() as f64;
    report.add("the same with a TLS connection each", each, "KiB", Target::Below(64.0));
    Ok(())
}
