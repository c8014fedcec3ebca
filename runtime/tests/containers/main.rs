//! Tests that run real containers: a runtime in a process of its own, driven over CRI as a kubelet would. They need
//! root, and `/bin/busybox` linked statically; without either they fail and say so. Everything lies below one
//! temporary directory and one cgroup of their own, and is removed after, on failure too.
//!
//! `cargo test -p hawser-runtime --test containers [-- PART_OF_A_NAME]`

mod basics;
mod confinement;
mod images;
mod kit;
mod kit_image;
mod lifetime;
mod scene;
mod spdy;
mod streams;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use kit::{Failure, Node};

/// The longest a test may take.
const TEST_TIME: Duration = Duration::from_secs(90);

type Test = (&'static str, fn(Arc<Node>) -> LocalBoxFuture<'static, Result<(), Failure>>);

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |node| $module::$name(node).boxed_local())),*]
    };
}

const TESTS: &[Test] = tests![
    basics::lifecycle,
    basics::exit_codes,
    basics::what_cannot_start,
    basics::environment,
    basics::files_of_the_pod,
    basics::mounts,
    basics::mount_targets_stay_inside,
    basics::terminal,
    basics::log_reopen,
    basics::pid_namespaces,
    basics::host_network,
    basics::events,
    basics::stats_and_updates,
    basics::names_are_unique,
    confinement::users,
    confinement::capabilities,
    confinement::seccomp,
    confinement::seccomp_from_a_file,
    confinement::masks,
    confinement::devices,
    confinement::privileged,
    confinement::read_only_root,
    confinement::memory_limit,
    confinement::pids_limit,
    confinement::sysctls,
    confinement::nothing_leaks_in,
    spdy::exec_over_spdy,
    spdy::spdy_terminal,
    spdy::port_forward,
    streams::exec_sync,
    streams::exec_over_websocket,
    streams::exec_with_terminal,
    streams::exec_much_output,
    streams::attach,
    streams::what_streams_refuse,
    images::archives,
    images::registry,
    images::remove_and_collect,
    lifetime::stop,
    lifetime::runtime_killed,
    lifetime::shim_killed,
    lifetime::killed_at_any_moment,
    lifetime::removed_while_starting,
    lifetime::many_at_once,
    lifetime::network_of_a_pod,
    lifetime::socket_is_private,
];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = hawser_runtime::reexec(&args) {
        return code;
    }
    if args.get(1).is_some_and(|a| a == kit::RUNTIME)
        && let Some(dir) = args.get(2)
    {
        return kit::runtime_process(Path::new(dir));
    }
    if args.iter().any(|a| a == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("container tests need root");
        return ExitCode::FAILURE;
    }
    let filter = args.iter().skip(1).find(|a| !a.to_string_lossy().starts_with('-'));
    let filter = filter.map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
    match run(&filter) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} failed");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("cannot run: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(filter: &str) -> Result<usize, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let scene = kit::Scene::new()?;
    let result = runtime.block_on(async {
        let node = Arc::new(Node::start(&scene, "node").await?);
        let mut failed = 0;
        for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(filter)) {
            let begin = Instant::now();
            let guarded = std::panic::AssertUnwindSafe(test(Arc::clone(&node))).catch_unwind();
            let result = match tokio::time::timeout(TEST_TIME, guarded).await {
                Err(_) => Err(Failure(format!("took longer than {TEST_TIME:?}"))),
                Ok(Err(_)) => Err(Failure("panicked".into())),
                Ok(Ok(result)) => result,
            };
            let time = begin.elapsed();
            match result {
                Ok(()) => println!("test {name} ... ok ({time:.2?})"),
                Err(e) => {
                    failed += 1;
                    println!("test {name} ... FAILED ({time:.2?}): {e}");
                }
            }
            node.remove_all().await;
        }
        if failed > 0 {
            println!("the runtime's last words:\n{}", node.log_tail());
        }
        Ok::<_, Failure>(failed)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let left = scene.clean_up();
    let mut failed = result?;
    if !left.is_empty() {
        failed += 1;
        println!("left behind: {left:#?}");
    }
    Ok(failed)
}
