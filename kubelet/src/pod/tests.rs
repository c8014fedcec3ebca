//! Cases of the state machine: what is decided and what is published in one situation.

use super::*;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};

struct Case {
    pod: Pod,
    gone: bool,
    observed: Observed,
    memory: Memory,
    now: Timestamp,
}

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

impl Case {
    fn new(spec: Value) -> Case {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
            "spec": spec
        }))
        .unwrap();
        let memory = Memory { volumes_ready: true, ..Memory::new(&pod) };
        Case { pod, gone: false, observed: Observed::default(), memory, now: t(100) }
    }

    fn sandbox(mut self) -> Case {
        let ips = vec!["10.0.0.5".to_owned()];
        self.observed.sandboxes.push(Sandbox { id: "sb".into(), attempt: 0, ready: true, ips });
        self
    }

    fn container(mut self, id: &str, name: &str, attempt: u32, backoff: i64, state: State) -> Case {
        let specs = containers(&self.pod);
        let hash =
            specs.iter().find(|s| s.name() == name).map(|s| spec_hash(&s.container)).unwrap_or_default();
        self.observed.containers.push(Instance {
            id: id.into(),
            name: name.into(),
            sandbox_id: "sb".into(),
            attempt,
            hash,
            backoff,
            image: "img".into(),
            image_ref: "img@sha256:1".into(),
            user: None,
            state,
        });
        self.observed.sort();
        self
    }

    fn image(mut self, name: &str, attempt: u32) -> Case {
        self.memory.images.insert(name.into(), (attempt, "ref".into()));
        self
    }

    fn deleted(mut self, grace: i64) -> Case {
        self.pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(after(self.now, grace)));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.memory.ending_since = Some(self.now);
        self
    }

    fn decide(&self) -> Decision {
        let node = NodeFacts { host_ips: vec!["192.0.2.1".into()], acknowledged: false };
        decide(Input {
            pod: &self.pod,
            gone: self.gone,
            observed: &self.observed,
            memory: &self.memory,
            node: &node,
            now: self.now,
        })
    }
}

fn exited(from: i64, to: i64, code: i32) -> State {
    State::Exited(Exit {
        started_at: Some(t(from)),
        finished_at: t(to),
        code,
        reason: String::new(),
        message: String::new(),
    })
}

fn ops(d: &Decision) -> Vec<Op> {
    d.actions.iter().filter_map(Action::op).collect()
}

fn main_status(s: &PodStatus) -> &ContainerStatus {
    &s.container_statuses.as_ref().unwrap()[0]
}

fn condition<'a>(s: &'a PodStatus, type_: &str) -> (&'a str, Option<&'a str>, Option<&'a str>) {
    let c = s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == type_).unwrap();
    (&c.status, c.reason.as_deref(), c.message.as_deref())
}

fn waiting(s: &ContainerStatus) -> Option<&str> {
    s.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

fn one() -> Value {
    json!({"containers": [{"name": "c", "image": "img"}]})
}

#[test]
fn a_new_pod_starts_everything_at_once() {
    let mut case = Case::new(one());
    case.memory.volumes_ready = false;
    let d = case.decide();
    assert_eq!(ops(&d), [Op::Volumes, Op::Sandbox, Op::Image("c".into())]);
    let s = &d.status;
    assert_eq!(s.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(main_status(s)), Some("ContainerCreating"));
    assert_eq!(s.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(s.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(s.observed_generation, Some(3));
    assert_eq!(condition(s, "PodReadyToStartContainers").0, "False");
    assert_eq!(condition(s, "Initialized").0, "True");
    assert_eq!(
        condition(s, "Ready"),
        ("False", Some("ContainersNotReady"), Some("containers with unready status: [c]"))
    );
    assert_eq!(condition(s, "PodScheduled").0, "True");
}

#[test]
fn a_container_starts_when_sandbox_image_and_volumes_are_ready() {
    let case = Case::new(one()).sandbox().image("c", 0);
    let d = case.decide();
    assert_eq!(
        d.actions,
        [Action::StartContainer {
            container: "c".into(),
            sandbox_id: "sb".into(),
            attempt: 0,
            backoff: 0,
            adopt: None
        }]
    );
    assert_eq!(condition(&d.status, "PodReadyToStartContainers").0, "True");
    assert_eq!(d.status.pod_ip.as_deref(), Some("10.0.0.5"));
    let mut slow = Case::new(one()).sandbox().image("c", 0);
    slow.memory.volumes_ready = false;
    assert_eq!(ops(&slow.decide()), [Op::Volumes]);
}

#[test]
fn running_is_ready_without_probes() {
    let d = Case::new(one()).sandbox().container("a", "c", 0, 0, State::Running(t(90))).decide();
    assert!(d.actions.is_empty());
    let s = main_status(&d.status);
    assert_eq!((s.ready, s.started, s.restart_count), (true, Some(true), 0));
    assert_eq!(s.container_id.as_deref(), Some("hawser://a"));
    assert_eq!(s.image_id, "img@sha256:1");
    assert_eq!(d.status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&d.status, "Ready").0, "True");
}

#[test]
fn probes_make_ready_started_and_dead() {
    let spec = json!({"containers": [{"name": "c", "image": "img",
        "startupProbe": {"tcpSocket": {"port": 1}}, "readinessProbe": {"tcpSocket": {"port": 1}},
        "livenessProbe": {"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 3}}]});
    let mut case = Case::new(spec).sandbox().container("a", "c", 0, 0, State::Running(t(90)));
    let shown = |c: &Case| {
        let d = c.decide();
        (main_status(&d.status).started, main_status(&d.status).ready)
    };
    assert_eq!(shown(&case), (Some(false), false));
    case.memory.probes.insert("a".into(), ProbeResults { startup: Some(true), ..Default::default() });
    assert_eq!(shown(&case), (Some(true), false));
    case.memory.probes.get_mut("a").unwrap().readiness = Some(true);
    assert_eq!(shown(&case), (Some(true), true));
    // A new process knows nothing yet, and believes what was published about this instance.
    case.memory.status = case.decide().status;
    case.memory.probes.clear();
    assert_eq!(shown(&case), (Some(true), true));
    case.memory.probes.insert("a".into(), ProbeResults { liveness: Some(false), ..Default::default() });
    let d = case.decide();
    assert!(matches!(&d.actions[..], [Action::StopContainer { id, grace: 3, message, .. }]
        if id == "a" && message == "Container c failed liveness probe, will be restarted"));
}

#[test]
fn crash_loop_backs_off() {
    // The first restart is immediate and carries the first wait.
    let case = Case::new(one()).sandbox().container("a", "c", 0, 0, exited(90, 95, 1)).image("c", 1);
    assert!(matches!(&case.decide().actions[..], [Action::StartContainer { attempt: 1, backoff: 10, .. }]));
    // Then it waits.
    let case = Case::new(one()).sandbox().container("a", "c", 3, 40, exited(90, 95, 1)).image("c", 4);
    let d = case.decide();
    assert_eq!(d.wake_at, Some(t(135)));
    let s = main_status(&d.status);
    assert_eq!(waiting(s), Some("CrashLoopBackOff"));
    let message = s.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref();
    assert_eq!(message, Some("back-off 40s restarting failed container=c pod=p_ns(u)"));
    let last = s.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_eq!(s.restart_count, 3);
    assert_eq!(d.status.phase.as_deref(), Some("Running"));
    assert!(matches!(&d.actions[..], [Action::Event { reason: "BackOff", .. }]));
    let late = Case { now: t(135), ..case };
    assert!(matches!(&late.decide().actions[..], [Action::StartContainer { attempt: 4, backoff: 80, .. }]));
    // Ten good minutes wipe the slate.
    let case = Case::new(one()).sandbox().container("a", "c", 9, 300, exited(-600, 99, 1)).image("c", 10);
    assert!(matches!(&case.decide().actions[..], [Action::StartContainer { backoff: 10, .. }]));
    let case = Case::new(one()).sandbox().container("a", "c", 9, 300, exited(0, 99, 1)).image("c", 10);
    assert_eq!(case.decide().wake_at, Some(t(399)));
}

#[test]
fn restart_policies_and_phases() {
    for (policy, code, phase, restarts) in [
        ("Always", 0, "Running", true),
        ("Always", 1, "Running", true),
        ("OnFailure", 0, "Succeeded", false),
        ("OnFailure", 1, "Running", true),
        ("Never", 0, "Succeeded", false),
        ("Never", 1, "Failed", false),
    ] {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "img"}]});
        let case = Case::new(spec).sandbox().container("a", "c", 0, 0, exited(90, 95, code)).image("c", 1);
        let d = case.decide();
        assert_eq!(d.status.phase.as_deref(), Some(phase), "{policy} {code}");
        let starts = d.actions.iter().any(|a| matches!(a, Action::StartContainer { .. }));
        assert_eq!(starts, restarts, "{policy} {code}");
        if !restarts {
            assert!(matches!(&d.actions[..], [Action::StopSandbox { .. }]), "{policy} {code}");
        }
    }
}

#[test]
fn container_restart_rules() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "img",
        "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    let run = |code| {
        let case =
            Case::new(spec.clone()).sandbox().container("a", "c", 0, 0, exited(90, 95, code)).image("c", 1);
        case.decide().status.phase.unwrap()
    };
    assert_eq!(run(42), "Running");
    assert_eq!(run(1), "Failed");
}

#[test]
fn init_containers_and_sidecars_in_order() {
    let spec = json!({
        "initContainers": [{"name": "i0", "image": "img"},
            {"name": "s", "image": "img", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}},
            {"name": "i1", "image": "img"}],
        "containers": [{"name": "c", "image": "img"}]});
    let started = |case: &Case| -> Vec<String> {
        case.decide()
            .actions
            .iter()
            .filter_map(|a| match a {
                Action::StartContainer { container, .. } => Some(container.clone()),
                _ => None,
            })
            .collect()
    };
    let mut case = Case::new(spec).sandbox();
    for name in ["i0", "s", "i1", "c"] {
        case = case.image(name, 0);
    }
    assert_eq!(started(&case), ["i0"]);
    let d = case.decide();
    assert_eq!(waiting(main_status(&d.status)), Some("PodInitializing"));
    assert_eq!(
        condition(&d.status, "Initialized"),
        ("False", Some("ContainersNotInitialized"), Some("containers with incomplete status: [i0 s i1]"))
    );
    case = case.container("0", "i0", 0, 0, exited(90, 91, 0));
    assert_eq!(started(&case), ["s"]);
    case = case.container("s", "s", 0, 0, State::Running(t(92)));
    assert_eq!(started(&case), Vec::<String>::new());
    case.memory.probes.insert("s".into(), ProbeResults { startup: Some(true), ..Default::default() });
    assert_eq!(started(&case), ["i1"]);
    case = case.container("1", "i1", 0, 0, exited(93, 94, 0));
    assert_eq!(started(&case), ["c"]);
    case = case.container("c", "c", 0, 0, State::Running(t(95)));
    assert_eq!(started(&case), Vec::<String>::new());
    assert_eq!(case.decide().status.phase.as_deref(), Some("Running"));
    // A sidecar that ends later comes back and holds up nobody.
    case.observed.containers.iter_mut().find(|c| c.id == "s").unwrap().state = exited(92, 96, 1);
    let mut case = case.image("s", 1);
    assert_eq!(started(&case), ["s"]);
    assert_eq!(case.decide().status.phase.as_deref(), Some("Running"));
    // When the main container is done, so is the pod; the sidecar is stopped last.
    case.pod.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    case.observed.containers.iter_mut().find(|c| c.id == "s").unwrap().state = State::Running(t(96));
    case.observed.containers.iter_mut().find(|c| c.id == "c").unwrap().state = exited(95, 97, 0);
    assert!(matches!(&case.decide().actions[..], [Action::StopContainer { id, .. }] if id == "s"));
}

#[test]
fn failed_init_container_fails_the_pod() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "img"}],
        "containers": [{"name": "c", "image": "img"}]});
    let case = Case::new(spec).sandbox().container("0", "i", 0, 0, exited(90, 91, 1));
    let d = case.decide();
    assert_eq!(d.status.phase.as_deref(), Some("Failed"));
    assert_eq!(waiting(main_status(&d.status)), Some("PodInitializing"));
}

#[test]
fn termination_step_by_step() {
    let spec = json!({"terminationGracePeriodSeconds": 60,
        "initContainers": [{"name": "s0", "image": "img", "restartPolicy": "Always"},
            {"name": "s1", "image": "img", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "img", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]});
    let mut case = Case::new(spec)
        .sandbox()
        .container("s0", "s0", 0, 0, State::Running(t(1)))
        .container("s1", "s1", 0, 0, State::Running(t(1)))
        .container("c", "c", 0, 0, State::Running(t(2)))
        .deleted(20);
    let d = case.decide();
    assert!(
        matches!(&d.actions[..], [Action::StopContainer { id, grace: 20, pre_stop: Some(_), .. }] if id == "c")
    );
    case.memory.begin(&d.actions[0], case.now);
    assert!(case.decide().actions.is_empty());
    // A shorter deadline overtakes.
    let hurry =
        Case { pod: case.pod.clone(), observed: case.observed.clone(), memory: case.memory.clone(), ..case };
    let mut hurry = hurry;
    hurry.pod.metadata.deletion_grace_period_seconds = Some(2);
    assert!(matches!(&hurry.decide().actions[..], [Action::StopContainer { grace: 2, .. }]));
    let mut case = Case { now: t(105), ..hurry };
    case.pod.metadata.deletion_grace_period_seconds = Some(20);
    case.memory.finish(&d.actions[0], &Outcome::Done, case.now);
    let stop = |case: &mut Case, id: &str, code| {
        case.observed.containers.iter_mut().find(|c| c.id == id).unwrap().state = exited(2, 104, code);
    };
    stop(&mut case, "c", 0);
    assert!(
        matches!(&case.decide().actions[..], [Action::StopContainer { id, grace: 15, .. }] if id == "s1")
    );
    stop(&mut case, "s1", 0);
    assert!(matches!(&case.decide().actions[..], [Action::StopContainer { id, .. }] if id == "s0"));
    stop(&mut case, "s0", 0);
    for expected in [Op::StopSandbox("sb".into()), Op::TearDown, Op::Delete] {
        let d = case.decide();
        assert_eq!(ops(&d), [expected]);
        assert_eq!(d.status.phase.as_deref(), Some("Succeeded"));
        case.memory.begin(&d.actions[0], case.now);
        assert!(case.decide().actions.is_empty());
        case.memory.finish(&d.actions[0], &Outcome::Done, case.now);
    }
    assert!(case.decide().actions.is_empty());
    case.gone = true;
    assert_eq!(ops(&case.decide()), [Op::RemoveSandbox("sb".into())]);
    case.observed = Observed::default();
    assert!(case.decide().finished);
}

#[test]
fn image_failures() {
    let mut case = Case::new(one()).sandbox();
    let pull = Action::PullImage { container: "c".into(), attempt: 0 };
    let failed = Outcome::Failed("ErrImagePull".into(), "no such image".into());
    case.memory.finish(&pull, &failed, case.now);
    let d = case.decide();
    assert_eq!(waiting(main_status(&d.status)), Some("ErrImagePull"));
    assert_eq!(d.wake_at, Some(t(101)));
    case.now = t(101);
    let d = case.decide();
    assert_eq!(waiting(main_status(&d.status)), Some("ImagePullBackOff"));
    assert_eq!(d.wake_at, Some(t(110)));
    assert!(matches!(&d.actions[..], [Action::Event { reason: "BackOff", .. }]));
    case.now = t(110);
    case.memory.said.extend(d.actions.iter().filter_map(|a| match a {
        Action::Event { key, .. } => Some(key.clone()),
        _ => None,
    }));
    assert_eq!(ops(&case.decide()), [Op::Image("c".into())]);
    case.memory.finish(&pull, &failed, case.now);
    assert_eq!(case.memory.failures[&Op::Image("c".into())].delay, 20);
}

#[test]
fn config_errors_are_retried_when_objects_change() {
    let mut case = Case::new(one()).sandbox().image("c", 0);
    let d = case.decide();
    let error = Outcome::Failed("CreateContainerConfigError".into(), "configmap \"x\" not found".into());
    case.memory.finish(&d.actions[0], &error, case.now);
    let d = case.decide();
    assert!(d.actions.is_empty());
    assert_eq!(waiting(main_status(&d.status)), Some("CreateContainerConfigError"));
    case.memory.objects_changed();
    assert_eq!(ops(&case.decide()), [Op::Start("c".into())]);
}

#[test]
fn a_created_container_is_adopted() {
    let case = Case::new(one()).sandbox().container("a", "c", 2, 20, State::Created);
    assert!(matches!(&case.decide().actions[..],
        [Action::StartContainer { attempt: 2, backoff: 20, adopt: Some(id), .. }] if id == "a"));
}

#[test]
fn a_dead_sandbox_is_replaced() {
    let mut case = Case::new(one()).sandbox().container("a", "c", 0, 0, exited(1, 99, 137));
    case.observed.sandboxes[0].ready = false;
    let d = case.decide();
    assert_eq!(ops(&d), [Op::StopSandbox("sb".into()), Op::Image("c".into())]);
    assert!(d.actions.iter().any(|a| matches!(a, Action::Event { reason: "SandboxChanged", .. })));
    case.memory.stopped_sandboxes.insert("sb".into());
    let d = case.decide();
    assert!(d.actions.contains(&Action::RunSandbox { attempt: 1 }));
}

#[test]
fn a_changed_image_restarts_the_container() {
    let mut case = Case::new(one()).sandbox().container("a", "c", 0, 0, State::Running(t(1)));
    case.pod.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    assert!(matches!(&case.decide().actions[..], [Action::StopContainer { message, .. }]
        if message == "Container c definition changed, will be restarted"));
}

#[test]
fn active_deadline() {
    let mut spec = one();
    spec["activeDeadlineSeconds"] = json!(10);
    let mut case = Case::new(spec).sandbox().container("a", "c", 0, 0, State::Running(t(91)));
    case.memory.status.start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(t(91)));
    assert_eq!(case.decide().wake_at, Some(t(101)));
    case.now = t(101);
    let d = case.decide();
    assert!(matches!(&d.actions[..], [Action::StopContainer { .. }]));
    assert_eq!(
        (d.status.phase.as_deref(), d.status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn readiness_gates() {
    let mut spec = one();
    spec["readinessGates"] = json!([{"conditionType": "x/y"}]);
    let mut case = Case::new(spec).sandbox().container("a", "c", 0, 0, State::Running(t(91)));
    let d = case.decide();
    assert_eq!(condition(&d.status, "ContainersReady").0, "True");
    assert_eq!(condition(&d.status, "Ready").1, Some("ReadinessGatesNotReady"));
    case.memory.status =
        serde_json::from_value(json!({"conditions": [{"type": "x/y", "status": "True"}]})).unwrap();
    let d = case.decide();
    assert_eq!(condition(&d.status, "Ready").0, "True");
    assert_eq!(condition(&d.status, "x/y").0, "True");
}

#[test]
fn lost_containers_are_counted_and_replaced() {
    let mut case = Case::new(one());
    case.memory.status = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
        "name": "c", "image": "img", "imageID": "i", "ready": true, "restartCount": 2, "containerID": "hawser://z",
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}))
    .unwrap();
    let case = case.image("c", 3);
    let d = case.decide();
    assert_eq!(ops(&d), [Op::Sandbox]);
    let s = main_status(&d.status);
    assert_eq!(s.restart_count, 2);
    assert_eq!(s.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 137);
    let d = case.sandbox().decide();
    assert!(matches!(&d.actions[..], [Action::StartContainer { attempt: 3, .. }]));
}

#[test]
fn post_start_hook_holds_back_running() {
    let spec = json!({"containers": [{"name": "c", "image": "img",
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]});
    let mut case = Case::new(spec).sandbox().container("a", "c", 0, 0, State::Running(t(90)));
    case.memory.in_flight.insert(Op::Start("c".into()));
    assert_eq!(waiting(main_status(&case.decide().status)), Some("ContainerCreating"));
    case.memory.in_flight.clear();
    assert!(main_status(&case.decide().status).ready);
}

#[test]
fn quality_of_service() {
    let q = |resources: Value| {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}))
                .unwrap();
        qos_class(&pod)
    };
    assert_eq!(q(json!({})), "BestEffort");
    assert_eq!(q(json!({"requests": {"cpu": "0"}})), "BestEffort");
    assert_eq!(q(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(q(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(q(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    assert_eq!(q(json!({"limits": {"cpu": "1"}})), "Burstable");
}
