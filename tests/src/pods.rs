//! Pods as tests use them: made from JSON, waited for, and run commands in.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, AttachParams, DeleteParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, watcher::Event};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use xtask::images::{BUSYBOX, NGINX};

/// How long anything may take that is waited for.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What a command in a container gave.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// Runs a command in a pod's first container.
pub async fn exec(client: &Client, pod: &str, command: &[&str]) -> Result<Output> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut process = pods
        .exec(pod, command.iter().copied(), &AttachParams::default().stdin(false).stdout(true).stderr(true))
        .await
        .with_context(|| format!("exec {command:?} in {pod}"))?;
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (mut out, mut err) = (process.stdout().context("no stdout")?, process.stderr().context("no stderr")?);
    let status = process.take_status().context("no status")?;
    let (a, b, status) =
        tokio::join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr), status);
    a?;
    b?;
    let status = status.context("the exec ended without a status")?;
    let code = if status.status.as_deref() == Some("Success") {
        0
    } else {
        status
            .details
            .iter()
            .flat_map(|d| d.causes.iter().flatten())
            .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
            .and_then(|cause| cause.message.as_deref()?.parse().ok())
            .with_context(|| format!("no exit code in {status:?}"))?
    };
    Ok(Output { stdout, stderr, code })
}

/// Watches until an object satisfies `done`; `None` stands for its absence.
pub async fn wait<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    mut done: impl FnMut(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api.clone(), config).default_backoff());
    let mut last = None;
    let found = tokio::time::timeout(TIMEOUT, async {
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitApply(object) | Event::Apply(object)) => last = Some(object),
                Ok(Event::Delete(_)) => last = None,
                Ok(Event::Init) => {
                    last = None;
                    continue;
                }
                Ok(Event::InitDone) => {}
                Err(_) => continue,
            }
            if done(last.as_ref()) {
                return true;
            }
        }
        false
    })
    .await;
    match found {
        Ok(true) => Ok(last),
        _ => bail!("{what}: {name} is not so after {TIMEOUT:?}; it is {last:?}"),
    }
}

/// Whether a pod's condition Ready is True.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Makes a busybox pod that runs a command, and waits until it is Ready.
pub async fn run_busybox(client: &Client, name: &str, more: Value, command: &str) -> Result<Pod> {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", command]}],
    });
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"run": name}},
        "spec": spec,
    });
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let ready = wait(&pods, name, "a Ready pod", |pod| pod.is_some_and(is_ready)).await?;
    ready.context("the pod is gone")
}

/// Makes an nginx Deployment with a Service of the same name, and waits until all replicas are ready.
pub async fn run_nginx(client: &Client, name: &str, replicas: i32) -> Result<Service> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = services
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
            }))?,
        )
        .await?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let deployment = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "nginx", "image": NGINX,
                    "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
                }]},
            },
        },
    });
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    wait(&deployments, name, "all replicas ready", |deployment| {
        deployment.and_then(|d| d.status.as_ref()).and_then(|s| s.ready_replicas) == Some(replicas)
    })
    .await?;
    Ok(service)
}

/// The Service's address.
pub fn cluster_ip(service: &Service) -> Result<String> {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.cluster_ip.clone())
        .with_context(|| format!("{} has no clusterIP", service.name_any()))
}

/// Deletes an object and waits until it is gone.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    api.delete(name, &DeleteParams::default()).await?;
    wait(api, name, "gone", |object| object.is_none()).await.map(|_| ())
}
