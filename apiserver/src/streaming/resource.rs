//! `/metrics/resource` of a node's kubelet.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use rustls::ClientConfig;
use serde_json::Value;

use super::forward::{Target, forward};
use super::location;
use crate::body::Body;
use crate::usage::collect::Kubelets;

/// The longest answer that is read, in bytes: some hundreds of pods take a tenth of it.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

pub(super) struct Resource {
    pub(super) tls: Arc<ClientConfig>,
}

#[async_trait]
impl Kubelets for Resource {
    async fn resource_metrics(&self, node: &Bytes) -> Result<String, String> {
        let node: Value = serde_json::from_slice(node).map_err(|e| e.to_string())?;
        let (host, port) = location::kubelet_address(&node).map_err(|status| status.message)?;
        let path = "/metrics/resource".to_owned();
        let target = Target { host, port, tls: Some(Arc::clone(&self.tls)), path };
        let response = forward(Request::new(Body::Empty), &target).await.map_err(|status| status.message)?;
        if !response.status().is_success() {
            return Err(format!("the kubelet answers {}", response.status()));
        }
        let text = response.into_body().collect(MAX_ANSWER).await.map_err(|e| e.to_string())?;
        String::from_utf8(text.to_vec()).map_err(|e| e.to_string())
    }
}
