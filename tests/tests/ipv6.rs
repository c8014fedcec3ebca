//! A cluster of IPv6 alone: nodes, pods and Services have no address of IPv4. Over a link, and over tunnels between nodes
//! on a network that drops pods' addresses.

use anyhow::{Context, Result, ensure};
use hawser_tests::cluster::Cluster;
use hawser_tests::dual::{curl, is_told, soon, url};
use hawser_tests::netns;
use hawser_tests::pods::{cluster_ip, exec, is_ready, run_busybox, wait};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use xtask::images::NGINX;
use xtask::sandbox::{Fabric, Families, node_address6, node_name};

const NODE_PORT: u16 = 30_066;
const KUBELET: u16 = 10_250;

#[tokio::test(flavor = "multi_thread")]
async fn over_a_link() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    let cluster = Cluster::start_as("ipv6", &binary, 2, None, |sandbox| sandbox.with_families(Families::V6))?;
    let client = cluster.client().await?;
    steps(&cluster, &client).await.map(drop).with_context(|| cluster.logs_tail())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tunnels() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    let cluster = Cluster::start_as("ipv6-vxlan", &binary, 2, None, |sandbox| {
        sandbox.with_families(Families::V6).with_fabric(Fabric::Router).with_agent_flags(&["--tunnel=vxlan"])
    })?;
    let client = cluster.client().await?;
    let result = async {
        let pods = steps(&cluster, &client).await?;
        the_network_drops(&cluster, &pods)
    };
    result.await.with_context(|| cluster.logs_tail())
}

/// The addresses of a pod and its client on each node.
async fn steps(cluster: &Cluster, client: &Client) -> Result<Vec<String>> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "nodePort": NODE_PORT}]},
    });
    let web = services.create(&PostParams::default(), &serde_json::from_value(web)?).await?;
    let address = cluster_ip(&web)?;
    ensure!(address.starts_with("fd00:10:96::"), "the Service's address is {address}");
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for number in 1..=2 {
        servers.push(run_server(client, number).await?);
        let on = json!({"nodeName": node_name(number)});
        let pod = run_busybox(client, &format!("client-{number}"), on, "sleep 100000").await?;
        clients.push(only_address(&pod)?);
    }
    for (number, own) in (1u8..).zip(clients.iter().map(String::as_str)) {
        let from = format!("client-{number}");
        for server in &servers {
            is_told(&curl(client, &from, &url(server, 80)).await?, &format!("{from} to {server}"), &[own])?;
        }
        // What a Service sends to the pod's own node, or to the other one, is told the pod's address.
        for to in [url(&address, 80), "http://web/client".to_owned()] {
            let ask = || curl(client, &from, &to);
            soon(&format!("{from} to {to}"), ask, |got| got.stdout.trim() == own).await?;
        }
        let names = ["nslookup", "-type=aaaa", "web.default.svc.cluster.local"];
        let got = exec(client, &from, &names).await?;
        ensure!(got.stdout.contains(&address), "{names:?}: {got:?}");
        // The API server by its Service: it refuses whoever does not say who he is.
        let api = [
            "curl",
            "-sSk",
            "-m",
            "5",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "https://kubernetes.default.svc/api",
        ];
        let got = exec(client, &from, &api).await?;
        ensure!(["401", "403"].contains(&got.stdout.trim()), "{api:?}: {got:?}");
    }
    from_outside(cluster)?;
    nodes_have_one_address(client).await?;
    Ok(servers)
}

async fn run_server(client: &Client, number: u8) -> Result<String> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let name = format!("web-{number}");
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {
            "nodeName": node_name(number), "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "nginx", "image": NGINX,
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let ready = wait(&pods, &name, "a Ready pod", |pod| pod.is_some_and(is_ready)).await?;
    only_address(&ready.context("gone")?)
}

fn only_address(pod: &Pod) -> Result<String> {
    let status = pod.status.as_ref().context("no status")?;
    let all: Vec<_> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    let [address] = all.as_slice() else { anyhow::bail!("podIPs: {all:?}") };
    ensure!(status.pod_ip.as_ref() == Some(address) && address.starts_with("fd00:10:244:"), "{all:?}");
    Ok(address.clone())
}

/// Node ports, and the kubelets, from a host that is no node.
fn from_outside(cluster: &Cluster) -> Result<()> {
    let outside = cluster.sandbox().network().namespace("server");
    for number in 1..=2 {
        let node = node_address6(number);
        let port = url(&node.to_string(), NODE_PORT);
        let got = netns::run(&outside, &["curl", "-sS", "-m", "5", &port])?;
        ensure!(got.code == 0 && !got.stdout.is_empty(), "{port}: {got:?}");
        let kubelet = format!("https://[{node}]:{KUBELET}/pods");
        let ask = ["curl", "-sSk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &kubelet];
        let got = netns::run(&outside, &ask)?;
        ensure!(got.stdout == "401", "{kubelet}: {got:?}");
    }
    Ok(())
}

async fn nodes_have_one_address(client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    for number in 1..=2 {
        let node = nodes.get(&node_name(number)).await?;
        let addresses = node.status.and_then(|status| status.addresses).context("no addresses")?;
        let internal: Vec<_> =
            addresses.iter().filter(|a| a.type_ == "InternalIP").map(|a| a.address.clone()).collect();
        ensure!(internal == [node_address6(number).to_string()], "{internal:?}");
    }
    Ok(())
}

/// Else tunnels would show nothing.
fn the_network_drops(cluster: &Cluster, pods: &[String]) -> Result<()> {
    let outside = cluster.sandbox().network().namespace("server");
    for pod in pods {
        let got = netns::run(&outside, &["curl", "-sS", "-m", "1", &url(pod, 80)])?;
        ensure!(got.code != 0, "{pod} is reached without a tunnel: {got:?}");
    }
    Ok(())
}
