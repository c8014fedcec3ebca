//! The state machine against a model of a world that fails, lags and dies.
//!
//! Whatever happens, no two instances of a container ever run at once and a finished pod starts nothing. Once the
//! chaos is over, the pod gets where it is to be, and then nothing more is done.

use super::*;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;

/// Something that happens.
#[derive(Clone, Debug)]
enum Chaos {
    /// The kubelet decides on the newest observation.
    Decide,
    /// An operation takes effect and its end is noted; or fails before or after its effect.
    Finish(usize, Fate),
    /// A running container ends.
    Exit(usize, i32),
    /// The sandbox dies with all that is in it.
    SandboxDies,
    /// The kubelet is killed; calls under way may still take effect.
    KubeletDies(bool),
    /// Seconds pass.
    Wait(i64),
    /// Someone deletes the pod.
    Delete,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Well,
    /// Nothing happened.
    Refused,
    /// It happened, but the answer is an error.
    LateError,
    /// A start that left a container behind that never ran.
    HalfStarted,
}

struct World {
    pod: Pod,
    /// The API object is gone.
    gone: bool,
    now: Timestamp,
    runtime: Observed,
    memory: Memory,
    under_way: Vec<Action>,
    ids: u32,
    finished: bool,
    removed: bool,
}

impl World {
    fn new(pod: Pod) -> World {
        let now = Timestamp::from_second(1_000_000).unwrap();
        World {
            memory: Memory::new(&pod),
            pod,
            gone: false,
            now,
            runtime: Observed::default(),
            under_way: Vec::new(),
            ids: 0,
            finished: false,
            removed: false,
        }
    }

    fn id(&mut self) -> String {
        self.ids += 1;
        format!("id{}", self.ids)
    }

    fn decide(&mut self) -> usize {
        if self.finished {
            return 0;
        }
        let observed = self.runtime.clone();
        let node = NodeFacts { host_ips: vec!["192.0.2.1".into()], acknowledged: false };
        let input = Input {
            pod: &self.pod,
            gone: self.gone,
            observed: &observed,
            memory: &self.memory,
            node: &node,
            now: self.now,
        };
        let Decision { actions, status, finished, .. } = decide(input);
        let terminal = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let was_terminal = matches!(self.memory.status.phase.as_deref(), Some("Failed" | "Succeeded"));
        assert!(!was_terminal || terminal, "a terminal phase was left");
        if (self.gone || self.pod.metadata.deletion_timestamp.is_some() || terminal)
            && self.memory.ending_since.is_none()
        {
            self.memory.ending_since = Some(self.now);
        }
        self.memory.status = status.clone();
        self.pod.status = Some(status);
        self.finished = finished;
        let mut ops = 0;
        for action in actions {
            if let (Action::StartContainer { .. } | Action::RunSandbox { .. }, true) = (&action, was_terminal)
            {
                panic!("a finished pod starts {action:?}");
            }
            self.memory.begin(&action, self.now);
            if action.op().is_some() {
                ops += 1;
                self.under_way.push(action);
            }
        }
        let names: Vec<Op> = self.under_way.iter().filter_map(Action::op).collect();
        let unique: BTreeSet<_> = names.iter().filter(|o| !matches!(o, Op::Stop(_))).collect();
        let stops = names.iter().filter(|o| matches!(o, Op::Stop(_))).count();
        assert_eq!(unique.len() + stops, names.len(), "an operation was issued twice: {names:?}");
        ops
    }

    /// The effect of an action on the world. The error is what the runtime answers.
    fn effect(&mut self, action: &Action, half: bool) -> Result<(), &'static str> {
        match action {
            Action::RunSandbox { attempt } => {
                if self.runtime.sandboxes.iter().any(|s| s.attempt == *attempt) {
                    return Err("the name is reserved");
                }
                let id = self.id();
                let ips = vec!["10.0.0.1".into()];
                self.runtime.sandboxes.push(Sandbox { id, attempt: *attempt, ready: true, ips });
            }
            Action::StopSandbox { id } => {
                for c in self.runtime.containers.iter_mut().filter(|c| c.sandbox_id == *id) {
                    end(c, self.now, 137);
                }
                for s in self.runtime.sandboxes.iter_mut().filter(|s| s.id == *id) {
                    s.ready = false;
                }
            }
            Action::RemoveSandbox { id } => {
                self.runtime.sandboxes.retain(|s| s.id != *id);
                self.runtime.containers.retain(|c| c.sandbox_id != *id);
            }
            Action::StartContainer { container, sandbox_id, attempt, backoff, adopt } => {
                if !self.runtime.sandboxes.iter().any(|s| s.id == *sandbox_id && s.ready) {
                    return Err("the sandbox is not there");
                }
                let id = match adopt {
                    Some(id) => id.clone(),
                    None => {
                        if self.runtime.instances(container).any(|c| c.attempt == *attempt) {
                            return Err("the name is reserved");
                        }
                        let id = self.id();
                        let hash = containers(&self.pod)
                            .iter()
                            .find(|s| s.name() == container)
                            .map(|s| spec_hash(&s.container))
                            .unwrap();
                        self.runtime.containers.push(Instance {
                            id: id.clone(),
                            name: container.clone(),
                            sandbox_id: sandbox_id.clone(),
                            attempt: *attempt,
                            hash,
                            backoff: *backoff,
                            image: String::new(),
                            image_ref: String::new(),
                            user: None,
                            state: State::Created,
                        });
                        id
                    }
                };
                if half {
                    self.runtime.sort();
                    return Err("the start failed");
                }
                let now = self.now;
                let instance = self.runtime.containers.iter_mut().find(|c| c.id == id).ok_or("it is gone")?;
                if instance.state != State::Created {
                    return Err("it is not in created state");
                }
                instance.state = State::Running(now);
            }
            Action::StopContainer { id, .. } => {
                let now = self.now;
                for c in self.runtime.containers.iter_mut().filter(|c| c.id == *id) {
                    end(c, now, 143);
                }
            }
            Action::RemoveContainer { id } => {
                let runs = |c: &Instance| matches!(c.state, State::Running(_));
                if self.runtime.containers.iter().any(|c| c.id == *id && runs(c)) {
                    panic!("a running container is removed");
                }
                self.runtime.containers.retain(|c| c.id != *id);
            }
            Action::DeletePod => self.gone = true,
            Action::TearDownVolumes => {
                assert!(!self.runtime.any_running(), "volumes are released under running containers");
                self.removed = true;
            }
            Action::SetUpVolumes | Action::PullImage { .. } | Action::Event { .. } => {}
        }
        self.runtime.sort();
        Ok(())
    }

    fn finish(&mut self, index: usize, fate: Fate) {
        if self.under_way.is_empty() {
            return;
        }
        let action = self.under_way.remove(index % self.under_way.len());
        let done = match fate {
            Fate::Refused => Err("refused"),
            Fate::Well => self.effect(&action, false),
            Fate::LateError => self.effect(&action, false).and(Err("late")),
            Fate::HalfStarted => self.effect(&action, true).and(Err("half")),
        };
        let outcome = match (done, &action) {
            (Err(e), _) => Outcome::Failed("X".into(), e.into()),
            (Ok(()), Action::PullImage { .. }) => Outcome::Pulled("ref".into()),
            (Ok(()), _) => Outcome::Done,
        };
        self.memory.finish(&action, &outcome, self.now);
    }

    fn happen(&mut self, chaos: &Chaos) {
        match chaos {
            Chaos::Decide => {
                self.decide();
            }
            Chaos::Finish(i, fate) => self.finish(*i, *fate),
            Chaos::Exit(i, code) => {
                let now = self.now;
                let mut running: Vec<&mut Instance> = self
                    .runtime
                    .containers
                    .iter_mut()
                    .filter(|c| matches!(c.state, State::Running(_)))
                    .collect();
                let n = running.len();
                if n > 0 {
                    end(running.remove(i % n), now, *code);
                }
            }
            Chaos::SandboxDies => {
                let now = self.now;
                for s in &mut self.runtime.sandboxes {
                    s.ready = false;
                }
                for c in &mut self.runtime.containers {
                    end(c, now, 137);
                }
            }
            Chaos::KubeletDies(effective) => {
                for action in std::mem::take(&mut self.under_way) {
                    if *effective {
                        // A call that was sent takes effect; its answer reaches nobody.
                        let half = matches!(action, Action::StartContainer { .. });
                        let _ = self.effect(&action, half);
                    }
                }
                self.memory = Memory::new(&self.pod);
            }
            Chaos::Wait(seconds) => self.now = after(self.now, *seconds),
            Chaos::Delete => self.delete(),
        }
        self.check();
    }

    fn delete(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_none() {
            self.pod.metadata.deletion_timestamp = Some(Time(after(self.now, 30)));
            self.pod.metadata.deletion_grace_period_seconds = Some(30);
        }
    }

    fn check(&self) {
        for c in &self.runtime.containers {
            let running =
                self.runtime.instances(&c.name).filter(|i| matches!(i.state, State::Running(_))).count();
            assert!(running <= 1, "two instances of {} run", c.name);
        }
    }

    /// Lets everything go well until nothing happens any more; init containers end well, others run on.
    fn settle(&mut self) {
        for _ in 0..400 {
            let mut quiet = self.decide() == 0 && self.under_way.is_empty();
            while !self.under_way.is_empty() {
                self.finish(0, Fate::Well);
                self.check();
            }
            let now = self.now;
            let init: BTreeSet<String> = containers(&self.pod)
                .iter()
                .filter(|s| s.role == Role::Init)
                .map(|s| s.name().to_owned())
                .collect();
            for c in &mut self.runtime.containers {
                if init.contains(&c.name) && matches!(c.state, State::Running(_)) {
                    end(c, now, 0);
                    quiet = false;
                }
            }
            if quiet && self.settled() {
                return;
            }
            // Back-offs end sooner or later.
            self.now = after(self.now, 301);
        }
        panic!("the pod does not settle: {:#?} {:#?}", self.runtime, self.memory);
    }

    fn settled(&self) -> bool {
        let status = self.pod.status.clone().unwrap_or_default();
        let terminal = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        if self.gone || self.pod.metadata.deletion_timestamp.is_some() {
            return self.finished;
        }
        // Without a restart policy of Always, some containers may be done while others run.
        let always = self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("Always");
        let in_place = !always
            && status.phase.as_deref() == Some("Running")
            && status
                .container_statuses
                .iter()
                .flatten()
                .all(|s| s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some()));
        terminal && !self.runtime.any_running() || is_true(&status, "Ready") || in_place
    }
}

fn is_true(status: &PodStatus, type_: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
}

fn end(c: &mut Instance, now: Timestamp, code: i32) {
    let started_at = match c.state {
        State::Running(at) => Some(at),
        _ => return,
    };
    let exit = Exit { started_at, finished_at: now, code, reason: String::new(), message: String::new() };
    c.state = State::Exited(exit);
}

fn pod(policy: &str, init: usize, sidecar: bool, main: usize) -> Pod {
    let mut inits: Vec<_> = (0..init).map(|i| json!({"name": format!("i{i}"), "image": "x"})).collect();
    if sidecar {
        inits.insert(init / 2, json!({"name": "s", "image": "x", "restartPolicy": "Always"}));
    }
    let mains: Vec<_> = (0..main).map(|i| json!({"name": format!("m{i}"), "image": "x"})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1},
        "spec": {"restartPolicy": policy, "initContainers": inits, "containers": mains}
    }))
    .unwrap()
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Well), 1 => Just(Fate::Refused), 1 => Just(Fate::LateError), 1 => Just(Fate::HalfStarted)]
}

fn chaos() -> impl Strategy<Value = Chaos> {
    prop_oneof![
        10 => Just(Chaos::Decide),
        10 => (0..4_usize, fate()).prop_map(|(i, f)| Chaos::Finish(i, f)),
        3 => (0..3_usize, prop_oneof![Just(0), Just(1)]).prop_map(|(i, c)| Chaos::Exit(i, c)),
        1 => Just(Chaos::SandboxDies),
        2 => any::<bool>().prop_map(Chaos::KubeletDies),
        3 => (0..400_i64).prop_map(Chaos::Wait),
        1 => Just(Chaos::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn converges(
        policy in prop_oneof![3 => Just("Always"), 1 => Just("OnFailure"), 1 => Just("Never")],
        init in 0..3_usize,
        sidecar in any::<bool>(),
        main in 1..3_usize,
        story in prop::collection::vec(chaos(), 0..60),
    ) {
        let mut world = World::new(pod(policy, init, sidecar, main));
        for event in &story {
            world.happen(event);
        }
        world.settle();
        if policy == "Always" && world.pod.metadata.deletion_timestamp.is_none() {
            prop_assert!(is_true(world.pod.status.as_ref().unwrap(), "Ready"));
        }
        // A settled pod that is deleted goes without a trace.
        world.delete();
        world.settle();
        prop_assert!(world.finished && world.removed);
        prop_assert!(world.runtime.sandboxes.is_empty() && world.runtime.containers.is_empty());
    }

    #[test]
    fn a_new_kubelet_changes_nothing(init in 0..3_usize, sidecar in any::<bool>(), main in 1..4_usize) {
        let mut world = World::new(pod("Always", init, sidecar, main));
        world.settle();
        let before = (world.runtime.clone(), world.pod.status.clone());
        world.happen(&Chaos::KubeletDies(false));
        for _ in 0..5 {
            world.decide();
            for action in &world.under_way {
                prop_assert!(matches!(action, Action::SetUpVolumes), "{action:?}");
            }
            world.finish(0, Fate::Well);
        }
        prop_assert_eq!(before, (world.runtime.clone(), world.pod.status.clone()));
    }
}
