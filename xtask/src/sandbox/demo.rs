//! The demo: three nginx pods behind a Service, and a client that fetches the page through the ClusterIP.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::api::Api;
use crate::images::{BUSYBOX, NGINX};

const TIMEOUT: Duration = Duration::from_secs(60);
const REPLICAS: u64 = 3;
/// A piece of the page that only the demo's nginx serves.
const PAGE_MARK: &str = "Served by nginx in a Hawser pod";

/// Applies the demo, waits until the page has reached the client, and answers what to tell the user.
pub fn run(api: &Api, progress: &dyn Fn(&str)) -> Result<String> {
    progress("applying the demo");
    api.create("/api/v1/namespaces/default/services", &service())?;
    api.create("/apis/apps/v1/namespaces/default/deployments", &deployment())?;
    let address = api.get("/api/v1/namespaces/default/services/web")?["spec"]["clusterIP"]
        .as_str()
        .context("the Service web has no clusterIP")?
        .to_owned();
    api.create("/api/v1/namespaces/default/pods", &client(&address))?;
    wait_for(
        api,
        "/apis/apps/v1/namespaces/default/deployments?fieldSelector=metadata.name%3Dweb",
        |object| {
            let ready = object["status"]["readyReplicas"].as_u64().unwrap_or(0);
            progress(&format!("{ready} of {REPLICAS} nginx pods are ready"));
            ready == REPLICAS
        },
    )?;
    progress("waiting for the client pod");
    wait_for(api, "/api/v1/namespaces/default/pods?fieldSelector=metadata.name%3Dclient", |object| {
        object["status"]["phase"] == "Running"
    })?;
    progress("fetching the page through the ClusterIP");
    let page = follow_page(api)?;
    Ok(format!("The client pod fetched http://{address}/ through the Service web:\n  {page}"))
}

/// The line of the page, from the client's log.
fn follow_page(api: &Api) -> Result<String> {
    let path = "/api/v1/namespaces/default/pods/client/log?follow=true&tailLines=20";
    for line in api.lines(path, TIMEOUT)? {
        let line = line.context("reading the client's log")?;
        if line.contains(PAGE_MARK) {
            return Ok(line);
        }
    }
    bail!("the client pod did not get the page within {TIMEOUT:?}: see `kubectl logs client`");
}

/// Watches until an object satisfies `done`.
fn wait_for(api: &Api, path: &str, mut done: impl FnMut(&Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let watch = format!("{path}&watch=true&timeoutSeconds=10");
        for line in api.lines(&watch, Duration::from_secs(12))? {
            let Ok(line) = line else { break };
            let event: Value = serde_json::from_str(&line)?;
            ensure!(event["type"] != "ERROR", "{path}: {}", event["object"]["message"]);
            if done(&event["object"]) {
                return Ok(());
            }
        }
    }
    bail!("{path}: not as expected after {TIMEOUT:?}");
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 80}]},
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "nginx",
                    "image": NGINX,
                    "ports": [{"containerPort": 80}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
                }]},
            },
        },
    })
}

fn client(address: &str) -> Value {
    let fetch = format!("while :; do curl -s -m 2 http://{address}/ && echo; sleep 1; done");
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client", "labels": {"app": "client"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "client", "image": BUSYBOX, "command": ["sh", "-c", fetch]}],
        },
    })
}
