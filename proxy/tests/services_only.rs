//! The agent without the pod network, as `hawser proxy` runs beside another CNI: hooks and nothing else.

mod common;

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use common::api::FakeApi;
use common::cluster::{service, slice};
use common::{Cgroup, Netns, errno, eventually, isolated, run};
use hawser_proxy::{Agent, Config};
use tokio_util::sync::CancellationToken;

#[test]
fn translates_without_touching_interfaces() {
    isolated(|dir| {
        let (netns, cgroup, api) = (Netns::new(), Cgroup::new(), FakeApi::new());
        api.put("services", service("web", "10.96.0.80", 80, "TCP"));
        api.put("services", service("empty", "10.96.0.99", 53, "UDP"));
        api.put("endpointslices", slice("web", &[Ipv4Addr::LOCALHOST], 8080, "TCP"));
        let config = Config {
            node_name: "n1".to_string(),
            node_ips: Vec::new(),
            uplink: None,
            run_dir: dir.join("run"),
            cgroup: cgroup.path().to_path_buf(),
            service_cidrs: Vec::new(),
            node_port_addresses: Vec::new(),
            mtu: None,
            masquerade: false,
            pod_network: false,
            xdp: hawser_proxy::config::Xdp::Off,
            tunnel: hawser_proxy::config::Tunnel::Off,
        };
        // Every address is local here: what is not translated is refused at once, by nobody listening.
        netns.run(|| run("ip route add local 10.0.0.0/8 dev lo"));
        let token = CancellationToken::new();
        std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                netns.enter();
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let agent = Agent::start(config.clone(), api.client()).await.expect("starts");
                    assert!(agent.pod_network().is_none());
                    agent.run(token.clone()).await.expect("ends well");
                });
            });
            let listener = netns.run(|| TcpListener::bind("127.0.0.1:8080").expect("a listener"));
            let connect = |to: Ipv4Addr| -> io::Result<()> {
                netns.run_in(Some(&cgroup), || TcpStream::connect((to, 80)).map(drop))
            };
            eventually("the Service answers", || connect(Ipv4Addr::new(10, 96, 0, 80)).is_ok());
            // Connecting a datagram socket meets nobody, so only the hook can refuse it.
            let empty =
                netns.run_in(Some(&cgroup), || UdpSocket::bind("0.0.0.0:0")?.connect("10.96.0.99:53"));
            assert_eq!(errno(&empty), Some(libc::ECONNREFUSED));
            let forwarding = netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward"));
            assert_eq!(forwarding.expect("readable").trim(), "0", "not ours to switch on");
            token.cancel();
            agent.join().expect("the agent's thread");
            // Nobody runs, the hooks stay.
            assert!(connect(Ipv4Addr::new(10, 96, 0, 80)).is_ok());
            drop(listener);
        });
    });
}
