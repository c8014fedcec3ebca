//! One probe: exec, HTTP, TCP or gRPC.

use crate::cri::Runtime;
use crate::hooks::port;
use crate::http_client::{self, authority, os_text};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction};
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

/// What is probed.
pub(crate) struct Target<'a> {
    pub runtime: &'a Runtime,
    pub container: &'a Container,
    pub id: &'a str,
    pub pod_ip: &'a str,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Success,
    /// Success, with something to say.
    Warning(String),
    Failure(String),
    /// The probe could not be made.
    Error(String),
}

/// Probes once, within `limit`.
pub(super) async fn run(target: &Target<'_>, probe: &Probe, limit: Duration) -> Verdict {
    if let Some(e) = &probe.exec {
        return exec(target, e, limit).await;
    }
    let (work, subject): (std::pin::Pin<Box<dyn Future<Output = Verdict> + Send>>, &str) =
        if let Some(h) = &probe.http_get {
            (Box::pin(http_get(target, h)), "HTTP")
        } else if let Some(t) = &probe.tcp_socket {
            (Box::pin(tcp(target, t)), "TCP")
        } else if let Some(g) = &probe.grpc {
            (Box::pin(grpc(target, g)), "gRPC")
        } else {
            return Verdict::Error(format!("missing probe handler for {}", target.container.name));
        };
    match tokio::time::timeout(limit, work).await {
        Ok(v) => v,
        Err(_) => Verdict::Failure(timed_out(target, probe, subject)),
    }
}

fn timed_out(target: &Target<'_>, probe: &Probe, subject: &str) -> String {
    let c = target.container;
    match (&probe.http_get, &probe.tcp_socket) {
        (Some(h), _) => {
            let host = h.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.pod_ip);
            let scheme = h.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
            let at = authority(host, port(&h.port, c).unwrap_or(0));
            let path = h.path.as_deref().unwrap_or("/");
            format!(
                "Get \"{scheme}://{at}{path}\": context deadline exceeded (Client.Timeout exceeded while awaiting \
                 headers)"
            )
        }
        (_, Some(t)) => {
            let host = t.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.pod_ip);
            format!("dial tcp {}: i/o timeout", authority(host, port(&t.port, c).unwrap_or(0)))
        }
        _ => format!("{subject} probe timed out"),
    }
}

async fn exec(target: &Target<'_>, e: &ExecAction, limit: Duration) -> Verdict {
    let cmd = e.command.clone().unwrap_or_default();
    let timeout = i64::try_from(limit.as_secs()).unwrap_or(1);
    let request = cri::ExecSyncRequest { container_id: target.id.to_owned(), cmd: cmd.clone(), timeout };
    // The runtime ends the command at its time limit; a little more is left for it to say so.
    let mut runtime = target.runtime.runtime();
    let answer = tokio::time::timeout(limit + Duration::from_secs(2), runtime.exec_sync(request));
    let late = || {
        Verdict::Failure(format!(
            "command timed out: {:?} timed out after {}s",
            cmd.join(" "),
            limit.as_secs()
        ))
    };
    match answer.await {
        Err(_) => late(),
        Ok(Err(s)) if s.code() == tonic::Code::DeadlineExceeded => late(),
        Ok(Err(s)) => Verdict::Error(s.message().to_owned()),
        Ok(Ok(a)) => {
            let a = a.into_inner();
            let mut text = String::from_utf8_lossy(&a.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&a.stderr));
            text.truncate(text.floor_char_boundary(10 << 10));
            if a.exit_code == 0 { Verdict::Success } else { Verdict::Failure(text) }
        }
    }
}

async fn http_get(target: &Target<'_>, h: &HTTPGetAction) -> Verdict {
    let host = h.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.pod_ip);
    let port = match port(&h.port, target.container) {
        Ok(p) => p,
        Err(e) => return Verdict::Error(e),
    };
    let headers = match http_client::headers(h.http_headers.as_ref(), "kube-probe/1.36") {
        Ok(h) => h,
        Err(e) => return Verdict::Error(e.to_string()),
    };
    let https = h.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    match http_client::get(https, host, port, h.path.as_deref().unwrap_or("/"), headers).await {
        Err(e) => Verdict::Failure(e.to_string()),
        Ok(a) if a.redirected_away => {
            Verdict::Warning(format!("Probe terminated redirects, Response body: {}", a.body))
        }
        Ok(a) if (200..400).contains(&a.status.as_u16()) => Verdict::Success,
        Ok(a) => Verdict::Failure(format!("HTTP probe failed with statuscode: {}", a.status.as_u16())),
    }
}

async fn tcp(target: &Target<'_>, t: &TCPSocketAction) -> Verdict {
    let host = t.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.pod_ip);
    let port = match port(&t.port, target.container) {
        Ok(p) => p,
        Err(e) => return Verdict::Error(e),
    };
    match TcpStream::connect((host, port)).await {
        Ok(_) => Verdict::Success,
        Err(e) => Verdict::Failure(format!("dial tcp {}: connect: {}", authority(host, port), os_text(&e))),
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; status 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn grpc(target: &Target<'_>, g: &GRPCAction) -> Verdict {
    let Some(port) = u16::try_from(g.port).ok().filter(|p| *p > 0) else {
        return Verdict::Error(format!("invalid port number: {}", g.port));
    };
    let at = authority(target.pod_ip, port);
    let endpoint = match Endpoint::from_shared(format!("http://{at}")) {
        Ok(e) => e,
        Err(e) => return Verdict::Error(e.to_string()),
    };
    let endpoint =
        endpoint.user_agent("kube-probe/1.36").unwrap_or_else(|_| Endpoint::from_static("http://localhost"));
    let refused = |e: &dyn std::fmt::Display| {
        Verdict::Failure(format!("error: this service is not reachable at {at:?}: {e}"))
    };
    let channel = match endpoint.connect().await {
        Ok(c) => c,
        Err(e) => return refused(&e),
    };
    let mut client = tonic::client::Grpc::new(channel);
    if let Err(e) = client.ready().await {
        return refused(&e);
    }
    let codec = tonic_prost::ProstCodec::<HealthRequest, HealthResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = HealthRequest { service: g.service.clone().unwrap_or_default() };
    match client.unary(tonic::Request::new(request), path, codec).await {
        Ok(a) if a.get_ref().status == 1 => Verdict::Success,
        Ok(a) => {
            let name = match a.get_ref().status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Verdict::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Err(s) if s.code() == tonic::Code::Unimplemented => Verdict::Failure(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into(),
        ),
        Err(s) => Verdict::Failure(format!("error: health rpc failed: {}", s.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for _ in 0..8 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 2048];
                let n = stream.read(&mut buffer).await.unwrap();
                let request = String::from_utf8_lossy(&buffer[..n]).to_lowercase();
                assert!(request.contains("user-agent: kube-probe/1.36"), "{request}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn probe(p: serde_json::Value) -> Verdict {
        let probe: Probe = serde_json::from_value(p).unwrap();
        let runtime = Runtime::new(std::path::Path::new("/nonexistent/cri.sock"));
        let container = Container { name: "c".into(), ..Container::default() };
        let target = Target { runtime: &runtime, container: &container, id: "x", pod_ip: "127.0.0.1" };
        run(&target, &probe, Duration::from_millis(500)).await
    }

    #[tokio::test]
    async fn http() {
        let ok = serve("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(probe(json!({"httpGet": {"port": ok, "path": "/x"}})).await, Verdict::Success);
        let bad = serve("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(
            probe(json!({"httpGet": {"port": bad}})).await,
            Verdict::Failure("HTTP probe failed with statuscode: 500".into())
        );
        let away = serve("HTTP/1.1 302 F\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(probe(json!({"httpGet": {"port": away}})).await, Verdict::Warning(_)));
        let around = serve("HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(probe(json!({"httpGet": {"port": around}})).await, Verdict::Failure(_)));
        assert!(matches!(probe(json!({"httpGet": {"port": "web"}})).await, Verdict::Error(_)));
    }

    #[tokio::test]
    async fn silent_server_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let v = probe(json!({"httpGet": {"port": port}})).await;
        assert!(matches!(&v, Verdict::Failure(m) if m.contains("deadline exceeded")), "{v:?}");
        assert_eq!(probe(json!({"tcpSocket": {"port": port}})).await, Verdict::Success);
    }

    #[tokio::test]
    async fn refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(
            probe(json!({"tcpSocket": {"port": port}})).await,
            Verdict::Failure(format!("dial tcp 127.0.0.1:{port}: connect: connection refused"))
        );
        assert!(matches!(probe(json!({"grpc": {"port": port}})).await, Verdict::Failure(_)));
        assert!(matches!(probe(json!({})).await, Verdict::Error(_)));
    }
}
