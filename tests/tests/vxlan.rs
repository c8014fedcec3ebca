//! Tunnels between nodes, on a network that knows the nodes' addresses and drops those of pods.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_tests::cluster::Cluster;
use hawser_tests::dual::{
    Dual, cluster_ips, curl, is_told, pods_reach_each_other, run_client, run_server, service, soon, url,
    wait_for_slices,
};
use hawser_tests::netns;
use hawser_tests::pods::exec;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use serde_json::json;
use xtask::sandbox::{Fabric, Families, node_address, node_address6};

/// Of the nodes' interfaces, and what VXLAN over IPv4 leaves of it.
const MTU: usize = 1500;
const INNER_MTU: usize = MTU - 50;
/// Longest headers of IPv4 and IPv6 before a datagram, without options.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];
/// Size of a large transfer.
const LARGE: usize = 32 << 20;
const UDP_PORT: u16 = 5300;
/// How long a datagram's echo is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_over_a_network_that_drops_them() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    let cluster = Cluster::start_as("vxlan", &binary, 2, None, |sandbox| {
        sandbox
            .with_families(Families::Dual)
            .with_fabric(Fabric::Router)
            .with_agent_flags(&["--tunnel=vxlan"])
    })?;
    let client = cluster.client().await?;
    let result = steps(&cluster, &client).await;
    result.with_context(|| cluster.logs_tail())
}

async fn steps(cluster: &Cluster, client: &Client) -> Result<()> {
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for number in 1..=2 {
        servers.push(run_server(client, number).await?);
        clients.push(run_client(client, number).await?);
    }
    the_network_drops_pods(cluster, &servers)?;
    pods_reach_each_other(client, &servers, &clients).await?;
    nodes_reach_pods(cluster, &servers)?;
    let web = json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"}, "ports": [{"port": 80}]});
    let web = service(client, "web", web).await?;
    wait_for_slices(client, "web", 2).await?;
    services(cluster, client, &web, &clients).await?;
    large_transfers(cluster, client, &web, &servers, &clients).await?;
    too_big_datagrams(cluster, client, &clients).await
}

/// Else the test would show nothing.
fn the_network_drops_pods(cluster: &Cluster, servers: &[Dual]) -> Result<()> {
    let outside = cluster.sandbox().network().namespace("server");
    for address in servers.iter().flat_map(|server| [&server.v4, &server.v6]) {
        let got = netns::run(&outside, &["curl", "-sS", "-m", "1", &url(address, 80)])?;
        ensure!(got.code != 0, "{address} is reached without a tunnel: {got:?}");
    }
    Ok(())
}

/// A node's own processes, as the kubelet's probes and host-network pods are.
fn nodes_reach_pods(cluster: &Cluster, servers: &[Dual]) -> Result<()> {
    for number in 1..=2 {
        let host = cluster.sandbox().network().namespace(&format!("node-{number}"));
        for server in servers {
            let pairs: [(&String, IpAddr); 2] =
                [(&server.v4, node_address(number).into()), (&server.v6, node_address6(number).into())];
            for (address, source) in pairs {
                let got = netns::run(&host, &["curl", "-sS", "-m", "5", &url(address, 80)])?;
                is_told(&got, &format!("node-{number} to {}", server.name), &[&source.to_string()])?;
            }
        }
    }
    Ok(())
}

fn node_port(service: &Service) -> Result<u16> {
    let port = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first()?.node_port);
    Ok(port.context("no node port")?.try_into()?)
}

async fn services(cluster: &Cluster, client: &Client, web: &Service, clients: &[Dual]) -> Result<()> {
    for from in clients {
        let pod = netns::of_pod(cluster, from.node, &from.v6)?;
        for (address, source) in cluster_ips(web)?.iter().zip([&from.v4, &from.v6]) {
            let url = url(address, 80);
            let is_source = |got: &hawser_tests::pods::Output| got.stdout.trim() == source;
            soon(&url, || curl(client, &from.name, &url), is_source).await?;
            for _ in 0..20 {
                is_told(&curl(client, &from.name, &url).await?, "by the hooks", &[source])?;
                is_told(&netns::run(&pod, &["curl", "-sS", "-m", "5", &url])?, "at tc", &[source])?;
            }
        }
    }
    let outside = cluster.sandbox().network().namespace("server");
    for node in [node_address(1).into(), IpAddr::from(node_address6(1))] {
        let url = url(&node.to_string(), node_port(web)?);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let got = netns::run(&outside, &["curl", "-sS", "-m", "5", &url])?;
            ensure!(got.code == 0, "{url}: {got:?}");
            seen.insert(got.stdout);
        }
        ensure!(seen.len() == 2, "only the backends of one node answered at {url}: {seen:?}");
    }
    Ok(())
}

/// Whole segments of the size that pods agree on, through pods' addresses, Services and node ports.
async fn large_transfers(
    cluster: &Cluster,
    client: &Client,
    web: &Service,
    servers: &[Dual],
    clients: &[Dual],
) -> Result<()> {
    for pod in clients {
        let got = exec(client, &pod.name, &["cat", "/sys/class/net/eth0/mtu"]).await?;
        ensure!(got.stdout.trim() == INNER_MTU.to_string(), "MTU of a pod: {got:?}");
    }
    for server in servers {
        let big = "/usr/share/nginx/html/client.bin";
        let make = format!("/bin/busybox dd if=/dev/zero of={big} bs=1048576 count={}", LARGE >> 20);
        let got = exec(client, &server.name, &["sh", "-c", &make]).await?;
        ensure!(got.code == 0, "{got:?}");
    }
    let command = |url: &str| {
        let url = url.replace("/client", "/client.bin");
        ["curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{size_download}", &url].map(str::to_owned)
    };
    let [web4, web6] = cluster_ips(web)?;
    let pods = servers.iter().flat_map(|server| [&server.v4, &server.v6]).chain([&web4, &web6]);
    for address in pods {
        let command = command(&url(address, 80));
        let got = exec(client, &clients[0].name, &command.each_ref().map(String::as_str)).await?;
        ensure!(got.stdout == LARGE.to_string(), "{address}: {got:?}");
    }
    let outside = cluster.sandbox().network().namespace("server");
    for node in [node_address(1).into(), IpAddr::from(node_address6(1))] {
        let command = command(&url(&node.to_string(), node_port(web)?));
        // Twice, so that most likely backends of both nodes send.
        for _ in 0..4 {
            let got = netns::run(&outside, &command.each_ref().map(String::as_str))?;
            ensure!(got.stdout == LARGE.to_string(), "node port of {node}: {got:?}");
        }
    }
    Ok(())
}

/// A datagram that fits the link to a node, but not the tunnel to the backend behind it: the sender is told by ICMP, and
/// sends fragments from then on (RFC 1191, RFC 8201).
async fn too_big_datagrams(cluster: &Cluster, client: &Client, clients: &[Dual]) -> Result<()> {
    let backend = &clients[1];
    let pod = netns::of_pod(cluster, backend.node, &backend.v6)?;
    let echo = netns::inside(&pod, || {
        Ok(UdpSocket::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), UDP_PORT))?)
    })?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], from);
        }
    });
    let spec = json!({
        "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"run": backend.name},
        "ports": [{"port": UDP_PORT, "protocol": "UDP"}],
    });
    let port = node_port(&service(client, "echo", spec).await?)?;
    wait_for_slices(client, "echo", 1).await?;
    let outside = cluster.sandbox().network().namespace("server");
    for (node, headers) in [IpAddr::from(node_address(1)), node_address6(1).into()].into_iter().zip(HEADERS) {
        netns::inside(&outside, move || {
            let any = if node.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect((node, port))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            ensure!(echoes(&socket, INNER_MTU - headers), "{node}: what fits the tunnel does not come back");
            // The first one is lost: its sender learns from it.
            let full = MTU - headers;
            let first = socket.send(&vec![1; full])?;
            ensure!(first == full && socket.recv(&mut [0; 1]).is_err(), "{node}: it was not too big");
            ensure!(echoes(&socket, full), "{node}: nobody told the sender");
            Ok(())
        })?;
    }
    Ok(())
}

/// Whether a datagram of this length comes back. The kernel's maps hear of a Service a moment after the API, and refuse
/// until then.
fn echoes(socket: &UdpSocket, length: usize) -> bool {
    let mut buffer = vec![0; length + 1];
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        // An error that ICMP told is taken by one call.
        let sent = socket.send(&vec![7; length]);
        if sent.is_ok() && socket.recv(&mut buffer).is_ok_and(|got| got == length) {
            return true;
        }
    }
    false
}
