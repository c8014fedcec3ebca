//! Connections through the API server: logs, exec, attach and port-forward to kubelets, and plain HTTP to nodes,
//! pods and services. Upgraded connections (WebSocket, SPDY) are passed on unread, byte for byte.

mod forward;
mod kubelet;
mod location;
mod messages;
mod options;
mod proxy;
mod resource;
mod rewrite;

use std::sync::Arc;

use hawser_api::status::Status;
use rustls::ClientConfig;
use serde_json::Value;

use crate::access::{Connector, GroupResource, Host, ObjectReader};
use crate::authz::Authorizers;
use crate::pki::{Pki, PkiError, kubelet_client_config, unverified_client_config};

/// All connectors.
///
/// # Errors
/// When the key material makes no TLS configuration.
pub fn connectors(
    host: &Host,
    authorizers: &Arc<Authorizers>,
    pki: &Pki,
) -> Result<Vec<Arc<dyn Connector>>, PkiError> {
    let shared = Shared {
        reader: Arc::clone(&host.reader),
        kubelet_tls: Arc::new(kubelet_client_config(pki)?),
        unverified_tls: Arc::new(unverified_client_config()?),
    };
    Ok(vec![
        Arc::new(kubelet::PodStreams { shared: shared.clone(), authorizers: Arc::clone(authorizers) }),
        Arc::new(proxy::HttpProxy { shared }),
    ])
}

/// Who asks kubelets what their nodes use.
///
/// # Errors
/// When the key material makes no TLS configuration.
pub fn kubelets(pki: &Pki) -> Result<Arc<dyn crate::usage::collect::Kubelets>, PkiError> {
    Ok(Arc::new(resource::Resource { tls: Arc::new(kubelet_client_config(pki)?) }))
}

/// What every connector needs.
#[derive(Clone)]
struct Shared {
    reader: Arc<dyn ObjectReader>,
    kubelet_tls: Arc<ClientConfig>,
    /// For pods and services, whose certificates nobody vouches for.
    unverified_tls: Arc<ClientConfig>,
}

impl Shared {
    /// One core object; `fresh` asks the store.
    async fn read(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        fresh: bool,
    ) -> Result<Option<Value>, Status> {
        let found = self.reader.get(&GroupResource::new("", resource), namespace, name, fresh).await;
        found.map_err(Status::internal)?.map(|o| o.decode()).transpose().map_err(Status::internal)
    }

    /// One core object, from the cache if it is good enough.
    async fn find(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        good: impl Fn(&Value) -> bool,
    ) -> Result<Value, Status> {
        if let Some(object) = self.read(resource, namespace, name, false).await?.filter(|o| good(o)) {
            return Ok(object);
        }
        let object = self.read(resource, namespace, name, true).await?;
        object.ok_or_else(|| Status::not_found("", resource, name))
    }
}

#[cfg(test)]
mod tests;
