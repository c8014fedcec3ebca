//! Cluster DNS on a real cluster: pods find Services by name, also while agents and the API server are away.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_tests::cluster::Cluster;
use hawser_tests::pods::{cluster_ip, exec, run_busybox, run_nginx, wait};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Questions that are asked at least while something is away.
const MEANWHILE: f64 = 50.0;

#[tokio::test(flavor = "multi_thread")]
async fn pods_find_services_by_name() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    let cluster = Cluster::start("dns", &binary, 2, &[], None)?;
    let client = cluster.client().await?;
    let result = steps(&cluster, &client).await;
    result.with_context(|| cluster.logs_tail())
}

async fn steps(cluster: &Cluster, client: &Client) -> Result<()> {
    let web = cluster_ip(&run_nginx(client, "web", 1).await?)?;
    for number in 1..=2 {
        let on = json!({"nodeName": format!("node-{number}")});
        run_busybox(client, &format!("client-{number}"), on, "sleep 100000").await?;
    }
    every_node_has_its_server(client).await?;
    services_are_found(client, &web).await?;
    pods_of_a_set_are_found(client).await?;
    policies_and_names_of_pods(client).await?;
    servers_outlive_agents_and_the_api(cluster, client).await
}

async fn every_node_has_its_server(client: &Client) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let service = wait(&services, "kube-dns", "the Service", |service| service.is_some()).await?;
    ensure!(cluster_ip(&service.context("gone")?)? == "10.96.0.10");
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
    for number in 1..=2 {
        wait(&slices, &format!("kube-dns-ipv4-node-{number}"), "a node's slice", |s| s.is_some()).await?;
    }
    Ok(())
}

/// What a pod on each node is told about a name.
async fn look_up(client: &Client, kind: &str, name: &str) -> Result<Vec<String>> {
    let mut answers = Vec::new();
    for pod in ["client-1", "client-2"] {
        let got = exec(client, pod, &["nslookup", &format!("-type={kind}"), name]).await?;
        answers.push(format!("{}{}", got.stdout, got.stderr));
    }
    Ok(answers)
}

async fn find(client: &Client, kind: &str, name: &str, wanted: &str) -> Result<()> {
    // A record is there as soon as the node's server has heard of it, which the API does not tell.
    let mut last = Vec::new();
    for _ in 0..50 {
        last = look_up(client, kind, name).await?;
        if last.iter().all(|answer| answer.contains(wanted)) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{kind} {name}: {wanted:?} is not in {last:?}")
}

async fn create<K>(client: &Client, object: Value) -> Result<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::Serialize
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::default_namespaced(client.clone());
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

async fn services_are_found(client: &Client, web: &str) -> Result<()> {
    find(client, "a", "web.default.svc.cluster.local", web).await?;
    find(client, "a", "kubernetes.default.svc.cluster.local", "10.96.0.1").await?;
    let back = web.split('.').rev().collect::<Vec<_>>().join(".");
    find(client, "ptr", &format!("{back}.in-addr.arpa"), "web.default.svc.cluster.local").await?;
    let https = "_https._tcp.kubernetes.default.svc.cluster.local";
    find(client, "srv", https, "443 kubernetes.default.svc.cluster.local").await?;
    let external = json!({"metadata": {"name": "out"}, "spec": {"type": "ExternalName", "externalName": "www.example.com"}});
    create::<Service>(client, external).await?;
    find(client, "cname", "out.default.svc.cluster.local", "www.example.com").await?;
    for answer in look_up(client, "a", "gone.default.svc.cluster.local").await? {
        ensure!(answer.contains("NXDOMAIN"), "{answer}");
    }
    // By the search path, from the library that programs use.
    for pod in ["client-1", "client-2"] {
        for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
            let got = exec(client, pod, &["curl", "-sS", "-m", "10", &format!("http://{name}/")]).await?;
            ensure!(got.stdout.contains("Served by nginx"), "{pod} → {name}: {got:?}");
        }
    }
    Ok(())
}

async fn pods_of_a_set_are_found(client: &Client) -> Result<()> {
    let headless = json!({
        "metadata": {"name": "set"},
        "spec": {"clusterIP": "None", "selector": {"run": "member"}, "ports": [{"name": "http", "port": 80}]},
    });
    create::<Service>(client, headless).await?;
    let names = json!({"hostname": "first", "subdomain": "set", "nodeName": "node-1"});
    let pod = run_busybox(client, "member", names, "sleep 100000").await?;
    let ip = pod.status.and_then(|status| status.pod_ip).context("a pod without address")?;
    find(client, "a", "set.default.svc.cluster.local", &ip).await?;
    find(client, "a", "first.set.default.svc.cluster.local", &ip).await?;
    let srv = "_http._tcp.set.default.svc.cluster.local";
    find(client, "srv", srv, "80 first.set.default.svc.cluster.local").await?;
    let back = ip.split('.').rev().collect::<Vec<_>>().join(".");
    find(client, "ptr", &format!("{back}.in-addr.arpa"), "first.set.default.svc.cluster.local").await?;
    let dashed = format!("{}.default.pod.cluster.local", ip.replace('.', "-"));
    find(client, "a", &dashed, &ip).await?;
    let got = exec(client, "member", &["cat", "/etc/hosts"]).await?;
    ensure!(got.stdout.contains(&format!("{ip}\tfirst.set.default.svc.cluster.local\tfirst")), "{got:?}");
    Ok(())
}

async fn policies_and_names_of_pods(client: &Client) -> Result<()> {
    let got = exec(client, "client-1", &["cat", "/etc/resolv.conf"]).await?;
    for line in ["nameserver 10.96.0.10", "options ndots:5"] {
        ensure!(got.stdout.lines().any(|l| l == line), "{line} is not in {got:?}");
    }
    ensure!(
        got.stdout.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local"),
        "{got:?}"
    );
    let cases = [
        (
            "own",
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.96.0.10"], "searches": ["svc.cluster.local"],
                "options": [{"name": "ndots", "value": "2"}]}}),
            "search svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:2\n",
        ),
        (
            "hostnet",
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            "nameserver 10.96.0.10",
        ),
    ];
    for (name, spec, wanted) in cases {
        let mut spec = spec;
        spec["nodeName"] = json!("node-2");
        run_busybox(client, name, spec, "sleep 100000").await?;
        let got = exec(client, name, &["cat", "/etc/resolv.conf"]).await?;
        ensure!(got.stdout.contains(wanted), "{name}: {got:?}");
        // `web.default` has one dot: with ndots:2 it is searched for.
        let got = exec(client, name, &["curl", "-sS", "-m", "10", "http://web.default/"]).await?;
        ensure!(got.stdout.contains("Served by nginx"), "{name}: {got:?}");
    }
    Ok(())
}

/// The DNS server of a node, by what its control socket says.
async fn server_of(cluster: &Cluster, number: u8) -> Result<u32> {
    let socket = cluster.sandbox().node_run_dir(number).join("dns.sock");
    let found = hawser_dns::control::Incumbent::find(&socket).await?;
    Ok(found.context("no DNS server")?.hello.pid)
}

/// Questions that the DNS server of a node was asked.
fn asked(cluster: &Cluster, number: u8) -> Result<f64> {
    let out = Command::new(hawser_tests::hawser_binary()?)
        .args(["dns", "--metrics", "--run-dir"])
        .arg(cluster.sandbox().node_run_dir(number))
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let counts = text.lines().filter(|line| line.starts_with("hawser_dns_requests_total"));
    let counts: Vec<f64> = counts.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    ensure!(!counts.is_empty(), "no count of requests in {out:?}");
    Ok(counts.iter().sum())
}

/// Waits until a node's DNS server has been asked a number of times.
async fn more_are_answered(cluster: &Cluster, number: u8) -> Result<()> {
    let wanted = asked(cluster, number)? + MEANWHILE;
    for _ in 0..300 {
        if asked(cluster, number)? >= wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("nobody asks the DNS server of node-{number}")
}

async fn servers_outlive_agents_and_the_api(cluster: &Cluster, client: &Client) -> Result<()> {
    // Asks all the time, and keeps count.
    let script = "while :; do if nslookup -type=a web.default.svc.cluster.local >/dev/null 2>&1; \
                  then echo found; else echo lost; fi >>/tmp/asked; done";
    let on = json!({"nodeName": "node-1"});
    run_busybox(client, "asking", on, script).await?;
    let counted = |word: &'static str| async move {
        let command = format!("grep -c {word} /tmp/asked");
        // A kubelet that starts anew answers in its own time; the node stays ready meanwhile.
        for attempt in 0.. {
            match exec(client, "asking", &["sh", "-c", &command]).await {
                Ok(got) => return Ok::<usize, anyhow::Error>(got.stdout.trim().parse()?),
                Err(error) if attempt == 300 => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        anyhow::bail!("not reached")
    };
    let before = server_of(cluster, 1).await?;
    let agent = cluster.sandbox().daemon("node-1")?.context("node-1 does not run")?;
    kill(Pid::from_raw(agent.pid), Signal::SIGKILL)?;
    more_are_answered(cluster, 1).await?;
    ensure!(server_of(cluster, 1).await? == before, "the server did not outlive the agent");
    cluster.sandbox().restart("node-1")?;
    let nodes: Api<Node> = Api::all(client.clone());
    wait(&nodes, "node-1", "Ready", |node| node.is_some_and(node_is_ready)).await?;
    let with_agent = counted("found").await?;
    ensure!(server_of(cluster, 1).await? == before, "the server was not taken over");

    let api = cluster.sandbox().daemon("server")?.context("the server does not run")?;
    kill(Pid::from_raw(api.pid), Signal::SIGKILL)?;
    more_are_answered(cluster, 1).await?;
    cluster.sandbox().restart("server")?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    for attempt in 0.. {
        match pods.list(&ListParams::default()).await {
            Ok(_) => break,
            Err(error) if attempt == 300 => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    let (found, lost) = (counted("found").await?, counted("lost").await?);
    println!("names found over both restarts: {found}, lost: {lost}");
    ensure!(found > with_agent && lost == 0, "{found} found ({with_agent} before), {lost} lost");

    // The server itself ends: another one takes its place.
    kill(Pid::from_raw(i32::try_from(before)?), Signal::SIGKILL)?;
    for attempt in 0.. {
        match server_of(cluster, 1).await {
            Ok(pid) if pid != before => break,
            result if attempt == 300 => return result.map(drop),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    find(client, "a", "kubernetes.default.svc.cluster.local", "10.96.0.1").await
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
