//! What containers may not do, and who they are.

use std::fs;
use std::sync::Arc;

use k8s_cri::v1::*;

use crate::kit::{FOREVER, IMAGE, Node, Outcome, ensure, eventually, sh, sh_as, sh_with};
use crate::kit_image::ImageSpecification;

fn int(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

pub async fn users(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let script = "id -u; id -g; id -G; echo $HOME; echo through > /dev/stdout";
    let ran = pod.run(sh_as(script, |sc| sc.run_as_username = "web".into())).await?;
    let user = ran.status.user.clone().and_then(|u| u.linux).unwrap_or_default();
    ensure!(user.uid == 1000 && user.supplemental_groups == [1000, 2000], "{user:?}");
    let out = ran.good()?;
    ensure!(out == "1000\n1000\n1000 2000\n/home/web\nthrough\n", "by name: {out}");
    let numbers = sh_as(script, |sc| {
        sc.run_as_user = int(4242);
        sc.run_as_group = int(77);
        sc.supplemental_groups = vec![5, 6];
    });
    let out = pod.run(numbers).await?.good()?;
    ensure!(out == "4242\n77\n77 5 6\n/\nthrough\n", "by number: {out}");
    let strict = sh_as("id -G", |sc| {
        sc.run_as_user = int(1000);
        sc.supplemental_groups = vec![9];
        sc.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
    });
    let out = pod.run(strict).await?.good()?;
    ensure!(out == "1000 9\n", "strict: {out}");

    let spec = ImageSpecification {
        config: serde_json::json!({ "User": "web:extra", "WorkingDir": "/tmp", "Env": ["FROM=image"] }),
        ..Default::default()
    };
    crate::images::pull_through_registry(&node, "user", &spec).await?;
    let mut config = sh("id -u; id -g; pwd; echo $FROM");
    let image = crate::images::registry_name(&node, "user")?;
    config.image = Some(ImageSpec { image, ..Default::default() });
    let out = pod.run(config).await?.good()?;
    ensure!(out == "1000\n2000\n/tmp\nimage\n", "image's user: {out}");

    let unknown = pod.start(sh_as("true", |sc| sc.run_as_username = "nobody-here".into())).await;
    let message = unknown.err().map(|e| e.0).unwrap_or_default();
    ensure!(message.contains("unable to find user nobody-here"), "{message}");
    Ok(())
}

pub async fn capabilities(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t'; grep NoNewPrivs /proc/self/status";
    let default = pod.run(sh(script)).await?.good()?;
    let mask = "00000000a80425fb";
    let want = format!(
        "CapInh:0000000000000000\nCapPrm:{mask}\nCapEff:{mask}\nCapBnd:{mask}\nCapAmb:0000000000000000\nNoNewPrivs:\t0\n"
    );
    ensure!(default == want, "{default}");
    let none = sh_as(script, |sc| {
        sc.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        sc.no_new_privs = true;
    });
    let out = pod.run(none).await?.good()?;
    ensure!(out.contains("CapBnd:0000000000000000") && out.contains("NoNewPrivs:\t1"), "{out}");
    // An unprivileged user has none, but for ambient ones.
    let ambient = sh_as(script, |sc| {
        sc.run_as_user = int(1000);
        sc.capabilities = Some(Capability {
            drop_capabilities: vec!["ALL".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        });
    });
    let out = pod.run(ambient).await?.good()?;
    let bit = "0000000000000400";
    ensure!(out.contains(&format!("CapEff:{bit}")) && out.contains(&format!("CapAmb:{bit}")), "{out}");
    let plain = pod.run(sh_as(script, |sc| sc.run_as_user = int(1000))).await?.good()?;
    ensure!(plain.contains("CapEff:0000000000000000"), "{plain}");
    // chown needs CAP_CHOWN.
    let chown = "touch /x && chown 1 /x";
    ensure!(pod.run(sh(chown)).await?.code == 0, "chown with the default set");
    let without = sh_as(chown, |sc| {
        sc.capabilities = Some(Capability { drop_capabilities: vec!["CHOWN".into()], ..Default::default() });
    });
    ensure!(pod.run(without).await?.code != 0, "chown without the capability");
    Ok(())
}

fn profile(kind: security_profile::ProfileType, file: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: file.into() })
}

pub async fn seccomp(node: Arc<Node>) -> Outcome {
    use security_profile::ProfileType::{RuntimeDefault, Unconfined};
    let pod = node.pod().await?;
    let script = "grep Seccomp: /proc/self/status; unshare -U true";
    for (no_new_privs, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let ran = pod
            .run(sh_as(script, |sc| {
                sc.no_new_privs = no_new_privs;
                sc.run_as_user = int(uid);
                sc.seccomp = profile(RuntimeDefault, "");
            }))
            .await?;
        ensure!(ran.out == "Seccomp:\t2\n" && ran.code != 0, "{ran:?}");
        ensure!(ran.err.contains("Operation not permitted"), "{ran:?}");
    }
    let free = sh_as(script, |sc| sc.seccomp = profile(Unconfined, ""));
    let ran = pod.run(free).await?;
    ensure!(ran.code == 0 && ran.out == "Seccomp:\t0\n", "{ran:?}");
    // An exec has the container's filter.
    let id = pod.start(sh(FOREVER)).await?;
    let exec = pod.exec(&id, script).await?;
    ensure!(exec.stdout == b"Seccomp:\t2\n" && exec.exit_code != 0, "{exec:?}");
    Ok(())
}

pub async fn seccomp_from_a_file(node: Arc<Node>) -> Outcome {
    use security_profile::ProfileType::Localhost;
    let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 } ] }"#;
    fs::write(node.dir.join("seccomp/no-mkdir.json"), text)?;
    let pod = node.pod().await?;
    let ran = pod.run(sh_as("mkdir /x", |sc| sc.seccomp = profile(Localhost, "no-mkdir.json"))).await?;
    ensure!(ran.err.contains("No space left on device"), "{ran:?}");
    let missing = pod.create(sh_as("true", |sc| sc.seccomp = profile(Localhost, "none.json"))).await;
    ensure!(missing.is_err(), "a container without its profile was created");
    Ok(())
}

pub async fn masks(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    // Which of the masked files there are depends on the kernel; those that are there are empty.
    let script = "for f in kcore keys timer_list interrupts; do test -e /proc/$f && wc -c < /proc/$f; done; \
                  ls /sys/firmware | wc -l; (echo 1 > /proc/sys/kernel/panic) 2>&1; (mkdir /sys/x) 2>&1; \
                  (echo x > /sys/kernel/mm/x) 2>&1; umount /proc/interrupts 2>&1";
    let ran = pod.run(sh(script)).await?;
    let sizes: Vec<_> = ran.out.lines().take_while(|l| l.parse::<u32>().is_ok()).collect();
    ensure!(sizes.len() >= 2 && sizes.iter().all(|s| *s == "0"), "{ran:?}");
    ensure!(ran.out.matches("Read-only file system").count() == 3, "{ran:?}");
    ensure!(ran.out.contains("can't unmount /proc/interrupts"), "{ran:?}");
    let own = sh_as("(cat /etc/passwd | wc -l); touch /bin/x 2>&1", |sc| {
        sc.masked_paths = vec!["/etc/passwd".into(), "/not/there".into()];
        sc.readonly_paths = vec!["/bin".into()];
    });
    let ran = pod.run(own).await?;
    ensure!(ran.out.starts_with("0\n") && ran.out.contains("Read-only file system"), "{ran:?}");
    Ok(())
}

pub async fn devices(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    // Making a node is allowed, opening it is not.
    let script =
        "mknod /m c 1 1 && mknod /d b 254 0; cat /m; dd if=/d of=/dev/null count=1; echo x > /dev/null";
    let ran = pod.run(sh(script)).await?;
    ensure!(ran.err.contains("can't open '/m': Operation not permitted"), "{ran:?}");
    ensure!(ran.err.contains("can't open '/d': Operation not permitted"), "{ran:?}");
    ensure!(ran.code == 0, "{ran:?}");
    let mut given = sh("ls -l /dev/mine; head -c 3 /dev/mine | wc -c; echo x > /dev/mine");
    given.devices = vec![Device {
        host_path: "/dev/zero".into(),
        container_path: "/dev/mine".into(),
        permissions: "r".into(),
    }];
    let ran = pod.run(given).await?;
    ensure!(ran.out.contains("1,   5") && ran.out.contains("\n3\n"), "{ran:?}");
    Ok(())
}

pub async fn privileged(node: Arc<Node>) -> Outcome {
    let script = "mkdir /t && mount -t tmpfs t /t && echo mounted; touch /sys/kernel/x 2>&1; \
                  wc -c < /proc/sys/kernel/panic; cat /dev/mem > /dev/null 2>&1; grep Seccomp: /proc/self/status";
    let ran = node.run(sh_as(script, |sc| sc.privileged = true)).await?;
    ensure!(ran.out.starts_with("mounted\n") && ran.out.ends_with("Seccomp:\t0\n"), "{ran:?}");
    ensure!(!ran.out.contains("Read-only"), "{ran:?}");
    let ran = node.script("mkdir /t && mount -t tmpfs t /t").await?;
    ensure!(ran.code != 0, "an ordinary container can mount: {ran:?}");
    Ok(())
}

pub async fn read_only_root(node: Arc<Node>) -> Outcome {
    let script = "touch /x 2>&1; touch /etc/hosts 2>&1; touch /dev/shm/x && touch /tmp/x 2>&1";
    let ran = node.run(sh_as(script, |sc| sc.readonly_rootfs = true)).await?;
    ensure!(ran.out.matches("Read-only file system").count() == 3, "{ran:?}");
    Ok(())
}

pub async fn memory_limit(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    // dd's one block of 200 MiB is memory of the process.
    let hog = sh_with("dd if=/dev/zero of=/dev/null bs=200M count=1", |r| r.memory_limit_in_bytes = 32 << 20);
    let ran = pod.run(hog).await?;
    ensure!(ran.code == 137 && ran.status.reason == "OOMKilled", "{ran:?}");
    let modest =
        sh_with("dd if=/dev/zero of=/dev/null bs=1M count=1", |r| r.memory_limit_in_bytes = 32 << 20);
    ensure!(pod.run(modest).await?.code == 0, "a modest program was killed");
    Ok(())
}

pub async fn pids_limit(node: Arc<Node>) -> Outcome {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 3 & done; echo all";
    let limited = sh_with(script, |r| {
        r.unified.insert("pids.max".into(), "5".into());
    });
    let ran = node.run(limited).await?;
    ensure!(!ran.out.contains("all") && ran.err.contains("can't fork"), "{ran:?}");
    Ok(())
}

pub async fn sysctls(node: Arc<Node>) -> Outcome {
    let mut config = node.sandbox_config();
    config.linux.get_or_insert_default().sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    config.linux.get_or_insert_default().sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = node.sandbox(config).await?;
    let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced \
                  /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let out = pod.run(sh(script)).await?.good()?;
    ensure!(out == "1\n1\n0\n", "{out}");
    let mut config = node.sandbox_config();
    config.linux.get_or_insert_default().sysctls.insert("vm.swappiness".into(), "1".into());
    ensure!(node.sandbox(config).await.is_err(), "a sysctl of the host was set");
    Ok(())
}

pub async fn nothing_leaks_in(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    for script in ["ls /proc/self/fd", "env"] {
        let first = pod.run(sh(script)).await?.good()?;
        let exec = pod.output(&id, script).await?;
        if script == "env" {
            ensure!(!first.contains("CARGO") && !exec.contains("CARGO"), "{first} {exec}");
        } else {
            // stdin, stdout, stderr, and the directory being listed.
            ensure!(first == "0\n1\n2\n3\n" && exec == first, "{first:?} {exec:?}");
        }
    }
    // No mount of the host is in sight, and the cgroup tree begins at the container's own.
    let out = pod.run(sh("cat /proc/self/mountinfo; cat /proc/self/cgroup")).await?.good()?;
    ensure!(!out.contains("oldroot") && !out.contains("/var/lib"), "{out}");
    let own: Vec<_> = out.lines().filter(|l| l.contains("memory:") || l.starts_with("0::")).collect();
    ensure!(own.iter().all(|l| l.ends_with(":/")), "{own:?}");
    // The shim's program cannot be written to through /proc, not even by root of a container that sees it.
    let spy = sh_as(
        "for p in /proc/[0-9]*; do (echo x > $p/exe) 2>/dev/null && echo wrote $p; done; echo done",
        |sc| {
            sc.namespace_options =
                Some(NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() });
        },
    );
    let out = pod.run(spy).await?.good()?;
    ensure!(out == "done\n", "{out}");
    eventually("the container still runs", async || {
        Ok(pod.status(&id).await?.state == ContainerState::ContainerRunning as i32)
    })
    .await?;
    ensure!(pod.status(&id).await?.image.is_some_and(|i| i.image == IMAGE), "image name");
    Ok(())
}
