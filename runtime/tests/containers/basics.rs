//! Running containers: their lives, logs, surroundings.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use k8s_cri::v1::*;

use crate::kit::{FOREVER, Failure, Node, Outcome, ensure, eventually, log_text, sh, sh_as};

pub async fn lifecycle(node: Arc<Node>) -> Outcome {
    let mut runtime = node.runtime().await?;
    let mut best = None;
    for _ in 0..5 {
        let config = node.sandbox_config();
        let begin = Instant::now();
        let pod = node.sandbox(config).await?;
        let made = begin.elapsed();
        let id = pod.create(sh(FOREVER)).await?;
        let created = begin.elapsed();
        runtime.start_container(StartContainerRequest { container_id: id.clone() }).await?;
        let started = begin.elapsed();
        best = best.into_iter().chain([(started, made, created)]).min();
        ensure!(
            pod.status(&id).await?.state == ContainerState::ContainerRunning as i32,
            "{:?}",
            pod.status(&id).await
        );
    }
    if let Some((started, made, created)) = best {
        println!("  sandbox {made:.1?}, created {created:.1?}, started {started:.1?}");
    }
    let pod = node.pod().await?;
    let id = pod.start(sh("echo out; echo err >&2; printf part")).await?;
    let ran = pod.wait(&id).await?;
    ensure!(ran.code == 0 && ran.out == "out\npart" && ran.err == "err\n", "{ran:?}");
    ensure!(ran.status.reason == "Completed", "{}", ran.status.reason);
    let s = &ran.status;
    ensure!(s.created_at <= s.started_at && s.started_at <= s.finished_at, "{s:?}");
    runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await?;
    ensure!(pod.status(&id).await.is_err(), "a removed container still has a status");
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let status = runtime.pod_sandbox_status(request.clone()).await?.into_inner();
    let state = status.status.map(|s| s.state);
    ensure!(state == Some(PodSandboxState::SandboxNotready as i32), "{state:?}");
    // Both are idempotent.
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
    for _ in 0..2 {
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
    }
    let gone = runtime.pod_sandbox_status(request).await;
    ensure!(gone.is_err_and(|e| e.code() == tonic::Code::NotFound), "a removed sandbox still has a status");
    Ok(())
}

pub async fn exit_codes(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("exit 255", 255)] {
        let mut config = sh(script);
        if script.contains("kill") {
            // The first process of a PID namespace cannot kill itself with SIGKILL.
            config = sh("sh -c 'kill -9 $$'; exit $?");
        }
        let ran = pod.run(config).await?;
        ensure!(ran.code == code, "{script}: {}", ran.code);
        let reason = if code == 0 { "Completed" } else { "Error" };
        ensure!(ran.status.reason == reason, "{script}: {}", ran.status.reason);
    }
    Ok(())
}

pub async fn what_cannot_start(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let mut missing = sh("");
    missing.command = vec!["no-such-program".into()];
    let id = pod.create(missing).await?;
    let started =
        pod.runtime.clone().start_container(StartContainerRequest { container_id: id.clone() }).await;
    let message = started.err().map(|e| e.message().to_owned()).unwrap_or_default();
    ensure!(message.contains("executable file not found in $PATH"), "{message}");
    let status = pod.status(&id).await?;
    ensure!(status.state == ContainerState::ContainerExited as i32, "{status:?}");
    ensure!(status.exit_code == 128 && status.reason == "StartError", "{status:?}");

    let mut not_executable = sh("");
    not_executable.command = vec!["/etc/passwd".into()];
    let failed = pod.start(not_executable).await.err().map(|e| e.0).unwrap_or_default();
    ensure!(failed.contains("Permission denied"), "{failed}");
    let mut unknown = sh("true");
    unknown.image = Some(ImageSpec { image: "test.local/none:1".into(), ..Default::default() });
    let failed = pod.start(unknown).await.err().map(|e| e.0).unwrap_or_default();
    ensure!(failed.contains("not present"), "{failed}");
    // The pod lives on.
    ensure!(pod.run(sh("exit 3")).await?.code == 3, "pod is broken");
    Ok(())
}

pub async fn environment(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let mut config = sh("echo $A-$B-$HOME-$HOSTNAME-$(pwd); cat /proc/1/cmdline | tr '\\0' ' '");
    config.envs = [("A", "1"), ("B", "x y"), ("A", "2")]
        .map(|(key, value)| KeyValue { key: key.into(), value: value.into() })
        .to_vec();
    config.working_dir = "/made/for/it".into();
    let out = pod.run(config).await?.good()?;
    let want = format!("2-x y-/root-{}-/made/for/it\n/bin/sh -c ", pod.config.hostname);
    ensure!(out.starts_with(&want), "{out:?}");
    Ok(())
}

pub async fn files_of_the_pod(node: Arc<Node>) -> Outcome {
    let mut config = node.sandbox_config();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".into()],
        searches: vec!["a.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.sandbox(config).await?;
    let script = "hostname; cat /etc/hostname /etc/resolv.conf; grep -c localhost /etc/hosts; \
                  cat /sys/class/net/lo/operstate; ls /dev; ls -d /dev/shm /dev/mqueue /dev/pts";
    let out = pod.run(sh(script)).await?.good()?;
    let name = &pod.config.hostname;
    let head = format!("{name}\n{name}\nsearch a.local\nnameserver 10.96.0.10\noptions ndots:5\n2\n");
    ensure!(out.starts_with(&head), "{out}");
    for node in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout"] {
        ensure!(out.lines().any(|l| l == node), "/dev/{node} is missing: {out}");
    }
    // /dev/shm is the pod's, and so are network and host name.
    pod.run(sh("echo shared > /dev/shm/x")).await?.good()?;
    ensure!(pod.run(sh("cat /dev/shm/x")).await?.good()? == "shared\n", "/dev/shm is not shared");
    let first = pod.run(sh("for n in net ipc uts; do readlink /proc/self/ns/$n; done")).await?.good()?;
    let second = pod.run(sh("for n in net ipc uts; do readlink /proc/self/ns/$n; done")).await?.good()?;
    ensure!(first == second, "{first} {second}");
    let own = fs::read_link("/proc/self/ns/net")?;
    ensure!(!first.contains(&*own.to_string_lossy()), "the pod is in the host's network");
    Ok(())
}

fn mount(host: &Path, container: &str) -> Mount {
    Mount { host_path: host.display().to_string(), container_path: container.into(), ..Default::default() }
}

pub async fn mounts(node: Arc<Node>) -> Outcome {
    let dir = node.dir.join("volumes");
    for sub in ["rw", "ro/deep", "outer/inner"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::write(dir.join("file"), "content\n")?;
    let mut config = sh("echo w > /rw/x; echo w > /ro/x; cat /a/file; echo w > /outer/inner/y; ls /outer");
    config.mounts = vec![
        mount(&dir.join("ro/deep"), "/outer/inner"),
        mount(&dir.join("outer"), "/outer"),
        mount(&dir.join("rw"), "/rw"),
        Mount { readonly: true, ..mount(&dir.join("ro"), "/ro") },
        mount(&dir.join("file"), "/a/file"),
        mount(&dir.join("made-by-runtime"), "/made"),
    ];
    let ran = node.run(config).await?;
    ensure!(ran.out == "content\ninner\n", "{ran:?}");
    ensure!(ran.err.contains("/ro/x: Read-only file system"), "{ran:?}");
    ensure!(dir.join("rw/x").exists() && !dir.join("ro/x").exists(), "writes went wrong");
    ensure!(dir.join("ro/deep/y").exists(), "an inner mount was not made after the outer one");
    ensure!(dir.join("made-by-runtime").is_dir(), "a missing host path was not made");
    ensure!(crate::kit::mounts_below(&dir).is_empty(), "mounts appeared on the host");

    // A recursively read-only mount holds for what is mounted below it too.
    let tmpfs = dir.join("ro/deep");
    nix::mount::mount(Some("t"), &tmpfs, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)?;
    let tried = async {
        let mut config = sh("echo w > /v/deep/x && echo wrote; echo w > /r/deep/x || echo refused");
        config.mounts = vec![
            Mount { readonly: true, ..mount(&dir.join("ro"), "/v") },
            Mount { readonly: true, recursive_read_only: true, ..mount(&dir.join("ro"), "/r") },
        ];
        node.run(config).await?.good()
    };
    let out = tried.await;
    nix::mount::umount2(&tmpfs, nix::mount::MntFlags::MNT_DETACH)?;
    ensure!(out?.as_str() == "wrote\nrefused\n", "recursive read-only");
    Ok(())
}

pub async fn mount_targets_stay_inside(node: Arc<Node>) -> Outcome {
    let dir = node.dir.join("trap");
    fs::create_dir_all(dir.join("volume"))?;
    fs::create_dir_all(dir.join("outside"))?;
    // A volume shared with an evil container holds links that lead out of a root.
    std::os::unix::fs::symlink(dir.join("outside"), dir.join("volume/abs"))?;
    std::os::unix::fs::symlink("../../../../../../../..", dir.join("volume/up"))?;
    let source = dir.join("source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("mark"), "mark")?;
    let mut config = sh("cat /volume/abs/mark; ls /volume/up/found");
    config.mounts = vec![
        mount(&dir.join("volume"), "/volume"),
        mount(&source, "/volume/abs"),
        mount(&source, "/volume/up/found"),
    ];
    let out = node.run(config).await?.good()?;
    ensure!(out == "markmark\n", "{out}");
    ensure!(fs::read_dir(dir.join("outside"))?.next().is_none(), "something was made outside");
    ensure!(!Path::new("/found").exists(), "something was made in the host's root");
    // Nothing may cover /proc, on whatever way.
    std::os::unix::fs::symlink("/proc", dir.join("volume/proc"))?;
    for path in ["/proc", "/proc/self", "/volume/proc/sys"] {
        let mut config = sh("true");
        config.mounts = vec![mount(&dir.join("volume"), "/volume"), mount(&source, path)];
        let refused = node.run(config).await.err().map(|e| e.0).unwrap_or_default();
        ensure!(refused.contains("inside /proc"), "{path}: {refused}");
    }
    Ok(())
}

pub async fn terminal(node: Arc<Node>) -> Outcome {
    let mut config = sh("tty; test -t 0 && test -t 1 && echo terminal; ls -l /dev/console");
    config.tty = true;
    config.stdin = true;
    let ran = node.run(config).await?;
    ensure!(ran.out.starts_with("/dev/pts/0\nterminal\n"), "{ran:?}");
    Ok(())
}

pub async fn log_reopen(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh("echo one; while ! test -e /go; do sleep 0.05; done; echo two")).await?;
    let path = pod.status(&id).await?.log_path;
    let path = Path::new(&path);
    eventually("the first line is logged", async || Ok(log_text(path, "stdout")? == "one\n")).await?;
    let rotated = path.with_extension("rotated");
    fs::rename(path, &rotated)?;
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    pod.runtime.clone().reopen_container_log(request).await?;
    pod.exec(&id, "touch /go").await?;
    let ran = pod.wait(&id).await?;
    ensure!(ran.out == "two\n" && log_text(&rotated, "stdout")? == "one\n", "{ran:?}");
    Ok(())
}

pub async fn pid_namespaces(node: Arc<Node>) -> Outcome {
    let own = node.script("echo $$").await?.good()?;
    ensure!(own == "1\n", "own namespace: {own}");
    let pod = node.pod().await?;
    let in_mode = |script: &str, mode: NamespaceMode, target: &str| {
        sh_as(script, |sc| {
            sc.namespace_options =
                Some(NamespaceOption { pid: mode as i32, target_id: target.into(), ..Default::default() });
        })
    };
    let first = pod.start(in_mode(FOREVER, NamespaceMode::Pod, "")).await?;
    let out = pod.run(in_mode("echo $$; ps", NamespaceMode::Pod, "")).await?.good()?;
    ensure!(!out.starts_with("1\n") && out.contains("sleep 1000"), "shared namespace: {out}");
    let target = pod.start(sh(FOREVER)).await?;
    let out = pod.run(in_mode("ps", NamespaceMode::Target, &target)).await?.good()?;
    ensure!(out.contains("sleep 1000"), "target's namespace: {out}");
    let host = pod.run(in_mode("readlink /proc/self/ns/pid", NamespaceMode::Node, "")).await?.good()?;
    ensure!(host.trim() == fs::read_link("/proc/self/ns/pid")?.to_string_lossy(), "host's namespace: {host}");
    // A container of a shared namespace ends with all it started.
    let request = StopContainerRequest { container_id: first.clone(), timeout: 0 };
    pod.runtime.clone().stop_container(request).await?;
    let out = pod.run(in_mode("ps", NamespaceMode::Pod, "")).await?.good()?;
    ensure!(!out.contains("sleep 1000"), "left behind: {out}");
    Ok(())
}

pub async fn host_network(node: Arc<Node>) -> Outcome {
    let mut config = node.sandbox_config();
    config.linux.get_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption {
            network: NamespaceMode::Node as i32,
            ..Default::default()
        }),
        ..Default::default()
    });
    let pod = node.sandbox(config).await?;
    let out = pod.run(sh("readlink /proc/self/ns/net; hostname")).await?.good()?;
    let own = nix::unistd::gethostname()?;
    let want = format!("{}\n{}\n", fs::read_link("/proc/self/ns/net")?.display(), own.to_string_lossy());
    ensure!(out == want, "{out}");
    Ok(())
}

pub async fn events(node: Arc<Node>) -> Outcome {
    let mut events = node.runtime().await?.get_container_events(GetEventsRequest {}).await?.into_inner();
    let pod = node.pod().await?;
    let id = pod.start(sh("exit 7")).await?;
    pod.wait(&id).await?;
    pod.runtime.clone().remove_container(RemoveContainerRequest { container_id: id.clone() }).await?;
    let mut kinds = Vec::new();
    while !kinds.contains(&(id.clone(), ContainerEventType::ContainerDeletedEvent)) {
        let event = tokio::time::timeout(crate::kit::PATIENCE, events.message()).await??;
        let event = event.ok_or_else(|| Failure("the stream of events ended".into()))?;
        ensure!(event.created_at > 0, "{event:?}");
        if event.container_event_type() == ContainerEventType::ContainerStoppedEvent
            && event.container_id == id
        {
            let code = event.containers_statuses.iter().find(|s| s.id == id).map(|s| s.exit_code);
            ensure!(code == Some(7), "{event:?}");
        }
        kinds.push((event.container_id.clone(), event.container_event_type()));
    }
    let of = |id: &str| kinds.iter().filter(|(i, _)| i == id).map(|(_, k)| *k as i32).collect::<Vec<_>>();
    ensure!(of(&id) == [0, 1, 2, 3], "events of the container: {:?}", of(&id));
    ensure!(of(&pod.id) == [0, 1], "events of the sandbox: {:?}", of(&pod.id));
    Ok(())
}

pub async fn stats_and_updates(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let mut runtime = pod.runtime.clone();
    let id = pod.start(sh("dd if=/dev/zero of=/file bs=1M count=4; exec sleep 1000")).await?;
    eventually("the file is written", async || {
        Ok(pod.output(&id, "stat -c %s /file").await.is_ok_and(|s| s == "4194304\n"))
    })
    .await?;
    let stats =
        runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await?.into_inner();
    let stats = stats.stats.unwrap_or_default();
    let cpu = stats.cpu.and_then(|c| c.usage_core_nano_seconds).unwrap_or_default().value;
    let memory = stats.memory.and_then(|m| m.usage_bytes).unwrap_or_default().value;
    let disk = stats.writable_layer.and_then(|w| w.used_bytes).unwrap_or_default().value;
    ensure!(cpu > 0 && memory > 0 && disk >= 4 << 20, "cpu {cpu}, memory {memory}, disk {disk}");
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let linux = runtime.pod_sandbox_stats(request).await?.into_inner().stats.and_then(|s| s.linux);
    let linux = linux.unwrap_or_default();
    ensure!(linux.containers.len() == 1 && linux.network.is_some(), "{linux:?}");

    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_shares: 512,
            cpu_quota: 20_000,
            cpu_period: 100_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    runtime.update_container_resources(request).await?;
    let stats =
        runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await?.into_inner();
    let memory = stats.stats.and_then(|s| s.memory).unwrap_or_default();
    let limit =
        memory.available_bytes.unwrap_or_default().value + memory.working_set_bytes.unwrap_or_default().value;
    ensure!(limit == 64 << 20, "{limit}");
    let resources = pod.status(&id).await?.resources.and_then(|r| r.linux).unwrap_or_default();
    ensure!(resources.cpu_shares == 512 && resources.memory_limit_in_bytes == 64 << 20, "{resources:?}");
    Ok(())
}

pub async fn names_are_unique(node: Arc<Node>) -> Outcome {
    let config = node.sandbox_config();
    let pod = node.sandbox(config.clone()).await?;
    let again = node.sandbox(config.clone()).await.err().map(|e| e.0).unwrap_or_default();
    ensure!(again.contains("is taken"), "{again}");
    let list = ListPodSandboxRequest {
        filter: Some(PodSandboxFilter { label_selector: config.labels.clone(), ..Default::default() }),
    };
    let items = pod.runtime.clone().list_pod_sandbox(list).await?.into_inner().items;
    ensure!(items.len() == 1 && items[0].id == pod.id, "{items:?}");
    // A short id will do.
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id[..12].to_owned(), verbose: false };
    pod.runtime.clone().pod_sandbox_status(request).await?;
    Ok(())
}
