//! A node's DNS server on loopback: how soon it answers, how many questions it takes, and what it holds.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hawser_tests::server::{Server, resident};
use tokio::net::UdpSocket as AsyncUdpSocket;

use super::api::{JSON, fresh, spread};
use crate::report::{Report, Target, ms, percentile};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
const SINGLE: usize = 20_000;
const CLIENTS: usize = 32;
const MANY: usize = 200_000;
const PATIENCE: Duration = Duration::from_secs(5);

struct Dns(Child);

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures with few Services, and with many.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let (directory, server, endpoint) = fresh(binary).await?;
    let few = start(binary, directory.path(), &server).await?;
    measure(&few.1, "1 Service", "kubernetes.default.svc.cluster.local", report).await?;
    report.note("resident with 1 Service", resident(few.0.0.id())? as f64 / 1048576.0, "MiB");
    drop(few);

    spread(&endpoint, SERVICES, |mut wire, number| async move {
        let address = Ipv4Addr::from(0x0a60_1000 + u32::try_from(number)?);
        let name = format!("s-{number}");
        let service = format!(
            r#"{{"metadata":{{"name":"{name}"}},"spec":{{"clusterIP":"{address}","ports":[{{"name":"http","port":80}}]}}}}"#
        );
        wire.expect(http::Method::POST, "/api/v1/namespaces/default/services", JSON, service.into()).await?;
        let endpoints: Vec<String> = (0..ENDPOINTS)
            .map(|e| {
                let address = Ipv4Addr::from(0x0af4_0000 + u32::try_from(number * ENDPOINTS + e).unwrap_or_default());
                format!(r#"{{"addresses":["{address}"],"conditions":{{"ready":true}},"nodeName":"node-{e}"}}"#)
            })
            .collect();
        let slice = format!(
            r#"{{"metadata":{{"name":"{name}","labels":{{"kubernetes.io/service-name":"{name}"}}}},"addressType":"IPv4","endpoints":[{}],"ports":[{{"name":"http","port":80}}]}}"#,
            endpoints.join(",")
        );
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        wire.expect(http::Method::POST, slices, JSON, slice.into()).await?;
        Ok(wire)
    })
    .await?;
    let begun = Instant::now();
    let many = start(binary, directory.path(), &server).await?;
    report.note("start with 10,000 Services of 10 endpoints", begun.elapsed().as_secs_f64(), "s");
    measure(&many.1, "10,000 Services", "s-4711.default.svc.cluster.local", report).await?;
    let held = resident(many.0.0.id())? as f64 / 1048576.0;
    report.note("resident with 10,000 Services of 10 endpoints", held, "MiB");
    Ok(())
}

/// A server that has read everything.
async fn start(binary: &Path, directory: &Path, api: &Server) -> Result<(Dns, SocketAddr)> {
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let log = std::fs::File::create(directory.join("dns.log"))?;
    let child = Command::new(binary)
        .arg("dns")
        .arg(format!("--kubeconfig={}", api.kubeconfig().display()))
        .arg(format!("--listen={address}"))
        .arg(format!("--run-dir={}", directory.display()))
        .arg("--resolv-conf=")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))?;
    let mut dns = Dns(child);
    let socket = connect(address).await?;
    let begun = Instant::now();
    // SERVFAIL until all is read.
    while !ask(&socket, 1, "kubernetes.default.svc.cluster.local").await.unwrap_or(false) {
        if let Some(status) = dns.0.try_wait()? {
            bail!("the DNS server ended ({status})");
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "the DNS server does not answer");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok((dns, address))
}

async fn connect(server: SocketAddr) -> Result<AsyncUdpSocket> {
    let socket = AsyncUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// A question of type A (RFC 1035, 4.1).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Whether a record came.
async fn ask(socket: &AsyncUdpSocket, id: u16, name: &str) -> Result<bool> {
    socket.send(&question(id, name)).await?;
    let mut buffer = [0; 1500];
    loop {
        let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await??;
        ensure!(length >= 12, "a short answer");
        if buffer[..2] == id.to_be_bytes() {
            return Ok(buffer[3] & 0xf == 0 && buffer[7] > 0);
        }
    }
}

async fn measure(server: &SocketAddr, what: &str, name: &str, report: &mut Report) -> Result<()> {
    let socket = connect(*server).await?;
    let mut took = Vec::with_capacity(SINGLE);
    for number in 0..SINGLE {
        let begun = Instant::now();
        ensure!(ask(&socket, u16::try_from(number % 65_536)?, name).await?, "{name}: no record");
        took.push(begun.elapsed());
    }
    report.add(&format!("DNS, {what}, 1 client, p50"), ms(percentile(&mut took, 0.5)), "ms", Target::None);
    report.add(
        &format!("DNS, {what}, 1 client, p99"),
        ms(percentile(&mut took, 0.99)),
        "ms",
        Target::Below(1.0),
    );

    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (server, name) = (*server, name.to_owned());
            tokio::spawn(async move {
                let socket = connect(server).await?;
                let mut took = Vec::with_capacity(MANY / CLIENTS);
                for number in 0..MANY / CLIENTS {
                    let begun = Instant::now();
                    ensure!(ask(&socket, u16::try_from(number % 65_536)?, &name).await?, "no record");
                    took.push(begun.elapsed());
                }
                anyhow::Ok(took)
            })
        })
        .collect();
    let mut took = Vec::with_capacity(MANY);
    for client in clients {
        took.extend(client.await??);
    }
    let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
    report.add(&format!("DNS, {what}, {CLIENTS} clients"), rate, "/s", Target::None);
    report.add(
        &format!("DNS, {what}, {CLIENTS} clients, p99"),
        ms(percentile(&mut took, 0.99)),
        "ms",
        Target::None,
    );
    Ok(())
}
