//! `nodes/proxy`, `pods/proxy`, `services/proxy`: plain HTTP to what the API knows.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use hawser_api::text::quote;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use rand::seq::IteratorRandom;
use rustls::ClientConfig;
use serde_json::Value;

use super::Shared;
use super::forward::{DIALING, Target, forward, is_upgrade};
use super::location::{ProxyName, is_proxyable, kubelet_address};
use super::rewrite::Place;
use crate::access::{Connector, UserInfo};
use crate::body::Body;
use crate::pipeline::Peer;
use crate::request_info::RequestInfo;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

pub(super) struct HttpProxy {
    pub(super) shared: Shared,
}

/// What follows `/proxy` in the path as sent, percent-encoding kept; None when the path has no such part.
fn rest(uri: &http::Uri) -> Option<&str> {
    // /api/v1/[namespaces/NS/]RESOURCE/NAME/proxy…: the name cannot hold a slash.
    let segments = uri.path().trim_start_matches('/').split('/').collect::<Vec<_>>();
    let at = if segments.get(2) == Some(&"namespaces") { 6 } else { 4 };
    if segments.get(at) != Some(&"proxy") {
        return None;
    }
    let head: usize = segments.iter().take(at + 1).map(|s| s.len() + 1).sum();
    uri.path().get(head..)
}

fn allowed_address(address: &str) -> Result<(), Status> {
    if address.parse::<IpAddr>().is_ok_and(is_proxyable) {
        return Ok(());
    }
    Err(Status::bad_request("address not allowed"))
}

fn port_number(port: &str) -> Option<u16> {
    port.parse().ok().filter(|p| *p != 0)
}

impl HttpProxy {
    /// TLS to a pod or service, as Kubernetes speaks it: the certificate is not verified, since nobody could.
    fn tls(&self, name: &ProxyName<'_>) -> Option<Arc<ClientConfig>> {
        (name.scheme == "https").then(|| Arc::clone(&self.shared.unverified_tls))
    }

    async fn node(&self, name: &ProxyName<'_>, path: String) -> Result<Target, Status> {
        let node = self.shared.find("nodes", "", name.name, |_| true).await?;
        let (host, kubelet_port) = kubelet_address(&node)?;
        let port = match name.port {
            "" => kubelet_port,
            text => port_number(text).ok_or_else(|| Status::bad_request(format!("invalid port {text:?}")))?,
        };
        let tls = match name.scheme {
            "http" if port != kubelet_port => None,
            "" if port != kubelet_port => None,
            _ => Some(Arc::clone(&self.shared.kubelet_tls)),
        };
        Ok(Target { host, port, tls, path })
    }

    async fn pod(&self, namespace: &str, name: &ProxyName<'_>, path: String) -> Result<Target, Status> {
        let pod =
            self.shared.find("pods", namespace, name.name, |p| !p.str_at("status.podIP").is_empty()).await?;
        let address = pod.str_at("status.podIP");
        if address.is_empty() {
            return Err(Status::bad_request("pod IP is not available yet"));
        }
        allowed_address(address)?;
        let ports = || pod.items_at("spec.containers").iter().flat_map(|c| c.items_at("ports"));
        let number = |port: &Value| port.int_at("containerPort").and_then(|p| u16::try_from(p).ok());
        let port = match name.port {
            "" => Some(ports().next().and_then(number).unwrap_or(80)),
            text => port_number(text).or_else(|| ports().find(|p| p.str_at("name") == text).and_then(number)),
        };
        let port = port.ok_or_else(|| {
            Status::bad_request(format!("no port {} in pod {}", quote(name.port), name.name))
        })?;
        Ok(Target { host: address.to_owned(), port, tls: self.tls(name), path })
    }

    async fn service(&self, namespace: &str, name: &ProxyName<'_>, path: String) -> Result<Target, Status> {
        let service = self.shared.find("services", namespace, name.name, |_| true).await?;
        let ports = service.items_at("spec.ports");
        let wanted = |p: &&Value| {
            p.str_at("name") == name.port || p.int_at("port").is_some_and(|n| n.to_string() == name.port)
        };
        let port = match name.port {
            "" if ports.len() == 1 => ports.first(),
            "" => ports.iter().find(|p| p.str_at("name").is_empty()),
            _ => ports.iter().find(wanted),
        };
        let unavailable = || {
            let why = format!("no endpoints available for service {}", quote(name.name));
            Status::service_unavailable(why)
        };
        let Some(port) = port else {
            return Err(Status::service_unavailable(format!(
                "no service port {} found for service {}",
                quote(name.port),
                quote(name.name)
            )));
        };
        let endpoints =
            self.shared.read("endpoints", namespace, name.name, false).await?.ok_or_else(unavailable)?;
        let port_name = port.str_at("name");
        let backends = endpoints.items_at("subsets").iter().flat_map(|subset| {
            let target = subset.items_at("ports").iter().find(|p| p.str_at("name") == port_name);
            let number = target.and_then(|p| p.int_at("port")).and_then(|p| u16::try_from(p).ok());
            number.into_iter().flat_map(|n| {
                subset.items_at("addresses").iter().map(move |a| (a.str_at("ip").to_owned(), n))
            })
        });
        let (host, port) = backends.choose(&mut rand::rng()).ok_or_else(unavailable)?;
        allowed_address(&host)?;
        Ok(Target { host, port, tls: self.tls(name), path })
    }
}

#[async_trait]
impl Connector for HttpProxy {
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool {
        group.is_empty() && subresource == "proxy" && matches!(resource, "nodes" | "pods" | "services")
    }

    async fn connect(
        &self,
        _: &UserInfo,
        info: &RequestInfo,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let rest = rest(request.uri()).ok_or_else(Status::unknown_resource)?;
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        let path = format!("/{}{query}", rest.trim_start_matches('/'));
        let name = ProxyName::parse(&info.name).ok_or_else(|| {
            Status::bad_request(format!("invalid {} request {}", info.resource, quote(&info.name)))
        })?;
        let target = match info.resource.as_str() {
            "nodes" => self.node(&name, path).await?,
            "pods" => self.pod(&info.namespace, &name, path).await?,
            _ => self.service(&info.namespace, &name, path).await?,
        };
        let upgrade = is_upgrade(request.headers());
        if rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) && !upgrade {
            return Ok(redirect_to_slash(request.uri()));
        }
        if upgrade {
            return forward(request, &target).await;
        }
        let place = Place {
            prefix: request.uri().path().strip_suffix(rest).unwrap_or_default().to_owned(),
            backend: target.authority(),
            asked: asked_host(&request),
        };
        add_forwarded(&mut request);
        let answer = forward(request, &target).await.map_err(|status| {
            // What was tried is told, and that it was for a service of any kind.
            let why = status.message.strip_prefix(DIALING).unwrap_or(&status.message);
            Status::service_unavailable(format!("error trying to reach service: {why}"))
        })?;
        Ok(place.answer(answer))
    }
}

/// The host that the client asked.
fn asked_host(request: &Request<Body>) -> String {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    host.or_else(|| request.uri().authority().map(|a| a.to_string())).unwrap_or_default()
}

/// Tells the backend where it is asked from: the path of the request, and the client behind those that were told
/// before.
fn add_forwarded(request: &mut Request<Body>) {
    let path = HeaderValue::from_str(request.uri().path());
    if let Ok(path) = path {
        request.headers_mut().insert("x-forwarded-uri", path);
    }
    let Some(Peer(peer)) = request.extensions().get::<Peer>().copied() else { return };
    let before = request.headers().get_all(X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
    let all: Vec<&str> = before.collect();
    let all =
        if all.is_empty() { peer.ip().to_string() } else { format!("{}, {}", all.join(", "), peer.ip()) };
    if let Ok(all) = HeaderValue::from_str(&all) {
        request.headers_mut().insert(X_FORWARDED_FOR, all);
    }
}

/// Relative links of a page only work below a path that ends with a slash.
fn redirect_to_slash(uri: &http::Uri) -> Response<Body> {
    let mut location = format!("{}/", uri.path());
    if let Some(query) = uri.query() {
        location = format!("{location}?{query}");
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_path_is_kept_as_sent() {
        for (uri, expected) in [
            ("/api/v1/namespaces/a/pods/p:80/proxy/x/y%20z/?q=1", Some("/x/y%20z/")),
            ("/api/v1/namespaces/a/services/s/proxy", Some("")),
            ("/api/v1/namespaces/a/services/s/proxy/", Some("/")),
            ("/api/v1/nodes/n/proxy/metrics", Some("/metrics")),
            ("/api/v1/nodes/n/status", None),
            ("/x", None),
        ] {
            assert_eq!(rest(&uri.parse().expect("uri")), expected, "{uri}");
        }
    }
}
