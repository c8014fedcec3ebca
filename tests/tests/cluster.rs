//! The main job on a real cluster: containers, Services in eBPF, restarts and failures of nodes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use hawser_tests::cluster::{Cluster, PROGRAM};
use hawser_tests::pods::{cluster_ip, delete, exec, is_ready, run_busybox, run_nginx, wait};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn pods_services_and_restarts() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    // Short enough that a dead node is noticed within the test, longer than the pause between two lease renewals.
    let program = Path::new(env!("CARGO_BIN_EXE_hawser-bench"));
    let cluster = Cluster::start("main", &binary, 2, &["--node-monitor-grace-period=15"], Some(program))?;
    let client = cluster.client().await?;
    let result = steps(&cluster, &client).await;
    result.with_context(|| cluster.logs_tail())
}

async fn steps(cluster: &Cluster, client: &Client) -> Result<()> {
    let service = run_nginx(client, "web", 3).await?;
    let address = cluster_ip(&service)?;
    for number in 1..=2 {
        let on = json!({"nodeName": format!("node-{number}"), "tolerations": [{"operator": "Exists"}]});
        run_busybox(client, &format!("client-{number}"), on, "sleep 100000").await?;
    }
    service_is_reached(client, &address).await?;
    pods_reach_each_other(client).await?;
    empty_service_refuses(client).await?;
    api_server_is_reached(client).await?;
    udp_service(client).await?;
    files_and_environment(client).await?;
    kernel_holds_what_the_api_says(cluster, client, &address).await?;
    deleted_pods_leave_no_failures(client, &address).await?;
    agent_restarts_unnoticed(cluster, client, &address).await?;
    deleted_node_is_replaced(cluster, client, &address).await?;
    dead_node_is_replaced(cluster, client, &address).await
}

async fn fetch(client: &Client, pod: &str, url: &str) -> Result<()> {
    let got = exec(client, pod, &["curl", "-sS", "-m", "5", url]).await?;
    ensure!(got.stdout.contains("Served by nginx"), "{pod} → {url}: {got:?}");
    Ok(())
}

async fn service_is_reached(client: &Client, address: &str) -> Result<()> {
    for number in 1..=2 {
        for _ in 0..5 {
            fetch(client, &format!("client-{number}"), &format!("http://{address}/")).await?;
        }
    }
    Ok(())
}

async fn pods_reach_each_other(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    for pod in pods.list(&ListParams::default().labels("app=web")).await? {
        let ip = pod.status.and_then(|s| s.pod_ip).context("a pod without address")?;
        for number in 1..=2 {
            fetch(client, &format!("client-{number}"), &format!("http://{ip}/")).await?;
        }
    }
    Ok(())
}

async fn empty_service_refuses(client: &Client) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let empty = json!({"metadata": {"name": "empty"}, "spec": {"selector": {"app": "none"}, "ports": [{"port": 80}]}});
    let service = services.create(&PostParams::default(), &serde_json::from_value(empty)?).await?;
    let url = format!("http://{}/", cluster_ip(&service)?);
    let got = exec(client, "client-1", &["curl", "-sv", "-m", "5", &url]).await?;
    ensure!(got.code != 0 && got.stderr.contains("refused"), "an empty Service must refuse: {got:?}");
    delete(&services, "empty").await
}

/// The Service `kubernetes` leads to the API server, which knows the pod by its token.
async fn api_server_is_reached(client: &Client) -> Result<()> {
    let script = "cd /var/run/secrets/kubernetes.io/serviceaccount; curl -sS -m 5 --cacert ca.crt \
                  -H \"Authorization: Bearer $(cat token)\" \
                  https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/default/pods";
    let got = exec(client, "client-1", &["sh", "-c", script]).await?;
    ensure!(
        got.stdout.contains("system:serviceaccount:default:default") && got.stdout.contains("403"),
        "the pod must be known and may list nothing: {got:?}"
    );
    Ok(())
}

async fn udp_service(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let server = json!({
        "metadata": {"name": "udp", "labels": {"run": "udp"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": PROGRAM, "args": ["serve", "--port", "5300"]}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(server)?).await?;
    wait(&pods, "udp", "Ready", |pod| pod.is_some_and(is_ready)).await?;
    let service = json!({
        "metadata": {"name": "udp"},
        "spec": {"selector": {"run": "udp"}, "ports": [{"port": 53, "targetPort": 5300, "protocol": "UDP"}]},
    });
    let service = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    let target = format!("{}:53", cluster_ip(&service)?);
    // From the server's own node and from the other one; a node learns of the Service in its own time.
    for node in ["node-1", "node-2"] {
        let asking = json!({
            "metadata": {"name": "ask"},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0, "restartPolicy": "OnFailure",
                "containers": [{"name": "c", "image": PROGRAM, "args": ["ask", "--target", target]}],
            },
        });
        pods.create(&PostParams::default(), &serde_json::from_value(asking)?).await?;
        wait(&pods, "ask", "answered", |pod| {
            pod.and_then(|p| p.status.as_ref()?.phase.as_deref()) == Some("Succeeded")
        })
        .await?;
        delete(&pods, "ask").await?;
    }
    delete(&pods, "udp").await?;
    delete(&services, "udp").await
}

async fn files_and_environment(client: &Client) -> Result<()> {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let post = PostParams::default();
    maps.create(
        &post,
        &serde_json::from_value(json!({"metadata": {"name": "cfg"}, "data": {"key": "one"}}))?,
    )
    .await?;
    let secret = json!({"metadata": {"name": "sec"}, "stringData": {"word": "hidden"}});
    secrets.create(&post, &serde_json::from_value(secret)?).await?;
    let more = json!({
        "securityContext": {"runAsUser": 65534, "runAsGroup": 65534, "fsGroup": 2000},
        "containers": [{
            "name": "main", "image": xtask::images::BUSYBOX, "command": ["sh", "-c", "sleep 100000"],
            "workingDir": "/tmp",
            "env": [
                {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "key"}}},
                {"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "BOTH", "value": "$(FROM_MAP)-two"},
            ],
            "volumeMounts": [
                {"name": "cfg", "mountPath": "/cfg"}, {"name": "sec", "mountPath": "/sec"},
                {"name": "scratch", "mountPath": "/scratch"}, {"name": "info", "mountPath": "/info"},
            ],
        }],
        "volumes": [
            {"name": "cfg", "configMap": {"name": "cfg"}},
            {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 288}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ],
    });
    run_busybox(client, "files", more, "unused: the containers are given").await?;
    let script = "id -u; pwd; echo $BOTH; cat /cfg/key /sec/word /info/labels; touch /scratch/x && echo wrote; \
                  test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; \
                  touch /proc/sysrq-trigger 2>/dev/null || echo masked";
    let got = exec(client, "files", &["sh", "-c", script]).await?;
    for expected in ["65534", "/tmp", "one-two", "onehidden", "run=\"files\"", "wrote", "token", "masked"] {
        ensure!(got.stdout.contains(expected), "{expected} is missing: {got:?}");
    }
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    delete(&pods, "files").await
}

/// `hawser bpf lb list` on both nodes shows the Service with the addresses of its three pods.
async fn kernel_holds_what_the_api_says(cluster: &Cluster, client: &Client, address: &str) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let web = pods.list(&ListParams::default().labels("app=web")).await?;
    for number in 1..=2 {
        let run_dir = cluster.sandbox().node_run_dir(number);
        let out = std::process::Command::new(hawser_tests::hawser_binary()?)
            .args(["bpf", "lb", "list", "-o", "json", "--socket"])
            .arg(run_dir.join("proxy.sock"))
            .output()?;
        ensure!(out.status.success(), "bpf lb list: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout)?;
        let _: Value = serde_json::from_str(&text)?;
        ensure!(text.contains(address), "the Service is not in the map of node-{number}: {text}");
        for pod in &web {
            let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).context("no address")?;
            ensure!(text.contains(ip), "{ip} is not in the map of node-{number}");
        }
    }
    Ok(())
}

/// What became of the requests of a loop.
#[derive(Debug, PartialEq, Eq)]
struct Counters {
    requests: u32,
    failed: u32,
}

/// Runs `step` while a pod of node-1 fetches the page over the ClusterIP, one new connection after the other.
async fn under_requests<F>(client: &Client, address: &str, step: F) -> Result<Counters>
where
    F: Future<Output = Result<()>>,
{
    let script = format!(
        "n=0; f=0; rm -f /tmp/stop; while [ ! -e /tmp/stop ] && [ $n -lt 20000 ]; do n=$((n+1)); \
         curl -s -m 2 -o /dev/null http://{address}/ || f=$((f+1)); done; echo $n $f"
    );
    let looping = {
        let client = client.clone();
        tokio::spawn(async move { exec(&client, "client-1", &["sh", "-c", &script]).await })
    };
    let outcome = step.await;
    exec(client, "client-1", &["touch", "/tmp/stop"]).await?;
    let got = looping.await??;
    outcome?;
    let counts: Vec<u32> = got.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [requests, failed] = counts[..] else { anyhow::bail!("the loop gave no counts: {got:?}") };
    ensure!(requests > 0, "the loop made no request");
    Ok(Counters { requests, failed })
}

/// The Service's pods are deleted one after the other and replaced, and no request fails.
async fn deleted_pods_leave_no_failures(client: &Client, address: &str) -> Result<()> {
    let counters = under_requests(client, address, async {
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        for pod in pods.list(&ListParams::default().labels("app=web")).await? {
            delete(&pods, &pod.name_any()).await?;
            wait_for_ready_web(client, 3).await?;
        }
        Ok(())
    })
    .await?;
    println!("pods deleted: {counters:?}");
    ensure!(counters.failed == 0, "requests failed while pods were replaced: {counters:?}");
    Ok(())
}

/// A Node is deleted from the API while its agent runs: its pods are replaced elsewhere. A new start of the agent
/// registers the Node again.
async fn deleted_node_is_replaced(cluster: &Cluster, client: &Client, address: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let counters = under_requests(client, address, async {
        nodes.delete("node-2", &DeleteParams::default()).await?;
        all_ready_on_node_1(client).await
    })
    .await?;
    println!("node deleted: {counters:?}");
    ensure!(counters.failed == 0, "requests failed while a node was deleted: {counters:?}");
    cluster.sandbox().daemon("node-2")?.context("node-2 does not run")?.stop()?;
    cluster.sandbox().restart("node-2")?;
    wait(&nodes, "node-2", "Ready", |node| node.is_some_and(node_is_ready)).await?;
    run_busybox(client, "back", json!({"nodeName": "node-2"}), "sleep 100000").await?;
    fetch(client, "back", &format!("http://{address}/")).await
}

/// Waits until node-1 has three ready pods of the Deployment.
async fn all_ready_on_node_1(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let config = watcher::Config::default().labels("app=web").fields("spec.nodeName=node-1");
    let (reader, writer) = reflector::store::<Pod>();
    let mut events = std::pin::pin!(reflector(writer, watcher::watcher(pods, config)).default_backoff());
    let ready = async {
        while reader.state().iter().filter(|pod| is_ready(pod)).count() < 3 {
            if events.next().await.is_none() {
                return false;
            }
        }
        true
    };
    let ready = tokio::time::timeout(hawser_tests::pods::TIMEOUT, ready).await.unwrap_or(false);
    ensure!(ready, "the node's pods were not replaced on node-1");
    Ok(())
}

async fn wait_for_ready_web(client: &Client, replicas: i32) -> Result<()> {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::default_namespaced(client.clone());
    wait(&deployments, "web", "all replicas ready", |deployment| {
        let status = deployment.and_then(|d| d.status.as_ref());
        status.is_some_and(|s| {
            s.ready_replicas == Some(replicas)
                && s.replicas == Some(replicas)
                && s.terminating_replicas.unwrap_or(0) == 0
        })
    })
    .await
    .map(|_| ())
}

/// SIGKILL of an agent and a new start: no container restarts, and an open connection goes on.
async fn agent_restarts_unnoticed(cluster: &Cluster, client: &Client, address: &str) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let before = containers(&pods).await?;
    // A download that is slow enough to span the restart.
    let script = format!(
        "(printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'; sleep 8; \
         printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'; sleep 1) | nc {address} 80 | grep -c 'Served by nginx'"
    );
    let talking = {
        let client = client.clone();
        tokio::spawn(async move { exec(&client, "client-2", &["sh", "-c", &script]).await })
    };
    let agent = cluster.sandbox().daemon("node-1")?.context("node-1 does not run")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.pid), nix::sys::signal::Signal::SIGKILL)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.sandbox().restart("node-1")?;
    let nodes: Api<Node> = Api::all(client.clone());
    let killed = agent.pid;
    wait(&nodes, "node-1", "Ready", |node| node.is_some_and(node_is_ready)).await?;
    let got = talking.await??;
    ensure!(got.stdout.trim() == "2", "the connection did not outlive the agent {killed}: {got:?}");
    let after = containers(&pods).await?;
    ensure!(before == after, "containers changed over the agent's restart:\n{before:?}\n{after:?}");
    service_is_reached(client, address).await
}

/// Container ids and restart counts of all pods.
async fn containers(pods: &Api<Pod>) -> Result<Vec<(String, String, i32)>> {
    let mut all = Vec::new();
    for pod in pods.list(&ListParams::default()).await? {
        let name = pod.name_any();
        for status in pod.status.into_iter().flat_map(|s| s.container_statuses.unwrap_or_default()) {
            all.push((name.clone(), status.container_id.unwrap_or_default(), status.restart_count));
        }
    }
    all.sort();
    Ok(all)
}

fn node_is_ready(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The agent of a node dies for good: its pods are evicted and replaced elsewhere.
async fn dead_node_is_replaced(cluster: &Cluster, client: &Client, address: &str) -> Result<()> {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::default_namespaced(client.clone());
    let tolerations: Vec<Value> = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"]
        .iter()
        .map(|key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}))
        .collect();
    let patch = json!({"spec": {"template": {"spec": {"tolerations": tolerations}}}});
    deployments.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await?;
    wait_for_ready_web(client, 3).await?;
    let agent = cluster.sandbox().daemon("node-2")?.context("node-2 does not run")?;
    let nodes: Api<Node> = Api::all(client.clone());
    let counters = under_requests(client, address, async {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.pid), nix::sys::signal::Signal::SIGKILL)?;
        wait(&nodes, "node-2", "not Ready and tainted", |node| {
            node.is_some_and(|node| {
                !node_is_ready(node)
                    && node
                        .spec
                        .iter()
                        .flat_map(|s| s.taints.iter().flatten())
                        .any(|t| t.effect == "NoExecute")
            })
        })
        .await?;
        all_ready_on_node_1(client).await
    })
    .await?;
    println!("node lost its agent: {counters:?}");
    // The dead agent's containers and maps go on, and the other node stops sending to them once they are evicted.
    ensure!(counters.failed == 0, "requests failed while a node's pods were replaced: {counters:?}");
    Ok(())
}
