//! From a view of the pod to actions.

use super::memory::Op;
use super::model::{Action, Decision, Input, Instance, State};
use super::spec::{Role, grace_period};
use super::view::{Ending, Seen, Verdict, View, deadline, pod_title};
use super::{after, status};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// Decides what to do about a pod now.
pub fn decide(input: Input<'_>) -> Decision {
    let view = View::new(input);
    let mut plan = Plan { view: &view, actions: Vec::new(), wake_at: None };
    match &view.ending {
        None => plan.keep_up(),
        Some(ending) => plan.wind_down(ending),
    }
    plan.collect_garbage();
    plan.note_wakes();
    let Plan { actions, wake_at, .. } = plan;
    let nothing_left = input.observed.sandboxes.is_empty() && input.observed.containers.is_empty();
    let finished = input.gone && nothing_left && !view.busy() && input.memory.torn_down;
    Decision { actions, status: status::build(&view), wake_at, finished }
}

struct Plan<'v, 'a> {
    view: &'v View<'a>,
    actions: Vec<Action>,
    wake_at: Option<Timestamp>,
}

impl Plan<'_, '_> {
    /// Emits an action unless its operation is under way or must wait.
    fn act(&mut self, action: Action) {
        let Input { memory, now, .. } = self.view.input;
        match action.op() {
            Some(op) if memory.blocked(&op, now) => {
                if let Some(f) = memory.failures.get(&op) {
                    self.wake(f.retry_at());
                }
            }
            _ => self.actions.push(action),
        }
    }

    fn event(&mut self, key: String, container: Option<&str>, reason: &'static str, message: String) {
        if !self.view.input.memory.said.contains(&key) {
            let container = container.map(str::to_owned);
            self.actions.push(Action::Event { key, container, warning: true, reason, message });
        }
    }

    fn wake(&mut self, at: Timestamp) {
        if at > self.view.input.now {
            self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
        }
    }

    /// The pod is to run: stop what must not, start what must.
    fn keep_up(&mut self) {
        let view = self.view;
        let Input { memory, observed, .. } = view.input;
        let mut due = Vec::new();
        for (i, s) in view.seen.iter().enumerate() {
            match &s.verdict {
                Verdict::Stop { message, grace } => {
                    let grace = grace.unwrap_or_else(|| grace_period(view.input.pod));
                    if let Some(last) = s.last {
                        self.stop(s, last, grace, message.clone());
                    }
                }
                Verdict::Wait { until, reason, .. } if view.eligible.contains(&i) => {
                    self.wake(*until);
                    if reason == "CrashLoopBackOff" {
                        self.say_crash_loop(s);
                    }
                }
                Verdict::Start { .. } if view.eligible.contains(&i) => due.push(i),
                _ => {}
            }
        }
        self.stop_strays();
        if due.is_empty() && !observed.any_running() {
            return;
        }
        if !memory.volumes_ready {
            self.act(Action::SetUpVolumes);
        }
        if !due.is_empty() {
            self.provide_sandbox();
        }
        for i in due {
            self.start(&view.seen[i]);
        }
    }

    /// Stops what runs beside the newest instance of its container or outside the sandbox that serves.
    fn stop_strays(&mut self) {
        let view = self.view;
        for c in &view.input.observed.containers {
            if !matches!(c.state, State::Running(_)) {
                continue;
            }
            let seen = view.seen.iter().find(|s| s.spec.name() == c.name);
            let in_place = view.sandbox.is_some_and(|s| s.id == c.sandbox_id);
            let newest = seen.and_then(|s| s.last).is_some_and(|l| l.id == c.id);
            if in_place && newest {
                continue;
            }
            let message = format!("Stopping container {}", c.name);
            match seen {
                Some(s) => self.stop(s, c, grace_period(view.input.pod), message),
                None => self.stop_plain(c, grace_period(view.input.pod), message),
            }
        }
    }

    fn provide_sandbox(&mut self) {
        let view = self.view;
        let observed = view.input.observed;
        if view.sandbox.is_some() {
            return;
        }
        let Some(old) = observed.sandbox() else {
            let lost = view.seen.iter().filter_map(|s| s.base).any(|b| b.container_id.is_some());
            // A pod that ran before and has no sandbox left gets one of a higher attempt.
            return self.act(Action::RunSandbox { attempt: u32::from(lost) });
        };
        self.event(
            format!("sandbox-changed/{}", old.id),
            None,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.".into(),
        );
        if observed.any_running() {
            return;
        }
        if !view.input.memory.stopped_sandboxes.contains(&old.id) {
            return self.act(Action::StopSandbox { id: old.id.clone() });
        }
        self.act(Action::RunSandbox { attempt: old.attempt + 1 });
    }

    /// Starts a container that is due, or gets nearer to it.
    fn start(&mut self, s: &Seen<'_>) {
        let Verdict::Start { attempt, backoff, adopt } = &s.verdict else { return };
        let view = self.view;
        let memory = view.input.memory;
        let name = s.spec.name();
        let image_ready = adopt.is_some() || memory.images.get(name).is_some_and(|(n, _)| n == attempt);
        if !image_ready {
            if let Some(f) = memory.failures.get(&Op::Image(name.to_owned())) {
                self.wake(after(f.at, 1));
                if f.reason == "ErrImagePull" && view.input.now >= after(f.at, 1) {
                    let image = s.spec.container.image.as_deref().unwrap_or_default();
                    let key = format!("image-backoff/{name}/{}", f.at);
                    self.event(key, Some(name), "BackOff", format!("Back-off pulling image \"{image}\""));
                }
            }
            return self.act(Action::PullImage { container: name.to_owned(), attempt: *attempt });
        }
        let Some(sandbox) = view.sandbox else { return };
        if memory.volumes_ready {
            self.act(Action::StartContainer {
                container: name.to_owned(),
                sandbox_id: sandbox.id.clone(),
                attempt: *attempt,
                backoff: *backoff,
                adopt: adopt.clone(),
            });
        }
    }

    fn say_crash_loop(&mut self, s: &Seen<'_>) {
        let (Some(last), name) = (s.last, s.spec.name()) else { return };
        let message =
            format!("Back-off restarting failed container {name} in pod {}", pod_title(self.view.input.pod));
        self.event(format!("crash-loop/{}", last.id), Some(name), "BackOff", message);
    }

    /// The pod is to end: main containers first, then sidecars from the last to the first, then the sandbox, the
    /// volumes, and if it is deleted, the API object and every trace.
    fn wind_down(&mut self, ending: &Ending) {
        let view = self.view;
        let Input { pod, gone, observed, memory, now, .. } = view.input;
        if *ending != Ending::Finished || observed.any_running() {
            self.stop_all(after(memory.ending_since.unwrap_or(now), grace_period(pod)));
        }
        if observed.any_running() || view.busy() {
            return;
        }
        let unstopped: Vec<_> =
            observed.sandboxes.iter().filter(|s| !memory.stopped_sandboxes.contains(&s.id)).collect();
        for s in &unstopped {
            self.act(Action::StopSandbox { id: s.id.clone() });
        }
        if !unstopped.is_empty() {
            return;
        }
        if !memory.torn_down {
            return self.act(Action::TearDownVolumes);
        }
        if gone {
            for s in &observed.sandboxes {
                self.act(Action::RemoveSandbox { id: s.id.clone() });
            }
            if observed.sandboxes.is_empty() {
                for c in &observed.containers {
                    self.act(Action::RemoveContainer { id: c.id.clone() });
                }
            }
        } else if *ending == Ending::Deleted && !memory.delete_sent {
            self.act(Action::DeletePod);
        }
    }

    fn stop_all(&mut self, until: Timestamp) {
        let view = self.view;
        let grace = until.duration_since(view.input.now).as_secs().max(1);
        let runs = |c: &Instance| matches!(c.state, State::Running(_) | State::Unknown);
        let role = |c: &Instance| view.seen.iter().find(|s| s.spec.name() == c.name).map(|s| s.spec.role);
        let running: Vec<_> = view.input.observed.containers.iter().filter(|c| runs(c)).collect();
        let starting = view.seen.iter().any(|s| s.spec.role != Role::Sidecar && s.verdict == Verdict::Busy);
        let others: Vec<_> = running.iter().filter(|c| role(c) != Some(Role::Sidecar)).collect();
        for c in &others {
            let message = format!("Stopping container {}", c.name);
            match view.seen.iter().find(|s| s.spec.name() == c.name) {
                Some(s) => self.stop(s, c, grace, message),
                None => self.stop_plain(c, grace, message),
            }
        }
        if !others.is_empty() || starting {
            return;
        }
        let last_sidecar = view
            .seen
            .iter()
            .rev()
            .filter(|s| s.spec.role == Role::Sidecar)
            .find_map(|s| running.iter().find(|c| c.name == s.spec.name()).map(|c| (s, *c)));
        if let Some((s, c)) = last_sidecar {
            self.stop(s, c, grace, format!("Stopping container {}", c.name));
        }
    }

    fn stop(&mut self, s: &Seen<'_>, c: &Instance, grace: i64, message: String) {
        let hook = s.spec.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()).map(Box::new);
        self.stop_with(c, grace, hook, message);
    }

    fn stop_plain(&mut self, c: &Instance, grace: i64, message: String) {
        self.stop_with(c, grace, None, message);
    }

    fn stop_with(
        &mut self,
        c: &Instance,
        grace: i64,
        pre_stop: Option<Box<k8s_openapi::api::core::v1::LifecycleHandler>>,
        message: String,
    ) {
        let Input { memory, now, .. } = self.view.input;
        let action = Action::StopContainer {
            id: c.id.clone(),
            container: c.name.clone(),
            grace,
            pre_stop: pre_stop.filter(|_| matches!(c.state, State::Running(_))),
            message,
        };
        match memory.stopping.get(&c.id) {
            // The deadline moved nearer: a second stop overtakes the first.
            Some(until) if after(now, grace + 1) < *until => self.actions.push(action),
            _ => self.act(action),
        }
    }

    /// Removes instances that nothing needs: per container the newest one stays, and the newest that ended before
    /// it, for `lastState` and `kubectl logs --previous`.
    fn collect_garbage(&mut self) {
        let view = self.view;
        let observed = view.input.observed;
        let mut kept_current = BTreeSet::new();
        let mut kept_previous = BTreeSet::new();
        for c in &observed.containers {
            let newest = kept_current.insert(c.name.as_str());
            let ended = matches!(c.state, State::Exited(_));
            if newest || ended && kept_previous.insert(c.name.as_str()) {
                continue;
            }
            if matches!(c.state, State::Exited(_) | State::Created) {
                self.act(Action::RemoveContainer { id: c.id.clone() });
            }
        }
        for s in observed.sandboxes.iter().skip(1) {
            let empty = !observed.containers.iter().any(|c| c.sandbox_id == s.id);
            if !view.input.memory.stopped_sandboxes.contains(&s.id) && view.ending.is_none() {
                self.act(Action::StopSandbox { id: s.id.clone() });
            } else if empty && view.sandbox.is_some() && view.ending.is_none() {
                self.act(Action::RemoveSandbox { id: s.id.clone() });
            }
        }
    }

    /// Moments at which the answer changes without an event.
    fn note_wakes(&mut self) {
        let Input { pod, memory, now, .. } = self.view.input;
        if self.view.ending.is_none() {
            let started = memory.status.start_time.as_ref().map_or(now, |t| t.0);
            if let Some(at) = deadline(pod, Some(started)) {
                self.wake(at);
            }
        }
    }
}
