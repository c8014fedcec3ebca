//! The pod's status as published: container states, phase, addresses.

use super::conditions;
use super::memory::Op;
use super::model::{Exit, Input, Instance, State};
use super::spec::Role;
use super::view::{Ending, Seen, Verdict, View};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Scheme of container ids in statuses.
pub(super) const SCHEME: &str = "hawser://";

/// Builds the status of a pod.
pub(super) fn build(view: &View<'_>) -> PodStatus {
    let Input { pod, observed, memory, node, now, .. } = view.input;
    let base = &memory.status;
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        start_time: base.start_time.clone().or(Some(Time(whole_seconds(now)))),
        qos_class: Some(conditions::qos_class(pod).to_owned()),
        host_ip: node.host_ips.first().cloned(),
        host_ips: Some(node.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        nominated_node_name: base.nominated_node_name.clone(),
        resource_claim_statuses: base.resource_claim_statuses.clone(),
        extended_resource_claim_status: base.extended_resource_claim_status.clone(),
        ..PodStatus::default()
    };
    let of = |roles: &[Role]| -> Option<Vec<ContainerStatus>> {
        let list: Vec<_> = view
            .seen
            .iter()
            .filter(|s| roles.contains(&s.spec.role))
            .map(|s| container_status(view, s))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    status.init_container_statuses = of(&[Role::Init, Role::Sidecar]);
    status.container_statuses = of(&[Role::Main]);
    status.ephemeral_container_statuses = of(&[Role::Ephemeral]);
    let ips = addresses(view);
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
    (status.phase, status.reason, status.message) = phase(view, &status);
    if let (Some(old), None) = (&base.reason, &status.reason)
        && old == "Evicted"
    {
        status.reason = base.reason.clone();
        status.message = base.message.clone();
    }
    status.conditions = Some(conditions::build(view, &status, observed));
    status
}

/// API times have whole seconds.
pub(super) fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

fn time(t: Timestamp) -> Option<Time> {
    Some(Time(whole_seconds(t)))
}

/// The sandbox' addresses; the node's with host networking; else, while a sandbox is being replaced or is gone
/// with a finished pod, what was published.
fn addresses(view: &View<'_>) -> Vec<String> {
    let Input { pod, observed, memory, node, .. } = view.input;
    let host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    if let Some(s) = observed.sandbox() {
        if host {
            return node.host_ips.clone();
        }
        if !s.ips.is_empty() {
            return s.ips.clone();
        }
    }
    let published = memory.status.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect();
    if view.ending.is_some() { published } else { Vec::new() }
}

fn container_status(view: &View<'_>, s: &Seen<'_>) -> ContainerStatus {
    let c = &s.spec.container;
    let state = state(view, s);
    let shown = s.last;
    let lost = s.last.is_none();
    let id = match (shown, s.base) {
        (Some(i), _) => Some(format!("{SCHEME}{}", i.id)),
        (None, Some(b)) => b.container_id.clone(),
        (None, None) => None,
    };
    let restart_count = match shown {
        Some(i) => i32::try_from(i.attempt).unwrap_or(i32::MAX),
        None => s.base.map_or(0, |b| b.restart_count),
    };
    let started = match s.spec.role {
        Role::Ephemeral => None,
        _ => Some(view.started(s)),
    };
    ContainerStatus {
        name: c.name.clone(),
        container_id: id,
        image: match shown {
            Some(i) if !i.image.is_empty() => i.image.clone(),
            _ => c.image.clone().unwrap_or_default(),
        },
        image_id: match (shown, s.base) {
            (Some(i), _) => i.image_ref.clone(),
            (None, Some(b)) if lost => b.image_id.clone(),
            _ => String::new(),
        },
        last_state: Some(last_state(view, s, &state)),
        ready: view.ready(s),
        restart_count,
        started,
        resources: c.resources.clone().filter(|_| state.running.is_some()),
        allocated_resources: c
            .resources
            .as_ref()
            .and_then(|r| r.requests.clone())
            .filter(|r| !r.is_empty() && state.running.is_some()),
        user: shown.and_then(|i| i.user.clone()).map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser { uid, gid, supplemental_groups: Some(groups) }),
        }),
        volume_mounts: c.volume_mounts.as_ref().map(|mounts| {
            mounts
                .iter()
                .map(|m| VolumeMountStatus {
                    mount_path: m.mount_path.clone(),
                    name: m.name.clone(),
                    read_only: m.read_only.filter(|r| *r),
                    recursive_read_only: (m.read_only == Some(true)).then(|| "Disabled".to_owned()),
                    volume_status: None,
                })
                .collect()
        }),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn state(view: &View<'_>, s: &Seen<'_>) -> ContainerState {
    let memory = view.input.memory;
    let busy = s.verdict == Verdict::Busy;
    let hooked = s.spec.container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
    let shown = match s.last {
        // A container runs once its postStart hook is through.
        Some(Instance { state: State::Running(_), .. }) if busy && hooked => None,
        Some(Instance { state: State::Running(at), .. }) => Some(running(*at)),
        Some(i @ Instance { state: State::Exited(e), .. }) => Some(ended(i, e)),
        Some(i @ Instance { state: State::Unknown, .. }) => Some(unknown(i)),
        Some(Instance { state: State::Created, .. }) => None,
        None => s.base.and_then(|b| lost(view, s, b)),
    };
    let restarting = view.ending.is_none() && !matches!(s.verdict, Verdict::Keep | Verdict::Done(_));
    if let Some(state) = &shown
        && (state.running.is_some() || !restarting)
    {
        return state.clone();
    }
    if let Verdict::Wait { reason, message, .. } = &s.verdict {
        return waiting(reason, message);
    }
    if let Some(f) = memory.failures.get(&Op::Image(s.spec.name().to_owned()))
        && matches!(s.verdict, Verdict::Start { .. })
        && f.delay > 0
    {
        return image_failure(view, s, f);
    }
    shown.unwrap_or_else(|| {
        let has_init = view.seen.iter().any(|s| matches!(s.spec.role, Role::Init | Role::Sidecar));
        waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
    })
}

fn image_failure(view: &View<'_>, s: &Seen<'_>, f: &super::Failure) -> ContainerState {
    if f.reason != "ErrImagePull" || view.input.now < super::after(f.at, 1) {
        return waiting(&f.reason, &f.message);
    }
    let image = s.spec.container.image.as_deref().unwrap_or_default();
    waiting("ImagePullBackOff", &format!("Back-off pulling image \"{image}\": {}: {}", f.reason, f.message))
}

/// The state of a container that was published and of which the runtime knows nothing any more.
fn lost(view: &View<'_>, s: &Seen<'_>, base: &ContainerStatus) -> Option<ContainerState> {
    let state = base.state.as_ref()?;
    if state.terminated.is_some() {
        return Some(state.clone());
    }
    let ran = state.running.is_some();
    let over = view.ending.is_some() || matches!(s.verdict, Verdict::Done(_));
    (ran && over).then(|| terminated_unknown(base.container_id.clone(), state))
}

fn terminated_unknown(container_id: Option<String>, state: &ContainerState) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id,
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            started_at: state.running.as_ref().and_then(|r| r.started_at.clone()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn last_state(view: &View<'_>, s: &Seen<'_>, state: &ContainerState) -> ContainerState {
    if state.terminated.is_none()
        && let Some(i @ Instance { state: State::Exited(e), .. }) = s.last
    {
        return ended(i, e);
    }
    let Some(last) = s.last else {
        // Nothing left in the runtime: a published end becomes the last state of the wait for a new start.
        let base = s.base;
        let state_before = base.and_then(|b| b.state.as_ref());
        if state.terminated.is_none()
            && let Some(before) = state_before
        {
            if before.terminated.is_some() {
                return before.clone();
            }
            if before.running.is_some() {
                return terminated_unknown(base.and_then(|b| b.container_id.clone()), before);
            }
        }
        return base.and_then(|b| b.last_state.clone()).unwrap_or_default();
    };
    let previous =
        view.input.observed.containers.iter().filter(|c| c.name == last.name && c.id != last.id).find_map(
            |c| match &c.state {
                State::Exited(e) => Some(ended(c, e)),
                _ => None,
            },
        );
    previous
        .or_else(|| {
            s.base.and_then(|b| {
                let same = b.container_id.as_deref() == Some(&format!("{SCHEME}{}", last.id));
                let before = b.state.clone().filter(|st| st.terminated.is_some() && !same);
                before.or_else(|| b.last_state.clone())
            })
        })
        .unwrap_or_default()
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

fn running(at: Timestamp) -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning { started_at: time(at) }),
        ..ContainerState::default()
    }
}

fn ended(i: &Instance, e: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{SCHEME}{}", i.id)),
            exit_code: e.code,
            finished_at: time(e.finished_at),
            started_at: e.started_at.and_then(time),
            reason: Some(match (e.reason.as_str(), e.code) {
                ("", 0) => "Completed".to_owned(),
                ("", _) => "Error".to_owned(),
                (reason, _) => reason.to_owned(),
            }),
            message: (!e.message.is_empty()).then(|| e.message.clone()),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn unknown(i: &Instance) -> ContainerState {
    terminated_unknown(Some(format!("{SCHEME}{}", i.id)), &ContainerState::default())
}

/// Phase, reason and message.
fn phase(view: &View<'_>, status: &PodStatus) -> (Option<String>, Option<String>, Option<String>) {
    let base = &view.input.memory.status;
    if let Some(Ending::Failed(reason, message)) = &view.ending {
        return (Some("Failed".into()), Some(reason.clone()), Some(message.clone()));
    }
    // A terminal phase is never left.
    if let Some("Failed" | "Succeeded") = base.phase.as_deref() {
        return (base.phase.clone(), base.reason.clone(), base.message.clone());
    }
    let phase = if init_failed(view) {
        "Failed"
    } else if !view.initialized && !ever_initialized(view) {
        if view.ending == Some(Ending::Deleted) && !view.input.observed.any_running() && !view.busy() {
            // Deleted before its containers ever ran: it cannot succeed.
            "Failed"
        } else {
            "Pending"
        }
    } else {
        main_phase(view, status)
    };
    (Some(phase.to_owned()), None, None)
}

fn init_failed(view: &View<'_>) -> bool {
    view.seen.iter().any(|s| s.spec.role == Role::Init && matches!(s.verdict, Verdict::Done(c) if c != 0))
}

/// Whether the pod got past its init containers at some time; a sidecar's crash does not undo it.
fn ever_initialized(view: &View<'_>) -> bool {
    view.seen.iter().any(|s| {
        s.spec.role == Role::Main && (s.last.is_some() || s.base.is_some_and(|b| b.container_id.is_some()))
    })
}

fn main_phase(view: &View<'_>, status: &PodStatus) -> &'static str {
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for c in status.container_statuses.iter().flatten() {
        let state = c.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(t) = &state.terminated {
            stopped += 1;
            succeeded += i32::from(t.exit_code == 0);
        } else if c.last_state.as_ref().is_some_and(|l| l.terminated.is_some()) {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let over = view.ending.is_some() && !view.input.observed.any_running() && !view.busy();
    let mains_done =
        view.seen.iter().filter(|s| s.spec.role == Role::Main).all(|s| matches!(s.verdict, Verdict::Done(_)));
    if running == 0 && (over || mains_done) {
        return if waiting == 0 && stopped == succeeded && stopped > 0 { "Succeeded" } else { "Failed" };
    }
    match () {
        () if waiting > 0 => "Pending",
        () if running > 0 || stopped > 0 => "Running",
        () => "Pending",
    }
}
