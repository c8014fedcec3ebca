//! Pods with addresses of both families, and what they tell each other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use xtask::images::NGINX;
use xtask::sandbox::{node_address, node_address6};

use crate::pods::{Output, exec, is_ready, run_busybox, wait};

/// A pod with its addresses, IPv4 first.
pub struct Dual {
    /// Its name.
    pub name: String,
    /// Number of its node.
    pub node: u8,
    /// Its first address.
    pub v4: String,
    /// Its second one.
    pub v6: String,
}

impl Dual {
    /// From its status, which must have addresses of both families, and the node's.
    pub fn of(pod: &Pod, node: u8) -> Result<Self> {
        let status = pod.status.as_ref().context("no status")?;
        let ips: Vec<_> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        let [v4, v6] = ips.as_slice() else { anyhow::bail!("podIPs: {ips:?}") };
        ensure!(status.pod_ip.as_ref() == Some(v4) && !v4.contains(':') && v6.contains(':'), "{ips:?}");
        let hosts: Vec<_> = status.host_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        ensure!(
            hosts == [node_address(node).to_string(), node_address6(node).to_string()],
            "hostIPs: {hosts:?}"
        );
        let name = pod.metadata.name.clone().context("no name")?;
        Ok(Self { name, node, v4: v4.clone(), v6: v6.clone() })
    }
}

/// Makes an nginx pod `web-N` on node N, of the Service `web` if there is one, and waits until it is Ready.
pub async fn run_server(client: &Client, number: u8) -> Result<Dual> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let name = format!("web-{number}");
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {
            "nodeName": format!("node-{number}"), "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "nginx", "image": NGINX,
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let ready = wait(&pods, &name, "a Ready pod", |pod| pod.is_some_and(is_ready)).await?;
    Dual::of(&ready.context("gone")?, number)
}

/// The page that tells who asks.
pub fn url(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("http://[{address}]:{port}/client"),
        false => format!("http://{address}:{port}/client"),
    }
}

/// The page must name one of these as who asked.
pub fn is_told(got: &Output, what: &str, sources: &[&str]) -> Result<()> {
    ensure!(sources.contains(&got.stdout.trim()), "{what}: not from one of {sources:?}: {got:?}");
    Ok(())
}

/// Fetches a page in a pod.
pub async fn curl(client: &Client, pod: &str, url: &str) -> Result<Output> {
    exec(client, pod, &["curl", "-sS", "-m", "5", url]).await
}

/// Every client reaches every server on both addresses, and is seen under its own.
pub async fn pods_reach_each_other(client: &Client, servers: &[Dual], clients: &[Dual]) -> Result<()> {
    for from in clients {
        for to in servers {
            for (address, source) in [(&to.v4, &from.v4), (&to.v6, &from.v6)] {
                let got = curl(client, &from.name, &url(address, 80)).await?;
                is_told(&got, &format!("{} to {} on {address}", from.name, to.name), &[source])?;
            }
            let got = exec(client, &from.name, &["ping6", "-c", "1", "-W", "2", &to.v6]).await?;
            ensure!(got.code == 0, "echo: {got:?}");
        }
        let missing = format!("http://[{}]:1/", servers[0].v6);
        let got = exec(client, &from.name, &["curl", "-sv", "-m", "5", &missing]).await?;
        ensure!(got.stderr.contains("refused"), "a closed port: {got:?}");
    }
    Ok(())
}

/// Makes a Service.
pub async fn service(client: &Client, name: &str, spec: Value) -> Result<Service> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let object = json!({"metadata": {"name": name}, "spec": spec});
    Ok(services.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// The Service's addresses, IPv4 first.
pub fn cluster_ips(service: &Service) -> Result<[String; 2]> {
    let ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
    <[String; 2]>::try_from(ips).map_err(|ips| anyhow::anyhow!("clusterIPs: {ips:?}"))
}

/// Waits until a Service has a slice of IPv6 with ready endpoints.
pub async fn wait_for_slices(client: &Client, service: &str, endpoints: usize) -> Result<()> {
    use futures::StreamExt;
    use kube::runtime::{WatchStreamExt, watcher};
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut events = std::pin::pin!(watcher(slices, config).default_backoff().applied_objects());
    let ready = |slice: &EndpointSlice| {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true)).count()
    };
    let found = async {
        while let Some(slice) = events.next().await {
            if slice.is_ok_and(|slice| slice.address_type == "IPv6" && ready(&slice) == endpoints) {
                return true;
            }
        }
        false
    };
    let found = tokio::time::timeout(crate::pods::TIMEOUT, found).await;
    ensure!(found == Ok(true), "{service} has no slice of IPv6 with {endpoints} ready endpoints");
    Ok(())
}

/// Asks again until an answer is as wanted: the kernel's maps hear of a change a moment after the API.
pub async fn soon<F: Future<Output = Result<Output>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
    wanted: impl Fn(&Output) -> bool,
) -> Result<Output> {
    let mut last = None;
    for _ in 0..50 {
        let got = ask().await?;
        if wanted(&got) {
            return Ok(got);
        }
        last = Some(got);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{what}: {last:?}")
}

/// Makes a busybox pod `client-N` on node N that knows its addresses as `$IPS` and `$HOST_IPS`.
pub async fn run_client(client: &Client, number: u8) -> Result<Dual> {
    let more = json!({"nodeName": format!("node-{number}"), "containers": [{
        "name": "main", "image": xtask::images::BUSYBOX, "command": ["sh", "-c", "sleep 100000"],
        "env": [{"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                {"name": "HOST_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIPs"}}}],
    }]});
    Dual::of(&run_busybox(client, &format!("client-{number}"), more, "").await?, number)
}
