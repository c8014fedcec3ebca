//! Health checks of Services of type LoadBalancer with `externalTrafficPolicy: Local`.
//!
//! An external load balancer asks each node at `spec.healthCheckNodePort` whether it has endpoints
//! (Kubernetes documentation, "Create an External Load Balancer"). The answer, its headers and its status
//! are kube-proxy's: 200 with ready endpoints here and a dataplane that is in order, else 503.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::desired::ObjectName;

/// How long until a port that somebody else holds is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How many connections one port has at a time: load balancers need few.
const CONNECTIONS: usize = 64;

/// The servers of all Services that want one.
#[derive(Debug, Default)]
pub struct HealthChecks {
    servers: HashMap<ObjectName, Server>,
    in_order: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Server {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    /// Ends the server when it is dropped.
    _stop: DropGuard,
}

impl HealthChecks {
    /// Tells whether the dataplane holds what the API says.
    pub fn set_in_order(&self, in_order: bool) {
        self.in_order.store(in_order, Ordering::Relaxed);
    }

    /// Opens, moves, updates or closes (`None`) the port of a Service. `check` is the port and how many ready
    /// endpoints this node has. Must be called on a runtime.
    pub fn set(&mut self, service: &ObjectName, check: Option<(u16, usize)>) {
        let Some((port, endpoints)) = check else {
            self.servers.remove(service);
            return;
        };
        if let Some(server) = self.servers.get(service).filter(|server| server.port == port) {
            server.endpoints.store(endpoints, Ordering::Relaxed);
            return;
        }
        let stop = CancellationToken::new();
        let endpoints = Arc::new(AtomicUsize::new(endpoints));
        let answer = Answer::new(service, endpoints.clone(), self.in_order.clone());
        let what = format!("health check of {service}");
        let served = serve(what, Listen::Everywhere(port), move |_| answer.response());
        let token = stop.clone();
        tokio::spawn(async move { token.run_until_cancelled(served).await });
        let server = Server { port, endpoints, _stop: stop.drop_guard() };
        self.servers.insert(service.clone(), server);
    }
}

/// What is said of one Service.
#[derive(Debug, Clone)]
struct Answer {
    namespace: String,
    name: String,
    endpoints: Arc<AtomicUsize>,
    in_order: Arc<AtomicBool>,
}

impl Answer {
    fn new(service: &ObjectName, endpoints: Arc<AtomicUsize>, in_order: Arc<AtomicBool>) -> Self {
        let (namespace, name) = service.split_once('/').unwrap_or_default();
        Self { namespace: namespace.to_string(), name: name.to_string(), endpoints, in_order }
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let endpoints = self.endpoints.load(Ordering::Relaxed);
        let in_order = self.in_order.load(Ordering::Relaxed);
        let body = serde_json::json!({
            "service": {"namespace": self.namespace, "name": self.name},
            "localEndpoints": endpoints,
            "serviceProxyHealthy": in_order,
        });
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        if endpoints == 0 || !in_order {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert("content-type", http::HeaderValue::from_static("application/json"));
        headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
        headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(endpoints));
        response
    }
}

/// Where a port is open.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listen {
    /// On all addresses of both families, or of IPv4 where there is no other.
    Everywhere(u16),
    /// On 127.0.0.1.
    Loopback(u16),
}

impl Listen {
    async fn bind(self) -> io::Result<TcpListener> {
        match self {
            Self::Loopback(port) => TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await,
            Self::Everywhere(port) => {
                match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                        TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
                    }
                    other => other,
                }
            }
        }
    }
}

/// Answers requests for a path, until dropped.
pub(crate) async fn serve(
    what: String,
    on: Listen,
    answer: impl Fn(&str) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let listener = match on.bind().await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(what, ?on, %error, "opening a port; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        while let (Ok(place), Ok((stream, _))) = (room.clone().acquire_owned().await, listener.accept().await)
        {
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let response = answer(request.uri().path());
                    async move { Ok::<_, Infallible>(response) }
                });
                // An error is the client's affair: it is gone, or does not speak HTTP.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(place);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Status line and body.
    async fn ask(port: u16) -> io::Result<(String, serde_json::Value)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let (head, body) = text.split_once("\r\n\r\n").expect("a body");
        let status = head.lines().next().expect("a status line").to_string();
        Ok((status, serde_json::from_str(body).expect("JSON")))
    }

    async fn answered(port: u16) -> (String, serde_json::Value) {
        loop {
            match ask(port).await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn answers_as_kube_proxy_does() {
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("bound").port()
        };
        let name = ObjectName::from("default/web");
        let mut checks = HealthChecks::default();
        checks.set(&name, Some((port, 2)));
        let (status, body) = answered(port).await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable", "the dataplane is not in order yet");
        assert_eq!(
            body,
            serde_json::json!({
                "service": {"namespace": "default", "name": "web"},
                "localEndpoints": 2,
                "serviceProxyHealthy": false,
            })
        );
        checks.set_in_order(true);
        assert_eq!(answered(port).await.0, "HTTP/1.1 200 OK");
        checks.set(&name, Some((port, 0)));
        let (status, body) = answered(port).await;
        assert_eq!(
            (status.as_str(), &body["localEndpoints"]),
            ("HTTP/1.1 503 Service Unavailable", &0.into())
        );
        checks.set(&name, None);
        while ask(port).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
