//! Servers and clients of the tests.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::Netns;
use super::cluster::{TestNode, TestPod};

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Echoes, with a name in front, on TCP and UDP, in a pod or on a node, until the test ends.
pub fn serve(netns: &Netns, port: u16, name: &str) {
    let (tcp, udp) = netns.run(|| {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        (TcpListener::bind(any).expect("a listener"), UdpSocket::bind(any).expect("a socket"))
    });
    let greeting = name.to_string();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            let greeting = greeting.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                while let Ok(n) = stream.read(&mut buffer) {
                    let answer = format!("{greeting} {peer} {}", String::from_utf8_lossy(&buffer[..n]));
                    if n == 0 || stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let greeting = name.to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let answer = format!("{greeting} {} {}", from.ip(), String::from_utf8_lossy(&buffer[..n]));
            let _ = udp.send_to(answer.as_bytes(), from);
        }
    });
}

/// Sends more than a segment holds, and reads until all of it came back: the server echoes every part that it reads.
pub fn exchange_much(stream: &mut TcpStream, len: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&vec![b'X'; len])?;
    let (mut buffer, mut back) = ([0; 4096], 0);
    while back < len {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => back += buffer[..n].iter().filter(|byte| **byte == b'X').count(),
        }
    }
    Ok(())
}

pub fn exchange(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(text.as_bytes())?;
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

pub fn tcp(to: Ipv4Addr, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), TIMEOUT)?;
    exchange(&mut stream, "hello")
}

/// One datagram by `sendto` and its answer, with the address that it seems to come from.
pub fn udp(to: Ipv4Addr, port: u16) -> io::Result<(String, SocketAddr)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send_to(b"hello", (to, port))?;
    let mut buffer = [0; 4096];
    let (n, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..n]).into_owned(), from))
}

/// The same through a connected socket, which also learns of refusals.
pub fn udp_connected(to: Ipv4Addr, port: u16) -> io::Result<(String, SocketAddr)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect((to, port))?;
    socket.send(b"hello")?;
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..n]).into_owned(), socket.peer_addr()?))
}

/// In a pod, with the node's socket hooks.
pub fn hooked<T: Send>(node: &TestNode, pod: &TestPod, inside: impl FnOnce() -> T + Send) -> T {
    pod.netns.run_in(Some(&node.cgroup), inside)
}

/// In a pod, outside the hooks' cgroup: what tc must translate.
pub fn unhooked<T: Send>(pod: &TestPod, inside: impl FnOnce() -> T + Send) -> T {
    pod.netns.run(inside)
}

pub fn starts(result: &io::Result<String>, names: &[&str], source: Ipv4Addr) -> bool {
    result
        .as_ref()
        .is_ok_and(|text| names.iter().any(|name| text.starts_with(&format!("{name} {source} hello"))))
}
