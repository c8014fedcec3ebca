//! Ends: of containers, of the runtime, of shims.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::*;

use crate::kit::{self, FOREVER, Node, Outcome, ensure, eventually, log_text, sh};

pub async fn stop(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let mut runtime = pod.runtime.clone();
    // Told and obeying.
    let id = pod.start(sh("trap 'echo told; exit 9' TERM; echo up; while :; do sleep 0.1; done")).await?;
    let path = pod.status(&id).await?.log_path;
    eventually("it is up", async || Ok(log_text(Path::new(&path), "stdout")? == "up\n")).await?;
    let begin = Instant::now();
    runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 30 }).await?;
    let ran = pod.wait(&id).await?;
    ensure!(ran.code == 9 && ran.out == "up\ntold\n", "{ran:?}");
    ensure!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // Told and not obeying: killed after the grace period.
    let id = pod.start(sh("trap '' TERM; echo up; while :; do sleep 0.1; done")).await?;
    let begin = Instant::now();
    runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 1 }).await?;
    let ran = pod.wait(&id).await?;
    ensure!(ran.code == 137, "{ran:?}");
    let took = begin.elapsed();
    ensure!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    // Again, and what is not there: no error.
    runtime.stop_container(StopContainerRequest { container_id: id, timeout: 1 }).await?;
    runtime.stop_container(StopContainerRequest { container_id: "none".into(), timeout: 1 }).await?;
    // Removal of one that runs.
    let id = pod.start(sh(FOREVER)).await?;
    runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await?;
    ensure!(pod.status(&id).await.is_err(), "it is still there");
    Ok(())
}

pub async fn runtime_killed(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let ticking = pod.start(sh("i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done")).await?;
    let ending = pod
        .start(sh("echo begin; while ! test -e /dev/shm/end; do sleep 0.05; done; echo end; exit 17"))
        .await?;
    let ended = pod.start(sh("exit 5")).await?;
    pod.wait(&ended).await?;
    let created = pod.create(sh("echo late")).await?;
    let before = pod.status(&ticking).await?;
    let log = Path::new(&before.log_path).to_owned();
    let ticks = || Ok::<_, kit::Failure>(log_text(&log, "stdout")?.lines().count());
    let shims = kit::shims_below(&node.dir);
    let mut memory = 0;
    for pid in &shims {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = |key: &str| {
            let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        };
        memory = memory.max(rss("RssAnon"));
        println!("  shim: {} KiB resident, of which {} KiB its own", rss("VmRSS"), rss("RssAnon"));
    }
    ensure!(memory < 8 * 1024, "a shim has {memory} KiB of its own");

    node.kill()?;
    let seen = ticks()?;
    let path = pod.status(&ticking).await;
    ensure!(path.is_err(), "the runtime still answers");
    eventually("logs go on without the runtime", async || Ok(ticks()? > seen + 3)).await?;
    // One ends meanwhile.
    let shm =
        fs::read_dir(node.dir.join("run/sandboxes"))?.flatten().next().map(|e| e.path().join("shm/end"));
    fs::write(shm.unwrap_or_default(), "")?;
    let exit = node.dir.join("run/containers").join(&ending).join("exit.json");
    eventually("its end is recorded", async || Ok(exit.exists())).await?;
    let latest = i64::try_from(jiff::Timestamp::now().as_nanosecond())?;

    node.restart().await?;
    let pod = kit::Pod { runtime: node.runtime().await?, ..pod };
    let after = pod.status(&ticking).await?;
    ensure!(after.state == ContainerState::ContainerRunning as i32, "{after:?}");
    ensure!(after.started_at == before.started_at && after.created_at == before.created_at, "{after:?}");
    ensure!(kit::shims_below(&node.dir) == shims, "shims changed");
    let ran = pod.wait(&ending).await?;
    ensure!(ran.code == 17 && ran.out == "begin\nend\n", "{ran:?}");
    let finished = ran.status.finished_at;
    ensure!(finished > before.started_at && finished <= latest, "{finished} {latest}");
    ensure!(pod.status(&ended).await?.exit_code == 5, "what had ended before is forgotten");
    // All goes on: logs, execs, starts, stops.
    let seen = ticks()?;
    eventually("logs go on", async || Ok(ticks()? > seen + 3)).await?;
    ensure!(pod.output(&ticking, "echo $((6*7))").await? == "42\n", "exec");
    let mut runtime = pod.runtime.clone();
    runtime.start_container(StartContainerRequest { container_id: created.clone() }).await?;
    ensure!(pod.wait(&created).await?.out == "late\n", "a created container does not start");
    runtime.stop_container(StopContainerRequest { container_id: ticking.clone(), timeout: 0 }).await?;
    ensure!(pod.wait(&ticking).await?.code == 137, "stop");
    // Its log has every tick, once, in order.
    let text = log_text(&log, "stdout")?;
    for (n, line) in text.lines().enumerate() {
        ensure!(line == format!("tick {}", n + 1), "{line} at {n}");
    }
    Ok(())
}

pub async fn shim_killed(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let log = pod.status(&id).await?.log_path;
    eventually("it is up", async || Ok(log_text(Path::new(&log), "stdout")? == "up\n")).await?;
    for pid in kit::shims_below(&node.dir) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
    }
    eventually("the loss is noticed", async || {
        Ok(pod.status(&id).await?.state == ContainerState::ContainerExited as i32)
    })
    .await?;
    let status = pod.status(&id).await?;
    ensure!(status.exit_code == 255 && status.reason == "Unknown", "{status:?}");
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let sandbox = pod.runtime.clone().pod_sandbox_status(request).await?.into_inner().status;
    ensure!(sandbox.is_some_and(|s| s.state == PodSandboxState::SandboxNotready as i32), "sandbox state");
    // A new attempt at the pod works at once.
    let mut config = pod.config.clone();
    config.metadata.get_or_insert_default().attempt = 1;
    let again = node.sandbox(config).await?;
    // Its log goes on where the first attempt's ended.
    ensure!(again.run(sh("echo again")).await?.good()? == "up\nagain\n", "a new attempt");
    Ok(())
}

pub async fn socket_is_private(node: Arc<Node>) -> Outcome {
    let metadata = fs::metadata(node.socket())?;
    ensure!(metadata.file_type().is_socket(), "{metadata:?}");
    ensure!(metadata.permissions().mode() & 0o777 == 0o600, "{:o}", metadata.permissions().mode());
    let version = node.runtime().await?.version(VersionRequest::default()).await?.into_inner();
    ensure!(version.runtime_name == "hawser" && version.runtime_api_version == "v1", "{version:?}");
    let status = node.runtime().await?.status(StatusRequest { verbose: true }).await?.into_inner();
    let conditions = status.status.map(|s| s.conditions).unwrap_or_default();
    let good: Vec<_> = conditions.iter().filter(|c| c.status).map(|c| c.r#type.as_str()).collect();
    ensure!(good == ["RuntimeReady", "NetworkReady"], "{conditions:?}");
    let checkpoint = node.runtime().await?.checkpoint_container(CheckpointContainerRequest::default()).await;
    ensure!(checkpoint.is_err_and(|e| e.code() == tonic::Code::Unimplemented), "checkpoint");
    Ok(())
}

pub async fn removed_while_starting(node: Arc<Node>) -> Outcome {
    for round in 0..6u64 {
        let pod = node.pod().await?;
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(pod.create(sh(FOREVER)).await?);
        }
        let starts = ids.iter().map(|id| {
            let mut runtime = pod.runtime.clone();
            let request = StartContainerRequest { container_id: id.clone() };
            async move { runtime.start_container(request).await }
        });
        let removal = async {
            // At another moment each time.
            tokio::time::sleep(Duration::from_millis(round * 4)).await;
            let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            pod.runtime.clone().remove_pod_sandbox(request).await
        };
        let (_, removed) = tokio::join!(futures::future::join_all(starts), removal);
        removed?;
    }
    ensure!(kit::shims_below(&node.dir).is_empty(), "shims are left");
    ensure!(kit::mounts_below(&node.dir).is_empty(), "mounts are left");
    let left = fs::read_dir(node.dir.join("run/containers"))?.count()
        + fs::read_dir(node.dir.join("data/containers"))?.count();
    ensure!(left == 0, "{left} directories are left");
    Ok(())
}

pub async fn many_at_once(node: Arc<Node>) -> Outcome {
    let begin = Instant::now();
    let pods = futures::future::try_join_all((0..20).map(|_| async {
        let pod = node.pod().await?;
        let id = pod.start(sh("echo up; exec sleep 1000")).await?;
        Ok::<_, kit::Failure>((pod, id))
    }))
    .await?;
    println!("  {} pods in {:.1?}", pods.len(), begin.elapsed());
    let begin = Instant::now();
    futures::future::try_join_all(pods.iter().map(|(pod, _)| {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let mut runtime = pod.runtime.clone();
        async move { runtime.remove_pod_sandbox(request).await }
    }))
    .await?;
    println!("  removed in {:.1?}", begin.elapsed());
    Ok(())
}

pub async fn network_of_a_pod(node: Arc<Node>) -> Outcome {
    let named = |name: &str| {
        let mut config = node.sandbox_config();
        config.metadata.get_or_insert_default().name = name.into();
        config
    };
    let told = |name: &str| -> Result<Vec<String>, kit::Failure> {
        let log = fs::read_to_string(node.dir.join("network.log"))?;
        Ok(log.lines().filter(|l| l.split(' ').nth(1) == Some(name)).map(str::to_owned).collect())
    };
    let good = node.sandbox(named("good")).await?;
    let mut runtime = good.runtime.clone();
    let request = PodSandboxStatusRequest { pod_sandbox_id: good.id.clone(), verbose: false };
    let status = runtime.pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default();
    ensure!(status.network.is_some_and(|n| n.ip == "127.0.0.1"), "address");
    for _ in 0..2 {
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: good.id.clone() }).await?;
    }
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: good.id.clone() }).await?;
    let want = ["setup good netns=true cgroup=true", "teardown good netns=true cgroup=true"];
    ensure!(told("good")? == want, "{:?}", told("good")?);

    // One that cannot be connected leaves nothing behind, not even its name.
    let name = kit::UNCONNECTED;
    let config = named(name);
    for _ in 0..2 {
        let failed = node.sandbox(config.clone()).await.err().map(|e| e.0).unwrap_or_default();
        ensure!(failed.contains("no addresses are left"), "{failed}");
    }
    let list = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    ensure!(list.is_empty(), "{list:?}");
    ensure!(kit::mounts_below(&node.dir).is_empty() && kit::shims_below(&node.dir).is_empty(), "left behind");

    // One that cannot be disconnected stays until it can.
    let stuck = node.sandbox(named("stuck")).await?;
    let flag = node.dir.join(kit::NO_TEARDOWN);
    fs::write(&flag, "")?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: stuck.id.clone() };
    let refused = runtime.remove_pod_sandbox(request.clone()).await;
    fs::remove_file(&flag)?;
    ensure!(refused.is_err_and(|e| e.message().contains("not now")), "removed without its network");
    runtime.remove_pod_sandbox(request).await?;
    ensure!(told("stuck")?.len() == 3, "{:?}", told("stuck")?);
    Ok(())
}
