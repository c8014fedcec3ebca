//! An agent that is killed, and replaced by new programs, under load: every connection goes on, and every packet is
//! translated as before. The agent is a process of its own, this program again; the load is real sockets: connections that
//! are kept and such that are opened anew, of TCP and UDP, by the hooks, by tc in a pod, and from outside the cluster to
//! backends on this node and on another.

mod common;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aya::programs::ProgramInfo;
use common::api::FakeApi;
use common::cluster::{Cluster, agent_config, service, slice};
use common::traffic::{TIMEOUT, exchange, hooked, serve, tcp, unhooked};
use common::{eventually, isolated};
use hawser_proxy::Agent;
use hawser_proxy::config::Xdp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Tells this program that it is the agent; what it should know is behind it as JSON.
const AGENT: &str = "HAWSER_TEST_AGENT";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
const NODE_PORT: u16 = 30_080;
/// How often the agent is killed.
const KILLS: usize = 4;
/// Exchanges of each kind of load without an agent, and again with the next one.
const EXCHANGES: usize = 100;

fn main() {
    match std::env::var(AGENT) {
        Ok(given) => agent(&serde_json::from_str(&given).expect("JSON")),
        Err(_) => isolated(under_load),
    }
}

/// The agent's process, which ends when it is killed, or when the test does.
fn agent(given: &Value) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(1);
    });
    let text = |name: &str| given[name].as_str().expect("a text");
    let api = FakeApi::new();
    let objects = std::fs::read_to_string(text("objects")).expect("the objects");
    for (collection, object) in serde_json::from_str::<Vec<(String, Value)>>(&objects).expect("JSON") {
        api.put(&collection, object);
    }
    let ip = text("ip").parse().expect("an address");
    let config =
        agent_config(text("name"), ip, Path::new(text("run_dir")), Path::new(text("cgroup")), Xdp::Off);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let agent = Agent::start(config, api.client()).await.expect("the agent starts");
        let mut synced = agent.synced();
        let tell = async {
            synced.wait_for(|synced| *synced).await.expect("the agent runs");
            println!("synced");
        };
        let (result, ()) = tokio::join!(agent.run(CancellationToken::new()), tell);
        result.expect("the agent ends well");
    });
}

/// One kind of load: how many exchanges went well, and what did not.
struct Load {
    name: &'static str,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn new(name: &'static str) -> Self {
        Self { name, done: AtomicUsize::new(0), failures: Mutex::default() }
    }

    /// Repeats an exchange until told to stop. After a failure it goes on: they are counted.
    fn run(&self, stop: &AtomicBool, mut exchange: impl FnMut() -> Result<(), String>) {
        while !stop.load(Ordering::Relaxed) {
            match exchange() {
                Ok(()) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
                Err(what) => self.failures.lock().push(what),
            }
        }
    }

    /// Waits for some more exchanges.
    fn more(&self) {
        let from = self.done.load(Ordering::Relaxed);
        eventually(self.name, || {
            assert!(self.failures.lock().is_empty(), "{}: {:?}", self.name, self.failures.lock());
            self.done.load(Ordering::Relaxed) >= from + EXCHANGES
        });
    }
}

fn under_load(dir: &Path) {
    let mut cluster = Cluster::start(dir, 2);
    let (a, c) = (cluster.nodes[0].add_pod("a"), cluster.nodes[1].add_pod("c"));
    // To its kernel, a pod's connections to a frontend and to a backend may have the same source port; so the pod whose
    // connections are translated behind its back is none that opens others.
    let b = cluster.nodes[0].add_pod("b");
    let client = cluster.client();
    serve(&a.netns, 8080, "a");
    serve(&c.netns, 8080, "c");
    for (name, protocol) in [("tcp", "TCP"), ("udp", "UDP")] {
        let mut object = service(name, &VIP.to_string(), 80, protocol);
        object["spec"]["type"] = "NodePort".into();
        object["spec"]["ports"][0]["nodePort"] = NODE_PORT.into();
        cluster.api.put("services", object);
        cluster.api.put("endpointslices", slice(name, &[a.ip, c.ip], 8080, protocol));
    }
    let node = cluster.nodes[0].ip;
    for what in ["the first answer", "and on every node"] {
        eventually(what, || client.run(|| tcp(node, NODE_PORT)).is_ok());
    }
    cluster.nodes[0].stop_agent();
    let objects = dir.join("objects");
    std::fs::write(&objects, serde_json::to_vec(&cluster.api.objects()).expect("JSON")).expect("writes");
    let stop = AtomicBool::new(false);
    let loads = [
        "new by the hooks",
        "new by tc",
        "new from outside",
        "kept by the hooks",
        "kept by tc",
        "kept from outside",
        "datagrams by tc",
        "datagrams from outside",
    ]
    .map(Load::new);
    std::thread::scope(|scope| {
        let (stop, loads) = (&stop, &loads);
        let _stop = StopOnDrop(stop);
        let (n1, a, b, client) = (&cluster.nodes[0], &a, &b, &client);
        let new = |to: SocketAddr| move || fresh(to);
        scope.spawn(move || hooked(n1, a, || loads[0].run(stop, new((VIP, 80).into()))));
        scope.spawn(move || unhooked(b, || loads[1].run(stop, new((VIP, 80).into()))));
        scope.spawn(move || client.run(|| loads[2].run(stop, new((node, NODE_PORT).into()))));
        scope.spawn(move || hooked(n1, a, || kept(&loads[3], stop, (VIP, 80).into())));
        scope.spawn(move || unhooked(b, || kept(&loads[4], stop, (VIP, 80).into())));
        scope.spawn(move || client.run(|| kept(&loads[5], stop, (node, NODE_PORT).into())));
        scope.spawn(move || unhooked(b, || datagrams(&loads[6], stop, (VIP, 80).into())));
        scope.spawn(move || client.run(|| datagrams(&loads[7], stop, (node, NODE_PORT).into())));
        loads.iter().for_each(Load::more);
        let mut programs = Vec::new();
        for kill in 0..KILLS {
            let mut agent = start(n1, &objects);
            programs.push(program(&n1.run_dir));
            // The last times in the middle of its work.
            if kill < KILLS / 2 {
                loads.iter().for_each(Load::more);
            }
            agent.kill().expect("SIGKILL");
            agent.wait().expect("its end");
            loads.iter().for_each(Load::more);
        }
        programs.dedup();
        assert_eq!(programs.len(), KILLS, "each agent brought programs of its own: {programs:?}");
    });
    for load in &loads {
        eprintln!("{}: {} exchanges, 0 failed", load.name, load.done.load(Ordering::Relaxed));
        assert!(load.failures.lock().is_empty(), "{}: {:?}", load.name, load.failures.lock());
    }
}

/// Ends the load when the test fails, too.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts an agent on a node and waits until the maps hold what the API says.
fn start(node: &common::cluster::TestNode, objects: &Path) -> Child {
    let given = json!({
        "name": node.name,
        "ip": node.ip.to_string(),
        "run_dir": node.run_dir,
        "cgroup": node.cgroup.path(),
        "objects": objects,
    });
    let mut child = node.netns.run(|| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .env(AGENT, given.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an agent")
    });
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    assert_eq!(line, "synced\n");
    child
}

/// Number of the program that the uplink has now.
fn program(run_dir: &Path) -> u32 {
    let pin: PathBuf = run_dir.join("bpf/programs/from_uplink");
    ProgramInfo::from_pin(pin).expect("the program").id()
}

/// A connection of its own, and one exchange.
fn fresh(to: SocketAddr) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{to}: {error}");
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).map_err(failed)?;
    let answer = exchange(&mut stream, "hello").map_err(failed)?;
    if answer.ends_with("hello") { Ok(()) } else { Err(format!("{to}: {answer}")) }
}

/// One exchange after the other on connections that are there from the beginning: each with the same backend, which sees
/// the same client.
fn kept(load: &Load, stop: &AtomicBool, to: SocketAddr) {
    let open = || TcpStream::connect_timeout(&to, TIMEOUT).expect("a connection");
    let mut streams: Vec<TcpStream> = (0..8).map(|_| open()).collect();
    let first: Vec<String> = streams.iter_mut().map(|s| exchange(s, "x").expect("an answer")).collect();
    let mut at = 0;
    load.run(stop, || {
        at = (at + 1) % streams.len();
        match exchange(&mut streams[at], "x") {
            Ok(answer) if answer == first[at] => Ok(()),
            other => Err(format!("{to}: {other:?} in place of {}", first[at])),
        }
    });
}

/// As [`kept`], of sockets that send datagrams; answers come from the frontend.
fn datagrams(load: &Load, stop: &AtomicBool, to: SocketAddr) {
    let open = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(TIMEOUT)).expect("settable");
        socket
    };
    let ask = |socket: &UdpSocket| -> std::io::Result<(String, SocketAddr)> {
        socket.send_to(b"x", to)?;
        let mut buffer = [0; 256];
        let (n, from) = socket.recv_from(&mut buffer)?;
        Ok((String::from_utf8_lossy(&buffer[..n]).into_owned(), from))
    };
    let sockets: Vec<UdpSocket> = (0..8).map(|_| open()).collect();
    let first: Vec<_> = sockets.iter().map(|socket| ask(socket).expect("an answer")).collect();
    let mut at = 0;
    load.run(stop, || {
        at = (at + 1) % sockets.len();
        match ask(&sockets[at]) {
            Ok(answer) if answer == first[at] && answer.1 == to => Ok(()),
            other => Err(format!("{to}: {other:?} in place of {:?}", first[at])),
        }
    });
}
