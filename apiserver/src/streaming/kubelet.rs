//! `pods/log`, `pods/exec`, `pods/attach`, `pods/portforward`: to the kubelet of the pod's node.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use serde_json::Value;

use super::forward::{Target, forward, is_upgrade};
use super::messages::Socket;
use super::{Shared, location, options};
use crate::access::{Attributes, Authorizer, Connector, Decision, UserInfo};
use crate::authz::{Authorizers, forbidden};
use crate::body::Body;
use crate::request_info::RequestInfo;

/// The longest error text that is taken over from a kubelet, in bytes.
const MAX_ERROR: usize = 64 * 1024;

pub(super) struct PodStreams {
    pub(super) shared: Shared,
    pub(super) authorizers: Arc<Authorizers>,
}

/// What a path segment may hold as it is (RFC 3986, unreserved characters).
const SEGMENT: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn encode(segment: &str) -> String {
    percent_encoding::utf8_percent_encode(segment, SEGMENT).to_string()
}

impl PodStreams {
    /// The kubelet's answer-giver for a pod, or None when the pod has no node.
    async fn target(&self, pod: &Value, path: String) -> Result<Option<Target>, Status> {
        let node = pod.str_at("spec.nodeName");
        if node.is_empty() {
            return Ok(None);
        }
        let node = self.shared.find("nodes", "", node, |n| location::kubelet_address(n).is_ok()).await?;
        let (host, port) = location::kubelet_address(&node)?;
        Ok(Some(Target { host, port, tls: Some(Arc::clone(&self.shared.kubelet_tls)), path }))
    }

    async fn log(
        &self,
        info: &RequestInfo,
        pod: &Value,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let socket = Socket::asked(&mut request)?;
        let response = self.logged(info, pod, request.uri().clone()).await?;
        Ok(match socket {
            Some(socket) => socket.answer(response.into_body()),
            None => response,
        })
    }

    /// What a container has logged, as the kubelet answers it.
    async fn logged(&self, info: &RequestInfo, pod: &Value, uri: Uri) -> Result<Response<Body>, Status> {
        let query = options::log_query(info)?;
        let container = location::container(pod, info.param("container").unwrap_or(""))?;
        let (namespace, name) = (encode(&info.namespace), encode(&info.name));
        let path = format!("/containerLogs/{namespace}/{name}/{}?{query}", encode(&container));
        let text = HeaderValue::from_static("text/plain");
        let Some(target) = self.target(pod, path).await? else {
            // Nothing has run, so nothing was logged.
            let mut empty = Response::new(Body::Empty);
            empty.headers_mut().insert(header::CONTENT_TYPE, text);
            return Ok(empty);
        };
        // The kubelet gets a request of the server's own: no headers of the caller concern it.
        let mut plain = Request::new(Body::Empty);
        *plain.method_mut() = Method::GET;
        *plain.uri_mut() = uri;
        let mut response = forward(plain, &target).await?;
        if !response.status().is_success() {
            return Err(kubelet_error(response).await);
        }
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        Ok(response)
    }

    async fn stream(
        &self,
        info: &RequestInfo,
        pod: &Value,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let (namespace, name) = (encode(&info.namespace), encode(&info.name));
        let path = if info.subresource == "portforward" {
            format!("/portForward/{namespace}/{name}?{}", options::port_query(info)?)
        } else {
            let container = location::container(pod, info.param("container").unwrap_or(""))?;
            let query = options::stream_query(info);
            format!("/{}/{namespace}/{name}/{}?{query}", info.subresource, encode(&container))
        };
        if !is_upgrade(request.headers()) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let Some(target) = self.target(pod, path).await? else {
            return Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)));
        };
        forward(request, &target).await
    }

    /// A WebSocket opens with GET, but running something is creating: both rights are needed.
    async fn check_create(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
        let attributes = Attributes {
            user,
            verb: "create",
            resource_request: true,
            api_group: "",
            api_version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
            field_selector: "",
        };
        let answer = self.authorizers.authorize(&attributes).await;
        if answer.decision == Decision::Allow { Ok(()) } else { Err(forbidden(&attributes, &answer.reason)) }
    }
}

/// A kubelet's refusal as a Status: it answers plain text.
async fn kubelet_error(response: Response<Body>) -> Status {
    let code = response.status();
    let text = response.into_body().collect(MAX_ERROR).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::failure(404, "NotFound", text),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Status::internal(format!("the kubelet refused the API server: {text}"))
        }
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        other => Status::failure(other.as_u16(), "", text),
    }
}

#[async_trait]
impl Connector for PodStreams {
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool {
        group.is_empty()
            && resource == "pods"
            && matches!(subresource, "log" | "exec" | "attach" | "portforward")
    }

    async fn connect(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let allowed: &[Method] =
            if info.subresource == "log" { &[Method::GET] } else { &[Method::GET, Method::POST] };
        if !allowed.contains(request.method()) {
            return Err(Status::method_not_allowed());
        }
        if info.subresource != "log" && request.method() == Method::GET {
            self.check_create(user, info).await?;
        }
        let placed = |pod: &Value| !pod.str_at("spec.nodeName").is_empty();
        let pod = self.shared.find("pods", &info.namespace, &info.name, placed).await?;
        match info.subresource.as_str() {
            "log" => self.log(info, &pod, request).await,
            _ => self.stream(info, &pod, request).await,
        }
    }
}
