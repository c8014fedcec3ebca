//! The Services part: how long the maps take to be filled and to be changed, how much memory the agent's own
//! state takes, and what the choice by load is worth. In network and mount namespaces and a cgroup of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hawser_proxy::dataplane::Dataplane;
use hawser_proxy::desired::{Local, ObjectName, Service, ServicePort, Slice, SliceEndpoint};
use hawser_proxy::maps::{KernelMaps, Maps};
use hawser_proxy::programs::{Pins, Programs};
use hawser_proxy::types::Protocol;
use hawser_tests::cgroup2;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::report::{Report, Target};

/// Sizes: Services, and endpoints of each.
const SIZES: [(u32, u32); 3] = [(1_000, 10), (10_000, 10), (50_000, 3)];
const UPDATES: u32 = 1_000;
/// Backends of the Service with one slow backend, and what an answer takes them.
const BACKENDS: u8 = 10;
const QUICK: Duration = Duration::from_micros(500);
const SLOW: Duration = Duration::from_millis(10);
const CLIENTS: usize = 8;
const REQUESTS: usize = 250;
const PORT: u16 = 8080;

/// Measures.
pub fn run(report: &mut Report) -> Result<()> {
    let own = std::thread::scope(|scope| scope.spawn(|| isolated(report)).join());
    own.map_err(|_| anyhow!("the bench of Services panicked"))?
}

fn isolated(report: &mut Report) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the bench of Services makes namespaces and needs root");
    let dir = tempfile::tempdir()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    for (services, endpoints) in SIZES {
        let pins = Pins::new(dir.path().join(format!("bpf-{services}")));
        let _programs = Programs::load(&pins)?;
        programming(report, &pins, services, endpoints)?;
    }
    let pins = Pins::new(dir.path().join("bpf-load"));
    let mut programs = Programs::load(&pins)?;
    let cgroup = Cgroup::new()?;
    programs.attach_cgroup(&cgroup.0)?;
    for line in ["ip link set lo up", "ip route add local 10.0.0.0/8 dev lo"] {
        let mut words = line.split(' ');
        let status = Command::new(words.next().unwrap_or_default()).args(words).status()?;
        ensure!(status.success(), "{line}: {status}");
    }
    by_load(report, &pins, &cgroup)
}

fn name(number: u32) -> ObjectName {
    Arc::from(format!("default/s{number}"))
}

fn service(address: Ipv4Addr, algorithm: u8) -> Service {
    let port = ServicePort { name: String::new(), port: 80, protocol: Protocol::Tcp, node_port: 0 };
    Service {
        cluster_ips: Box::new([address.into()]),
        ports: Box::new([port]),
        algorithm,
        ..Service::default()
    }
}

fn slice(service: &ObjectName, addresses: impl Iterator<Item = Ipv4Addr>) -> Slice {
    let port = ServicePort { name: String::new(), port: PORT, protocol: Protocol::Tcp, node_port: 0 };
    let endpoint = |address: Ipv4Addr| SliceEndpoint {
        address: address.into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    };
    Slice { service: service.clone(), ports: Box::new([port]), endpoints: addresses.map(endpoint).collect() }
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + number)
}

fn backends(number: u32, endpoints: u32) -> impl Iterator<Item = Ipv4Addr> {
    let first = u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number * endpoints;
    (first..first + endpoints).map(Ipv4Addr::from)
}

/// Resident memory of this process in KiB.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().next().context("a number")?.parse()?)
}

/// All from nothing, and then one endpoint more here and there.
fn programming(report: &mut Report, pins: &Pins, services: u32, endpoints: u32) -> Result<()> {
    let before = resident()?;
    let mut dataplane = Dataplane::new(Local::default(), KernelMaps::open(&pins.maps())?);
    for number in 0..services {
        dataplane.desired().set_service(&name(number), Some(service(vip(number), 0)));
        let slice = slice(&name(number), backends(number, endpoints));
        dataplane.desired().set_slice(&name(number), Some(slice));
    }
    let start = Instant::now();
    dataplane.reconcile()?;
    let took = start.elapsed();
    let size = format!("{services} Services of {endpoints} endpoints");
    let held = dataplane.maps().snapshot()?.services.len();
    ensure!(held == (services * (1 + endpoints)) as usize, "{held} entries for {size}");
    let bound = if services == 10_000 { Target::Below(1.0) } else { Target::None };
    report.add(&format!("{size}, programmed from nothing"), took.as_secs_f64(), "s", bound);
    let memory = (resident()? - before) / 1024.0;
    report.add(&format!("{size}, the agent's state"), memory, "MiB", Target::Below(100.0));

    let mut times = Vec::new();
    for update in 0..UPDATES {
        let number = update * 37 % services;
        let more = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 250, 0, 0)) + update);
        let slice = slice(&name(number), backends(number, endpoints).chain([more]));
        let start = Instant::now();
        let touched = dataplane.desired().set_slice(&name(number), Some(slice));
        dataplane.apply(&touched)?;
        times.push(start.elapsed());
    }
    times.sort();
    let p99 = times[times.len() * 99 / 100].as_secs_f64() * 1e3;
    report.add(&format!("{size}, slice to kernel map, p99"), p99, "ms", Target::Below(5.0));
    Ok(())
}

/// Latency of short requests with one slow backend in ten.
fn by_load(report: &mut Report, pins: &Pins, cgroup: &Cgroup) -> Result<()> {
    use hawser_ebpf_common::lb::{ALGORITHM_DEFAULT, ALGORITHM_RANDOM};
    let mut dataplane = Dataplane::new(Local::default(), KernelMaps::open(&pins.maps())?);
    dataplane.reconcile()?;
    for last in 1..=BACKENDS {
        let listener = TcpListener::bind((Ipv4Addr::new(10, 1, 0, last), PORT))?;
        let pause = if last == 1 { SLOW } else { QUICK };
        std::thread::spawn(move || answer(&listener, pause));
    }
    let mut p95 = Vec::new();
    for (what, algorithm) in [("random", ALGORITHM_RANDOM), ("least-loaded", ALGORITHM_DEFAULT)] {
        let address = vip(algorithm.into());
        let name = name(algorithm.into());
        let touched = dataplane.desired().set_service(&name, Some(service(address, algorithm)));
        dataplane.apply(&touched)?;
        let all = (1..=BACKENDS).map(|last| Ipv4Addr::new(10, 1, 0, last));
        let touched = dataplane.desired().set_slice(&name, Some(slice(&name, all)));
        dataplane.apply(&touched)?;
        let times = requests(cgroup, (address, 80).into())?;
        let at = |share: usize| times[times.len() * share / 1000].as_secs_f64() * 1e3;
        for (percentile, share) in [("p50", 500), ("p90", 900), ("p95", 950), ("p99", 990)] {
            report.note(&format!("one slow backend in ten, {what}, {percentile}"), at(share), "ms");
        }
        p95.push(at(950));
    }
    let saved = 100.0 * (1.0 - p95[1] / p95[0]);
    report.add(
        "one slow backend in ten: p95 that least-loaded saves over random",
        saved,
        "%",
        Target::AtLeast(50.0),
    );
    let open: u64 = dataplane.maps().connections()?.into_iter().map(|(_, count)| count).sum();
    let sockets = dataplane.maps().counted_sockets()?.len();
    ensure!(open == 0 && sockets == 0, "{open} connections of {sockets} sockets are still counted");
    Ok(())
}

/// One thread per connection, as a server with a pool that is large enough.
fn answer(listener: &TcpListener, pause: Duration) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || {
            if stream.read_exact(&mut [0]).is_ok() {
                std::thread::sleep(pause);
                // The client is the judge of what came of it.
                let _ = stream.write_all(b"x");
            }
        });
    }
}

/// Sorted times of connect, request and answer, by clients that always have one request open.
fn requests(cgroup: &Cgroup, to: SocketAddr) -> Result<Vec<Duration>> {
    let client = || -> Result<Vec<Duration>> {
        cgroup.enter()?;
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let start = Instant::now();
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            times.push(start.elapsed());
        }
        Ok(times)
    };
    let mut all = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(())
    })?;
    all.sort();
    Ok(all)
}

/// A cgroup v2 below this process' own, gone with this value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self> {
        let own = cgroup2::path_of(Path::new("/proc/self")).context("no cgroup v2")?;
        let path = cgroup2::mount_point()?
            .join(own.trim_start_matches('/'))
            .join(format!("hawser-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let cgroup = Self(path);
        std::fs::write(cgroup.0.join("cgroup.type"), "threaded")?;
        Ok(cgroup)
    }

    fn enter(&self) -> Result<()> {
        let mut file = File::options().write(true).open(self.0.join("cgroup.threads"))?;
        Ok(file.write_all(b"0")?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads that have just ended may still be on their way out.
        for _ in 0..200 {
            match std::fs::remove_dir(&self.0) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
        eprintln!("left behind: {}", self.0.display());
    }
}
