//! One pod as the machine sees it: every container of the spec beside its instances and its published status,
//! with a verdict on what is to become of it.

use super::memory::{Failure, Op};
use super::model::{Exit, Input, Instance, Sandbox, State};
use super::restart;
use super::spec::{Role, Spec, containers, spec_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Why a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Deleted in the API, or gone from it.
    Deleted,
    /// Failed for a reason outside its containers: reason and message.
    Failed(String, String),
    /// Its containers ran to their ends.
    Finished,
}

/// What is to become of a container.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It runs and may go on.
    Keep,
    /// A start is under way.
    Busy,
    /// A new instance is due.
    Start { attempt: u32, backoff: i64, adopt: Option<String> },
    /// A new instance is due later.
    Wait { until: Timestamp, reason: String, message: String },
    /// The running instance must end: event text, and a grace period of its own.
    Stop { message: String, grace: Option<i64> },
    /// It ended and will not run again.
    Done(i32),
}

/// A container of the spec with all that is known of it.
pub(super) struct Seen<'a> {
    pub spec: Spec<'a>,
    /// The newest instance in the sandbox that serves.
    pub current: Option<&'a Instance>,
    /// The newest instance in any sandbox.
    pub last: Option<&'a Instance>,
    /// The published status.
    pub base: Option<&'a ContainerStatus>,
    pub verdict: Verdict,
}

/// The whole pod.
pub(super) struct View<'a> {
    pub input: Input<'a>,
    pub seen: Vec<Seen<'a>>,
    /// The newest sandbox, if it serves.
    pub sandbox: Option<&'a Sandbox>,
    pub ending: Option<Ending>,
    /// Indices into `seen` that may run now.
    pub eligible: Vec<usize>,
    /// All init containers are done, sidecars are up.
    pub initialized: bool,
}

impl<'a> View<'a> {
    pub fn new(input: Input<'a>) -> View<'a> {
        let sandbox = input.observed.sandbox().filter(|s| s.ready);
        let seen = containers(input.pod).into_iter().map(|s| see(&input, sandbox, s)).collect();
        let mut view = View { input, seen, sandbox, ending: None, eligible: Vec::new(), initialized: false };
        view.gate();
        view.ending = view.find_ending();
        view
    }

    /// Finds which containers may run: init containers one after the other, sidecars in between once they have
    /// started, then everything else.
    fn gate(&mut self) {
        let past_init = self.seen.iter().any(|s| s.spec.role == Role::Main && s.current.is_some());
        let mut eligible = Vec::new();
        for (i, s) in self.seen.iter().enumerate() {
            match s.spec.role {
                Role::Init if past_init || s.verdict == Verdict::Done(0) => {}
                Role::Init => {
                    eligible.push(i);
                    self.eligible = eligible;
                    return;
                }
                Role::Sidecar => {
                    eligible.push(i);
                    let up = s.verdict == Verdict::Keep && self.started(s);
                    if !past_init && !up {
                        self.eligible = eligible;
                        return;
                    }
                }
                Role::Main | Role::Ephemeral => eligible.push(i),
            }
        }
        self.eligible = eligible;
        self.initialized = true;
    }

    fn find_ending(&self) -> Option<Ending> {
        let Input { pod, gone, memory, now, .. } = self.input;
        if gone || pod.metadata.deletion_timestamp.is_some() {
            return Some(Ending::Deleted);
        }
        if let Some((reason, message)) = &memory.rejected {
            return Some(Ending::Failed(reason.clone(), message.clone()));
        }
        match memory.status.phase.as_deref() {
            Some("Failed") if memory.status.reason.is_some() => {
                return Some(Ending::Failed(
                    memory.status.reason.clone().unwrap_or_default(),
                    memory.status.message.clone().unwrap_or_default(),
                ));
            }
            Some("Failed" | "Succeeded") => return Some(Ending::Finished),
            _ => {}
        }
        if deadline(pod, memory.status.start_time.as_ref().map(|t| t.0)).is_some_and(|d| now >= d) {
            return Some(Ending::Failed(
                "DeadlineExceeded".into(),
                "Pod was active on the node longer than the specified deadline".into(),
            ));
        }
        let mut mains = self.seen.iter().filter(|s| s.spec.role == Role::Main).peekable();
        let mains_done = mains.peek().is_some() && mains.all(|s| matches!(s.verdict, Verdict::Done(_)));
        let init_failed = self
            .seen
            .iter()
            .any(|s| s.spec.role == Role::Init && matches!(s.verdict, Verdict::Done(code) if code != 0));
        (mains_done || init_failed).then_some(Ending::Finished)
    }

    /// Whether a running container counts as started: its startup probe, if any, has passed.
    pub fn started(&self, s: &Seen<'_>) -> bool {
        let Some(Instance { id, state: State::Running(_), .. }) = s.last else { return false };
        if self.input.memory.in_flight.contains(&Op::Start(s.spec.name().to_owned())) {
            return false;
        }
        let [startup, _, _] = s.spec.probes();
        startup.is_none()
            || match self.input.memory.probes.get(id).and_then(|p| p.startup) {
                Some(passed) => passed,
                // A new process has no result yet: what was published about this very instance holds.
                None => published(s, id).is_some_and(|b| b.started == Some(true)),
            }
    }

    /// Whether a container is ready to serve.
    pub fn ready(&self, s: &Seen<'_>) -> bool {
        if s.spec.role == Role::Init {
            return matches!(s.last, Some(Instance { state: State::Exited(e), .. }) if e.code == 0)
                || s.last.is_none() && s.base.is_some_and(|b| b.ready);
        }
        if !self.started(s) {
            return false;
        }
        let Some(last) = s.last else { return false };
        let [_, readiness, _] = s.spec.probes();
        readiness.is_none()
            || match self.input.memory.probes.get(&last.id).and_then(|p| p.readiness) {
                Some(ok) => ok,
                None => published(s, &last.id).is_some_and(|b| b.ready),
            }
    }

    /// Whether an operation is under way whose end must be awaited before the pod's end: not a pull, which may
    /// take for ever, nor the set-up of volumes, which gives way to their release.
    pub fn busy(&self) -> bool {
        let waits = |op: &Op| !matches!(op, Op::Image(_) | Op::Volumes | Op::Delete);
        self.input.memory.in_flight.iter().any(waits)
    }
}

/// The published status of a container, if it is about the instance `id`.
fn published<'a>(s: &Seen<'a>, id: &str) -> Option<&'a ContainerStatus> {
    s.base.filter(|b| b.container_id.as_deref().and_then(|c| c.split("://").nth(1)) == Some(id))
}

/// When the pod's `activeDeadlineSeconds` are over.
pub(super) fn deadline(pod: &Pod, started: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    Some(super::after(started?, seconds))
}

fn see<'a>(input: &Input<'a>, sandbox: Option<&'a Sandbox>, spec: Spec<'a>) -> Seen<'a> {
    let name = spec.name().to_owned();
    let of_name = || input.observed.containers.iter().filter(|c| c.name == name);
    let last = of_name().next();
    let current = sandbox.and_then(|s| of_name().find(|c| c.sandbox_id == s.id));
    let status = &input.memory.status;
    let base = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten()
        .find(|s| s.name == name);
    let verdict = judge(input, &spec, current, last, base);
    Seen { spec, current, last, base, verdict }
}

fn judge(
    input: &Input<'_>,
    spec: &Spec<'_>,
    current: Option<&Instance>,
    last: Option<&Instance>,
    base: Option<&ContainerStatus>,
) -> Verdict {
    let memory = input.memory;
    let op = Op::Start(spec.name().to_owned());
    if memory.in_flight.contains(&op) {
        return Verdict::Busy;
    }
    let failure = memory.failures.get(&op).filter(|f| input.now < f.retry_at());
    let fresh = |attempt| Verdict::Start { attempt, backoff: restart::next_backoff(last), adopt: None };
    let Some(last) = last else { return judge_unseen(input, spec, base, failure) };
    match &last.state {
        State::Running(_) => judge_running(input, spec, last),
        State::Unknown => {
            Verdict::Stop { message: format!("Container {} is in unknown state", spec.name()), grace: None }
        }
        State::Created => match (failure, memory.failures.contains_key(&op), current) {
            (Some(f), _, _) => wait_for(f),
            (None, false, Some(c)) if c.id == last.id && c.hash == spec_hash(&spec.container) => {
                Verdict::Start { attempt: c.attempt, backoff: c.backoff, adopt: Some(c.id.clone()) }
            }
            _ => fresh(last.attempt + 1),
        },
        State::Exited(exit) => {
            // Init containers run again in a new sandbox, even those that were done.
            let again = spec.role == Role::Init && current.is_none() && exit.code == 0;
            if !again && !restart::restarts(input.pod, spec, exit.code) {
                return Verdict::Done(exit.code);
            }
            if let Some(f) = failure {
                return wait_for(f);
            }
            judge_backoff(input, spec, last, exit).unwrap_or_else(|| fresh(last.attempt + 1))
        }
    }
}

/// A container without an instance: new, or lost with its runtime's memory.
fn judge_unseen(
    input: &Input<'_>,
    spec: &Spec<'_>,
    base: Option<&ContainerStatus>,
    failure: Option<&Failure>,
) -> Verdict {
    let past = base.and_then(|b| {
        let state = b.state.as_ref()?;
        let code = state.terminated.as_ref().map(|t| t.exit_code);
        let ran = state.running.is_some() || b.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
        code.or(ran.then_some(137)).map(|code| (code, u32::try_from(b.restart_count).unwrap_or(0)))
    });
    if let Some((code, _)) = past
        && !restart::restarts(input.pod, spec, code)
        && (spec.role != Role::Init || code != 0)
    {
        return Verdict::Done(code);
    }
    match failure {
        Some(f) => wait_for(f),
        None => Verdict::Start { attempt: past.map_or(0, |(_, n)| n + 1), backoff: 0, adopt: None },
    }
}

fn judge_running(input: &Input<'_>, spec: &Spec<'_>, last: &Instance) -> Verdict {
    let name = spec.name();
    if last.hash != spec_hash(&spec.container) && spec.role != Role::Ephemeral {
        let message = format!("Container {name} definition changed, will be restarted");
        return Verdict::Stop { message, grace: None };
    }
    let results = input.memory.probes.get(&last.id).copied().unwrap_or_default();
    let [startup, _, liveness] = spec.probes();
    for (kind, probe, result) in
        [("startup", startup, results.startup), ("liveness", liveness, results.liveness)]
    {
        if let (Some(probe), Some(false)) = (probe, result) {
            let message = format!("Container {name} failed {kind} probe, will be restarted");
            return Verdict::Stop { message, grace: probe.termination_grace_period_seconds };
        }
    }
    Verdict::Keep
}

fn judge_backoff(input: &Input<'_>, spec: &Spec<'_>, last: &Instance, exit: &Exit) -> Option<Verdict> {
    let (wait, until) = restart::ready_at(last, exit);
    (input.now < until).then(|| Verdict::Wait {
        until,
        reason: "CrashLoopBackOff".into(),
        message: format!(
            "back-off {} restarting failed container={} pod={}",
            go_duration(wait),
            spec.name(),
            pod_title(input.pod)
        ),
    })
}

fn wait_for(f: &Failure) -> Verdict {
    Verdict::Wait { until: f.retry_at(), reason: f.reason.clone(), message: f.message.clone() }
}

/// `name_namespace(uid)`, as the kubelet names pods in messages.
pub(super) fn pod_title(pod: &Pod) -> String {
    let m = &pod.metadata;
    let part = |o: &Option<String>| o.clone().unwrap_or_default();
    format!("{}_{}({})", part(&m.name), part(&m.namespace), part(&m.uid))
}

/// Whole seconds the way Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_duration(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}
