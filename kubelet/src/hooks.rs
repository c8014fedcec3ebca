//! Lifecycle hooks: postStart and preStop.

use crate::cri::Runtime;
use crate::http_client;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;

/// Longest run of a postStart hook whose container does not end by itself.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Runs a hook inside or against a container. The error is text for an event.
pub(crate) async fn run(
    runtime: &Runtime,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: Option<&str>,
    limit: Option<Duration>,
) -> Result<(), String> {
    let work = run_unbounded(runtime, hook, container, id, pod_ip, limit);
    match tokio::time::timeout(limit.unwrap_or(NO_LIMIT), work).await {
        Ok(done) => done,
        Err(_) => Err("the hook did not finish in time".into()),
    }
}

async fn run_unbounded(
    runtime: &Runtime,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: Option<&str>,
    limit: Option<Duration>,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let cmd = exec.command.clone().unwrap_or_default();
        let timeout = limit.map_or(0, |l| i64::try_from(l.as_secs().max(1)).unwrap_or(0));
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: cmd.clone(), timeout };
        let answer = runtime.runtime().exec_sync(request).await.map_err(|e| e.message().to_owned())?;
        let answer = answer.into_inner();
        if answer.exit_code != 0 {
            let output = String::from_utf8_lossy(&answer.stderr).into_owned();
            return Err(format!("command '{}' exited with {}: {output}", cmd.join(" "), answer.exit_code));
        }
        return Ok(());
    }
    if let Some(get) = &hook.http_get {
        let host = get.host.as_deref().filter(|h| !h.is_empty()).or(pod_ip).unwrap_or("127.0.0.1");
        let port = port(&get.port, container)?;
        let headers = http_client::headers(get.http_headers.as_ref(), "kube-lifecycle/1.36");
        let headers = headers.map_err(|e| e.to_string())?;
        let https = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        let path = get.path.as_deref().unwrap_or("/");
        let answer = http_client::get(https, host, port, path, headers).await.map_err(|e| e.to_string())?;
        if answer.status.is_client_error() || answer.status.is_server_error() {
            return Err(format!("HTTP hook failed with statuscode: {}", answer.status.as_u16()));
        }
        return Ok(());
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
    }
    // tcpSocket is accepted and does nothing, as Kubernetes documents it.
    Ok(())
}

/// A port given by number, or by the name of one of the container's ports.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match name.parse() {
            Ok(n) => n,
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_ref() == Some(name))
                .map(|p| p.container_port)
                .ok_or_else(|| format!("couldn't find port: {name:?} in container {}", container.name))?,
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}
