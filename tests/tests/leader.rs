//! Two controller managers over one API server: the leader's SIGKILL hands over within the lease, and what was begun is
//! done once.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_tests::pods::wait;
use hawser_tests::server::Server;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

/// The lease that a controller manager takes by default.
const LEASE: Duration = Duration::from_secs(15);
/// Between two tries of the one that waits, and what the machine may need besides.
const RETRY: Duration = Duration::from_secs(2 + 10);

/// A `hawser controller-manager`. It is ended when dropped.
struct Manager(Child);

impl Manager {
    fn start(binary: &Path, kubeconfig: &Path, log: &Path) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let child = Command::new(binary)
            .args(["controller-manager", "--kubeconfig"])
            .arg(kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }

    /// Whether a holder's identity, `HOST_PID`, is this process'.
    fn is(&self, identity: &str) -> bool {
        identity.rsplit('_').next() == Some(&self.0.id().to_string())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn holder(lease: Option<&Lease>) -> String {
    lease.and_then(|l| l.spec.as_ref()?.holder_identity.clone()).unwrap_or_default()
}

async fn pods_of(client: &Client, app: &str) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    Ok(pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items)
}

fn template(app: &str, restart: &str) -> serde_json::Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "none"}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leaders_death_hands_over_within_the_lease_and_nothing_is_done_twice() -> Result<()> {
    let binary = hawser_tests::hawser_binary()?;
    let directory = tempfile::tempdir()?;
    let server = Server::start(&binary, "apiserver", directory.path(), &[]).await?;
    let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
    let log = |name: &str| directory.path().join(name);
    let one = Manager::start(&binary, &server.kubeconfig(), &log("one.log"))?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let name = "kube-controller-manager";
    wait(&leases, name, "held", |lease| !holder(lease).is_empty()).await?;
    let two = Manager::start(&binary, &server.kubeconfig(), &log("two.log"))?;

    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let jobs: Api<Job> = Api::default_namespaced(client.clone());
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "Always")}});
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    let replicas = |wanted: i32| {
        move |d: Option<&Deployment>| d.and_then(|d| d.status.as_ref()?.replicas) == Some(wanted)
    };
    wait(&deployments, "web", "made", replicas(3)).await?;
    let led = holder(leases.get_opt(name).await?.as_ref());
    ensure!(one.is(&led), "the first one does not lead: {led}");

    // Much to do, and the leader dies in the midst of it.
    let more = Patch::Merge(json!({"spec": {"replicas": 200}}));
    deployments.patch("web", &PatchParams::default(), &more).await?;
    let job = json!({"metadata": {"name": "count"}, "spec": {"completions": 60, "parallelism": 60,
        "completionMode": "Indexed", "template": template("count", "Never")}});
    jobs.create(&PostParams::default(), &serde_json::from_value(job)?).await?;
    let begun = Instant::now();
    while pods_of(&client, "web").await?.len() < 20 {
        ensure!(begun.elapsed() < LEASE, "no pods are made");
    }
    drop(one);
    let killed = Instant::now();
    let taken = wait(&leases, name, "taken over", |lease| two.is(&holder(lease))).await?;
    let after = killed.elapsed();
    ensure!(after < LEASE + RETRY, "taken over after {after:?}");
    let transitions = taken.and_then(|l| l.spec?.lease_transitions);
    ensure!(transitions == Some(1), "{transitions:?} transitions");

    wait(&deployments, "web", "200 pods", replicas(200)).await?;
    let active = |job: Option<&Job>| job.and_then(|j| j.status.as_ref()?.active) == Some(60);
    wait(&jobs, "count", "60 pods", active).await?;
    // Every pod is one that was asked for.
    let web = pods_of(&client, "web").await?;
    ensure!(web.len() == 200, "{} pods of 200", web.len());
    let sets: Api<ReplicaSet> = Api::default_namespaced(client.clone());
    ensure!(sets.list(&ListParams::default()).await?.items.len() == 1, "more than one ReplicaSet");
    let count = pods_of(&client, "count").await?;
    let index = |pod: &Pod| {
        pod.metadata.annotations.as_ref()?.get("batch.kubernetes.io/job-completion-index").cloned()
    };
    let indexes: BTreeSet<String> = count.iter().filter_map(index).collect();
    ensure!(
        count.len() == 60 && indexes.len() == 60,
        "{} pods for {} of 60 indexes",
        count.len(),
        indexes.len()
    );

    // And counted once: each pod that ends is one completion, whoever saw it end.
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    for pod in &count {
        let name = pod.metadata.name.as_deref().context("no name")?;
        pods.patch_status(name, &PatchParams::default(), &ended).await?;
    }
    let complete = |job: Option<&Job>| {
        let conditions = job.and_then(|j| j.status.as_ref()?.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Complete" && c.status == "True")
    };
    let done = wait(&jobs, "count", "complete", complete).await?.context("no job")?;
    let succeeded = done.status.and_then(|s| s.succeeded);
    ensure!(succeeded == Some(60), "{succeeded:?} of 60 succeeded");
    Ok(())
}
