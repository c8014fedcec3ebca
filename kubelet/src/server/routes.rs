//! Paths of the kubelet's server.

use super::container_logs::{self, Query};
use super::{Body, State, proxy, respond, stats, text};
use crate::pod::State as ContainerState;
use crate::worker::PodView;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_cri::v1 as cri;
use serde_json::json;
use std::sync::Arc;

/// Answers one request.
pub(super) async fn route(state: &Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    count(state, request.method(), parts.first().copied().unwrap_or_default());
    match parts.as_slice() {
        ["healthz", ..] if get => text(StatusCode::OK, "ok"),
        ["pods"] if get => pods(state),
        ["runningpods"] if get => running_pods(state),
        ["configz"] if get => configz(state),
        ["metrics"] if get => stats::metrics(state),
        ["metrics", "resource"] if get => stats::resource_metrics(state).await,
        ["metrics", "cadvisor"] if get => stats::cadvisor_metrics(state).await,
        ["stats", "summary"] if get => stats::summary(state).await,
        ["containerLogs", ns, pod, container] if get => {
            container_logs::serve(state, ns, pod, container, &Query::of(&request)).await
        }
        ["exec", ns, pod, container] => exec(state, request, (ns, pod, None, container)).await,
        ["exec", ns, pod, uid, container] => exec(state, request, (ns, pod, Some(uid), container)).await,
        ["attach", ns, pod, container] => attach(state, request, (ns, pod, None, container)).await,
        ["attach", ns, pod, uid, container] => attach(state, request, (ns, pod, Some(uid), container)).await,
        ["portForward", ns, pod] => port_forward(state, request, ns, pod, None).await,
        ["portForward", ns, pod, uid] => port_forward(state, request, ns, pod, Some(uid)).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// First parts of the paths that are counted by name.
const PATHS: [&str; 10] = [
    "attach",
    "configz",
    "containerLogs",
    "exec",
    "healthz",
    "metrics",
    "pods",
    "portForward",
    "runningpods",
    "stats",
];

/// Counts a request. Clients can make up as many paths and methods as they like; those are counted as one.
fn count(state: &State, method: &Method, first: &str) {
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    let method = methods.into_iter().find(|m| *m == method.as_str()).unwrap_or("other");
    let path = PATHS.into_iter().find(|p| *p == first).unwrap_or("other");
    *state.requests.lock().entry((method, path)).or_default() += 1;
}

fn pods(state: &State) -> Response<Body> {
    let items: Vec<_> = state
        .pods
        .all()
        .into_iter()
        .map(|v| {
            let mut pod = (*v.pod).clone();
            pod.status = Some((*v.status).clone());
            pod
        })
        .collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    respond(StatusCode::OK, "application/json", list.to_string())
}

fn running_pods(state: &State) -> Response<Body> {
    let items: Vec<_> = state
        .pods
        .all()
        .into_iter()
        .filter(|v| v.observed.any_running())
        .map(|v| {
            let m = &v.pod.metadata;
            let running =
                v.observed.containers.iter().filter(|c| matches!(c.state, ContainerState::Running(_)));
            let containers: Vec<_> =
                running.map(|c| json!({"name": c.name, "image": c.image_ref, "resources": {}})).collect();
            json!({
                "metadata": {"name": m.name, "namespace": m.namespace, "uid": m.uid},
                "spec": {"containers": containers},
                "status": {}
            })
        })
        .collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    respond(StatusCode::OK, "application/json", list.to_string())
}

fn configz(state: &State) -> Response<Body> {
    let c = &state.shared.config;
    let config = json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "containerRuntimeEndpoint": format!("unix://{}", c.cri_socket.display()),
        "port": c.listen.first().map(|l| l.port()),
        "clusterDNS": c.cluster_dns,
        "clusterDomain": c.cluster_domain,
        "maxPods": c.max_pods,
        "seccompDefault": c.seccomp_default,
        "containerLogMaxSize": c.log_max_size.to_string(),
        "containerLogMaxFiles": c.log_max_files,
        "resolvConf": c.resolv_conf,
        "podLogsDir": c.log_dir,
        "nodeLeaseDurationSeconds": c.lease_interval.as_secs() * 4
    }});
    respond(StatusCode::OK, "application/json", config.to_string())
}

/// A response that is an error; boxed, since it is large beside what it stands for.
type Refusal = Box<Response<Body>>;

type Target<'a> = (&'a str, &'a str, Option<&'a str>, &'a str);

fn find(state: &State, ns: &str, pod: &str, uid: Option<&str>) -> Result<PodView, Refusal> {
    let view = state.pods.find(ns, pod, uid).map(|r| r.borrow().clone());
    view.ok_or_else(|| Box::new(text(StatusCode::NOT_FOUND, format!("pod \"{pod}_{ns}\" does not exist\n"))))
}

/// The id of a container's running instance.
fn running_id(state: &State, (ns, pod, uid, container): Target<'_>) -> Result<String, Refusal> {
    let view = find(state, ns, pod, uid)?;
    let mut instances = view.observed.containers.iter().filter(|c| c.name == container);
    let running = instances.find(|c| matches!(c.state, ContainerState::Running(_)));
    running.map(|c| c.id.clone()).ok_or_else(|| {
        Box::new(text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")\n")))
    })
}

async fn exec(state: &State, request: Request<Incoming>, target: Target<'_>) -> Response<Body> {
    let query = Query::of(&request);
    let id = match running_id(state, target) {
        Ok(id) => id,
        Err(r) => return *r,
    };
    let cmd = query.all("command");
    let [stdin, stdout, stderr, tty] = query.streams();
    if cmd.is_empty() || !(stdin || stdout || stderr) {
        return text(
            StatusCode::BAD_REQUEST,
            "you must specify a command and at least 1 of stdin, stdout, stderr\n",
        );
    }
    let ask = cri::ExecRequest { container_id: id, cmd, tty, stdin, stdout, stderr: stderr && !tty };
    match state.shared.runtime.runtime().exec(ask).await {
        Ok(answer) => proxy::upgrade(request, &answer.into_inner().url, state.stop.clone()).await,
        Err(e) => failed(&e),
    }
}

async fn attach(state: &State, request: Request<Incoming>, target: Target<'_>) -> Response<Body> {
    let query = Query::of(&request);
    let id = match running_id(state, target) {
        Ok(id) => id,
        Err(r) => return *r,
    };
    let [stdin, stdout, stderr, tty] = query.streams();
    if !(stdin || stdout || stderr) {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr\n");
    }
    let ask = cri::AttachRequest { container_id: id, stdin, tty, stdout, stderr: stderr && !tty };
    match state.shared.runtime.runtime().attach(ask).await {
        Ok(answer) => proxy::upgrade(request, &answer.into_inner().url, state.stop.clone()).await,
        Err(e) => failed(&e),
    }
}

async fn port_forward(
    state: &State,
    request: Request<Incoming>,
    ns: &str,
    pod: &str,
    uid: Option<&str>,
) -> Response<Body> {
    let view = match find(state, ns, pod, uid) {
        Ok(v) => v,
        Err(r) => return *r,
    };
    let Some(sandbox) = view.observed.sandbox().filter(|s| s.ready) else {
        return text(
            StatusCode::BAD_REQUEST,
            format!("unable to forward port because pod is not running. {pod}\n"),
        );
    };
    let ports = Query::of(&request).all("port");
    let port = ports.iter().flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    let ask = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port };
    match state.shared.runtime.runtime().port_forward(ask).await {
        Ok(answer) => proxy::upgrade(request, &answer.into_inner().url, state.stop.clone()).await,
        Err(e) => failed(&e),
    }
}

fn failed(e: &tonic::Status) -> Response<Body> {
    let code = match e.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(code, format!("{}\n", e.message()))
}
