//! Pods with addresses of both families: every path that a packet of IPv6 takes, on a sandbox of two nodes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use hawser_tests::cluster::Cluster;
use hawser_tests::dual::{
    Dual, cluster_ips, curl, is_told, pods_reach_each_other, run_client, run_server, service, soon, url,
    wait_for_slices,
};
use hawser_tests::netns;
use hawser_tests::pods::{Output, exec, run_busybox};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use xtask::sandbox::{Families, node_address, node_address6};

/// Port of the kubelets.
const KUBELET: u16 = 10_250;
/// Port of the server outside the cluster.
const OUTSIDE_PORT: u16 = 8099;

#[tokio::test(flavor = "multi_thread")]
async fn both_families_on_every_path() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    let cluster =
        Cluster::start_as("dual", &binary, 2, None, |sandbox| sandbox.with_families(Families::Dual))?;
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
    what_a_pod_sees(client, &clients).await?;
    pods_reach_each_other(client, &servers, &clients).await?;
    services(cluster, client, &clients).await?;
    from_a_nested_namespace(cluster, client).await?;
    a_family_is_added_later(client, &clients).await?;
    names(client, &servers, &clients).await?;
    out_of_the_cluster(cluster, client, &clients).await?;
    an_agent_takes_pods_over(cluster, client, &servers, &clients).await
}

async fn what_a_pod_sees(client: &Client, clients: &[Dual]) -> Result<()> {
    for pod in clients {
        let got = exec(
            client,
            &pod.name,
            &["sh", "-c", "echo $IPS $HOST_IPS; cat /etc/hosts; ip -6 addr show dev eth0; echo mtu $(cat /sys/class/net/eth0/mtu)"],
        )
        .await?;
        let hosts = format!("{},{}", node_address(pod.node), node_address6(pod.node));
        let wanted = [
            format!("{},{} {hosts}", pod.v4, pod.v6),
            format!("{}\t{}", pod.v4, pod.name),
            format!("{}\t{}", pod.v6, pod.name),
            format!("{}/128", pod.v6),
            "mtu 1500".to_owned(),
        ];
        for text in wanted {
            ensure!(got.stdout.contains(&text), "{text:?} is not in {got:?}");
        }
        ensure!(!got.stdout.contains("tentative"), "an address that waits: {got:?}");
    }
    Ok(())
}

async fn services(cluster: &Cluster, client: &Client, clients: &[Dual]) -> Result<()> {
    let web = json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"}, "ports": [{"port": 80}]});
    let web = service(client, "web", web).await?;
    let empty =
        json!({"ipFamilyPolicy": "RequireDualStack", "selector": {"app": "none"}, "ports": [{"port": 80}]});
    let empty = cluster_ips(&service(client, "empty", empty).await?)?;
    wait_for_slices(client, "web", 2).await?;
    let addresses = cluster_ips(&web)?;
    for from in clients {
        let sources = [from.v4.as_str(), from.v6.as_str()];
        for (address, source) in addresses.iter().zip(sources) {
            let url = url(address, 80);
            let what = format!("{} by the hooks on {address}", from.name);
            soon(&what, || curl(client, &from.name, &url), |got| got.stdout.trim() == source).await?;
            let pod = netns::of_pod(cluster, from.node, &from.v6)?;
            // Both backends, that of the other node included.
            for _ in 0..20 {
                is_told(&curl(client, &from.name, &url).await?, &what, &[source])?;
                let got = netns::run(&pod, &["curl", "-sS", "-m", "5", &url])?;
                is_told(&got, &format!("{} at tc on {address}", from.name), &[source])?;
            }
        }
        for address in &empty {
            let url = url(address, 80);
            let pod = netns::of_pod(cluster, from.node, &from.v6)?;
            let by_hook = exec(client, &from.name, &["curl", "-sv", "-m", "5", &url]).await?;
            let at_tc = netns::run(&pod, &["curl", "-sv", "-m", "5", &url])?;
            for got in [by_hook, at_tc] {
                ensure!(got.stderr.contains("refused"), "an empty Service on {address}: {got:?}");
            }
        }
    }
    // From outside the cluster, to either node, with backends on both.
    let port = web.spec.and_then(|spec| spec.ports?.first()?.node_port).context("no node port")?;
    let outside = cluster.sandbox().network().namespace("server");
    let client_of = Families::Dual.of_server();
    for number in 1..=2 {
        let other = 3 - number;
        let pairs: [(IpAddr, IpAddr); 2] = [
            (node_address(number).into(), node_address(number).into()),
            (node_address6(number).into(), node_address6(number).into()),
        ];
        for ((node, translated), asking) in pairs.into_iter().zip(&client_of) {
            let (translated, asking) = (translated.to_string(), asking.to_string());
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..40 {
                let got = netns::run(
                    &outside,
                    &["curl", "-sS", "-m", "5", &url(&node.to_string(), port.try_into()?)],
                )?;
                is_told(&got, &format!("node port of {node}"), &[&translated, &asking])?;
                seen.insert(got.stdout);
            }
            ensure!(seen.len() == 2, "{node}: only backends of one node answered, none of node-{other}");
            // The kubelet is there, too, and refuses whoever does not say who he is.
            let kubelet = format!("https://{}/pods", SocketAddr::new(node, KUBELET));
            let ask = ["curl", "-sSk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &kubelet];
            let got = netns::run(&outside, &ask)?;
            ensure!(got.stdout == "401", "{kubelet}: {got:?}");
        }
    }
    Ok(())
}

/// A network namespace inside a pod that has taken the pod's address: no socket hook of the node sees its processes.
async fn from_a_nested_namespace(cluster: &Cluster, client: &Client) -> Result<()> {
    let pod = run_busybox(client, "nest", json!({"nodeName": "node-1"}), "sleep 100000").await?;
    let address = Dual::of(&pod, 1)?.v6;
    let outer = netns::of_pod(cluster, 1, &address)?;
    let inner = netns::Unshared::new()?;
    let outer_end = format!(
        "link add in0 type veth peer name eth0 netns {}
         addr add fd99::1/128 dev in0 nodad
         link set in0 up
         addr del {address}/128 dev eth0
         route add {address}/128 dev in0",
        inner.path().display()
    );
    netns::ip(&outer, &outer_end)?;
    let got = netns::run(&outer, &["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"])?;
    ensure!(got.code == 0, "{got:?}");
    let inner_end = format!(
        "addr add {address}/128 dev eth0 nodad
         link set eth0 up
         route add fd99::1 dev eth0
         route add default via fd99::1 dev eth0 src {address}"
    );
    netns::ip(inner.path(), &inner_end)?;
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let [_, web] = cluster_ips(&services.get("web").await?)?;
    let [_, empty] = cluster_ips(&services.get("empty").await?)?;
    for _ in 0..20 {
        let got = netns::run(inner.path(), &["curl", "-sS", "-m", "5", &url(&web, 80)])?;
        is_told(&got, "from a nested namespace", &[&address])?;
    }
    let got = netns::run(inner.path(), &["curl", "-sv", "-m", "5", &url(&empty, 80)])?;
    ensure!(got.stderr.contains("refused"), "an empty Service from a nested namespace: {got:?}");
    Ok(())
}

async fn a_family_is_added_later(client: &Client, clients: &[Dual]) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let single = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "selector": {"app": "web"}, "ports": [{"port": 80}]});
    service(client, "later", single).await?;
    let both = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let later = services.patch("later", &PatchParams::default(), &Patch::Merge(both)).await?;
    let [_, v6] = cluster_ips(&later)?;
    wait_for_slices(client, "later", 2).await?;
    for from in clients {
        let (url, source) = (url(&v6, 80), from.v6.as_str());
        soon("a family added later", || curl(client, &from.name, &url), |got| got.stdout.trim() == source)
            .await?;
    }
    Ok(())
}

async fn names(client: &Client, servers: &[Dual], clients: &[Dual]) -> Result<()> {
    let headless = json!({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"}, "ports": [{"port": 80}]});
    service(client, "headless", headless).await?;
    let kube_system: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let [dns4, dns6] = cluster_ips(&kube_system.get("kube-dns").await?)?;
    ensure!([dns4.as_str(), dns6.as_str()] == ["10.96.0.10", "fd00:10:96::a"], "{dns4} {dns6}");
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let [web4, web6] = cluster_ips(&services.get("web").await?)?;
    let v4: Vec<_> = servers.iter().map(|server| server.v4.as_str()).collect();
    let v6: Vec<_> = servers.iter().map(|server| server.v6.as_str()).collect();
    for from in clients {
        let got = exec(client, &from.name, &["cat", "/etc/resolv.conf"]).await?;
        for server in [&dns4, &dns6] {
            ensure!(got.stdout.contains(&format!("nameserver {server}\n")), "{server} is not in {got:?}");
            let cases = [
                ("a", "web", vec![web4.as_str()]),
                ("aaaa", "web", vec![web6.as_str()]),
                ("a", "headless", v4.clone()),
                ("aaaa", "headless", v6.clone()),
            ];
            for (kind, name, wanted) in cases {
                let name = format!("{name}.default.svc.cluster.local");
                let kind = format!("-type={kind}");
                let command = ["nslookup", &kind, &name, server];
                let ask = || exec(client, &from.name, &command);
                let all = |got: &Output| wanted.iter().all(|address| got.stdout.contains(address));
                soon(&format!("{kind} {name} at {server}"), ask, all).await?;
            }
        }
        let got = exec(client, &from.name, &["curl", "-6", "-sS", "-m", "5", "http://web/client"]).await?;
        is_told(&got, "by name, IPv6 only", &[&from.v6])?;
    }
    Ok(())
}

/// A server outside the cluster sees a pod under its node's address.
async fn out_of_the_cluster(cluster: &Cluster, client: &Client, clients: &[Dual]) -> Result<()> {
    let outside = cluster.sandbox().network().namespace("server");
    let addresses = Families::Dual.of_server();
    for address in addresses {
        let listener =
            netns::inside(&outside, move || Ok(TcpListener::bind(SocketAddr::new(address, OUTSIDE_PORT))?))?;
        std::thread::spawn(move || tell_peers(&listener));
        for from in clients {
            let node: IpAddr = if address.is_ipv4() {
                node_address(from.node).into()
            } else {
                node_address6(from.node).into()
            };
            let got = curl(client, &from.name, &url(&address.to_string(), OUTSIDE_PORT)).await?;
            is_told(&got, &format!("{} to {address}", from.name), &[&node.to_string()])?;
        }
    }
    Ok(())
}

/// Answers every request with the address that it comes from, as long as the test runs.
fn tell_peers(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let Ok(peer) = stream.peer_addr() else { continue };
        let body = peer.ip().to_string();
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        // Whoever goes away before has no use for it.
        let _ = stream.read(&mut [0; 1024]).and_then(|_| stream.write_all(answer.as_bytes()));
    }
}

/// An agent that starts anew keeps the pods' addresses of both families.
async fn an_agent_takes_pods_over(
    cluster: &Cluster,
    client: &Client,
    servers: &[Dual],
    clients: &[Dual],
) -> Result<()> {
    cluster.sandbox().daemon("node-1")?.context("node-1 does not run")?.stop()?;
    cluster.sandbox().restart("node-1")?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    // The first pod that is made after the start tells that the agent is there.
    let more = run_busybox(client, "after", json!({"nodeName": "node-1"}), "sleep 100000").await?;
    let more = Dual::of(&more, 1)?;
    for known in servers.iter().chain(clients) {
        ensure!(more.v4 != known.v4 && more.v6 != known.v6, "{} was given twice", known.v6);
        let now = Dual::of(&pods.get(&known.name).await?, known.node)?;
        ensure!(now.v4 == known.v4 && now.v6 == known.v6, "{} has other addresses", known.name);
    }
    pods_reach_each_other(client, servers, &[more]).await
}
