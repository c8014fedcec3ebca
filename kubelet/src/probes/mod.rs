//! Probes of running containers: one task per probe, results sent to the pod's worker when they change the picture.

mod check;
mod tally;

pub(crate) use check::Target;

use crate::cri::Runtime;
use crate::events::{Kind as EventKind, Recorder};
use check::Verdict;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Which of the three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Readiness, Kind::Liveness];

    fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }

    fn of(self, c: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => c.startup_probe.as_ref(),
            Kind::Readiness => c.readiness_probe.as_ref(),
            Kind::Liveness => c.liveness_probe.as_ref(),
        }
    }
}

/// A probe's result reached its threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Result {
    /// The instance probed.
    pub id: String,
    pub kind: Kind,
    pub ok: bool,
}

/// A running container to probe.
#[derive(Clone, Debug)]
pub(crate) struct Running<'a> {
    pub id: &'a str,
    pub container: &'a Container,
    pub started_at: Timestamp,
    /// Its startup probe, if any, has passed.
    pub started: bool,
    /// It is being stopped, or its pod is: from then on only its readiness matters, to those who still send it
    /// connections (`publishNotReadyAddresses`, and when no other endpoint is left).
    pub ending: bool,
}

impl Running<'_> {
    /// Whether a probe of this kind is made now.
    fn wants(&self, kind: Kind) -> bool {
        let due = (kind == Kind::Startup) != self.started && (kind == Kind::Readiness || !self.ending);
        due && kind.of(self.container).is_some()
    }
}

/// The probes of one pod.
pub(crate) struct Probes {
    runtime: Runtime,
    recorder: Recorder,
    results: mpsc::UnboundedSender<Result>,
    tasks: HashMap<(String, Kind), AbortOnDropHandle<()>>,
}

impl Probes {
    pub fn new(runtime: Runtime, recorder: Recorder, results: mpsc::UnboundedSender<Result>) -> Probes {
        Probes { runtime, recorder, results, tasks: HashMap::new() }
    }

    /// Starts and ends tasks so that exactly the given containers are probed. The startup probe goes first; the
    /// others begin when it has passed.
    pub fn sync(&mut self, pod: &Arc<Pod>, pod_ip: Option<&str>, running: &[Running<'_>]) {
        let wanted = |id: &str, kind: Kind| running.iter().any(|r| r.id == id && r.wants(kind));
        self.tasks.retain(|(id, kind), _| wanted(id, *kind));
        for r in running {
            for kind in Kind::ALL {
                let key = (r.id.to_owned(), kind);
                if !wanted(r.id, kind) || self.tasks.contains_key(&key) {
                    continue;
                }
                let Some(probe) = kind.of(r.container) else { continue };
                let task = Task {
                    runtime: self.runtime.clone(),
                    recorder: self.recorder.clone(),
                    results: self.results.clone(),
                    pod: pod.clone(),
                    container: r.container.clone(),
                    probe: probe.clone(),
                    id: r.id.to_owned(),
                    kind,
                    pod_ip: pod_ip.unwrap_or_default().to_owned(),
                    started_at: r.started_at,
                };
                self.tasks.insert(key, AbortOnDropHandle::new(tokio::spawn(task.run())));
            }
        }
    }

    /// Ends all tasks.
    pub fn clear(&mut self) {
        self.tasks.clear();
    }
}

struct Task {
    runtime: Runtime,
    recorder: Recorder,
    results: mpsc::UnboundedSender<Result>,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    id: String,
    kind: Kind,
    pod_ip: String,
    started_at: Timestamp,
}

fn seconds(v: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(v.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

impl Task {
    async fn run(self) {
        let period = seconds(self.probe.period_seconds, 10);
        let limit = seconds(self.probe.timeout_seconds, 1);
        let delay = u64::try_from(self.probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0);
        let age = Timestamp::now().duration_since(self.started_at);
        let age = Duration::try_from(age).unwrap_or(Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(delay).saturating_sub(age)).await;
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tally = Tally::new(&self.probe, self.kind);
        let target =
            Target { runtime: &self.runtime, container: &self.container, id: &self.id, pod_ip: &self.pod_ip };
        loop {
            tick.tick().await;
            let verdict = check::run(&target, &self.probe, limit).await;
            let ok = match &verdict {
                Verdict::Success => true,
                Verdict::Warning(message) => {
                    let text = format!("{} probe warning: {message}", self.kind.title());
                    self.event("ProbeWarning", text);
                    true
                }
                Verdict::Failure(message) => {
                    self.event("Unhealthy", format!("{} probe failed: {message}", self.kind.title()));
                    false
                }
                // A probe that could not be made says nothing about the container.
                Verdict::Error(message) => {
                    self.event("Unhealthy", format!("{} probe errored: {message}", self.kind.title()));
                    continue;
                }
            };
            if let Some(ok) = tally.count(ok) {
                let result = Result { id: self.id.clone(), kind: self.kind, ok };
                if self.results.send(result).is_err() {
                    return;
                }
            }
        }
    }

    fn event(&self, reason: &str, message: String) {
        self.recorder.pod(&self.pod, Some(&self.container.name), EventKind::Warning, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_asked_for_its_readiness_alone() {
        let probe = Some(Probe::default());
        let container = Container {
            startup_probe: probe.clone(),
            readiness_probe: probe.clone(),
            liveness_probe: probe,
            ..Container::default()
        };
        // Whether it has started, whether it ends, and the probes that are made.
        let cases: [(bool, bool, &[Kind]); 4] = [
            (false, false, &[Kind::Startup]),
            (true, false, &[Kind::Readiness, Kind::Liveness]),
            (true, true, &[Kind::Readiness]),
            (false, true, &[]),
        ];
        for (started, ending, wanted) in cases {
            let started_at = Timestamp::UNIX_EPOCH;
            let running = Running { id: "c", container: &container, started_at, started, ending };
            let made: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| running.wants(*kind)).collect();
            assert_eq!(made, wanted, "started: {started}, ending: {ending}");
        }
        let none = Container::default();
        let started_at = Timestamp::UNIX_EPOCH;
        let running = Running { id: "c", container: &none, started_at, started: true, ending: false };
        assert!(!Kind::ALL.into_iter().any(|kind| running.wants(kind)));
    }
}
