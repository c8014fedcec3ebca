//! Statistics and metrics. Each scrape asks the runtime once and prints what it was told.

pub(crate) mod node;
mod pods;
mod prometheus;
mod summary;

use std::collections::BTreeMap;
use std::time::SystemTime;

use hawser_api::exposition::{CONTENT_TYPE, Exposition, process};
use http::{Response, StatusCode};

use super::{Body, State, respond, text};
use crate::pod::State as ContainerState;

fn failed(e: &tonic::Status) -> Response<Body> {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", e.message()))
}

fn exposition(out: Exposition) -> Response<Body> {
    respond(StatusCode::OK, CONTENT_TYPE, out.finish())
}

/// `/stats/summary`.
pub(super) async fn summary(state: &State) -> Response<Body> {
    match pods::gather(state).await {
        Ok(pods) => {
            let document = summary::document(state, &pods).await;
            respond(StatusCode::OK, "application/json", document.to_string())
        }
        Err(e) => failed(&e),
    }
}

/// `/metrics/resource`.
pub(super) async fn resource_metrics(state: &State) -> Response<Body> {
    exposition(prometheus::resource(pods::gather(state).await.ok().as_deref()))
}

/// `/metrics/cadvisor`.
pub(super) async fn cadvisor_metrics(state: &State) -> Response<Body> {
    match pods::gather(state).await {
        Ok(pods) => exposition(prometheus::cadvisor(&pods)),
        Err(e) => failed(&e),
    }
}

fn this_process(state: &State) -> process::Texts {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    process::Texts {
        stat: text("/proc/self/stat"),
        statm: text("/proc/self/statm"),
        limits: text("/proc/self/limits"),
        open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        started: state.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
    }
}

/// `/metrics`: the kubelet's own.
pub(super) fn metrics(state: &State) -> Response<Body> {
    let views = state.pods.all();
    let mut by_state: BTreeMap<&str, usize> = BTreeMap::new();
    for c in views.iter().flat_map(|v| &v.observed.containers) {
        let name = match c.state {
            ContainerState::Created => "created",
            ContainerState::Running(_) => "running",
            ContainerState::Exited(_) => "exited",
            ContainerState::Unknown => "unknown",
        };
        *by_state.entry(name).or_default() += 1;
    }
    let mut out = Exposition::default();
    let name = "kubelet_node_name";
    out.family(name, "gauge", "The node's name. The count is always 1.");
    out.sample(name, &[("node", &state.shared.config.node_name)], 1);
    out.single(
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
        views.iter().filter(|v| v.observed.sandbox().is_some_and(|s| s.ready)).count(),
    );
    let name = "kubelet_running_containers";
    out.family(name, "gauge", "Number of containers currently running");
    for (state, count) in by_state {
        out.sample(name, &[("container_state", state)], count);
    }
    out.single(
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run",
        views.len(),
    );
    let name = "kubelet_http_requests_total";
    out.family(name, "counter", "Number of the http requests received since the server started");
    for ((method, path), count) in state.requests.lock().iter() {
        out.sample(name, &[("method", method), ("path", path), ("server_type", "readwrite")], count);
    }
    process::write(&mut out, &this_process(state));
    exposition(out)
}
