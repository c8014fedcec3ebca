//! The dataplane's own identity: a ServiceAccount's token, asked for with the node's certificate.
//!
//! The dataplane reads the Services and Nodes of the whole cluster, which a node's certificate may not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_apiserver::pki::write_private;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::config::AuthInfo;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
const ACCOUNT: &str = "hawser-dataplane";
/// Lifetime that is asked for.
const LIFETIME: Duration = Duration::from_secs(3600);
/// A new token is got long before the old one ends, since readers look at the file once a minute.
const RENEW_AFTER: Duration = Duration::from_secs(1800);
const RETRY: Duration = Duration::from_secs(10);

/// The token's file and how it is kept current.
pub struct DataplaneIdentity {
    client: Client,
    node_name: String,
    file: PathBuf,
}

impl DataplaneIdentity {
    /// Gets the first token, with the node's own client, into a file below `data_dir` (mode 0600). The token is
    /// bound to the Node, so it waits until that is registered, and ends with it.
    pub async fn obtain(client: Client, node_name: &str, data_dir: &Path) -> Result<Self> {
        let nodes: Api<Node> = Api::all(client.clone());
        await_condition(nodes, node_name, |node: Option<&Node>| node.is_some()).await?;
        let file = data_dir.join("pki/dataplane.token");
        let identity = DataplaneIdentity { client, node_name: node_name.to_owned(), file };
        identity.renew().await?;
        Ok(identity)
    }

    /// A client with this identity. The file is read again while it is used.
    pub fn client(&self, server: &str, data_dir: &Path) -> Result<Client> {
        let mut config = kube::Config::new(server.parse().context("the server's URL")?);
        let ca = data_dir.join("pki/ca.crt");
        let pem = std::fs::read(&ca).with_context(|| format!("reading {}", ca.display()))?;
        config.root_cert = Some(
            rustls_pemfile::certs(&mut &pem[..])
                .map(|der| der.map(|der| der.to_vec()))
                .collect::<Result<_, _>>()
                .with_context(|| format!("reading {}", ca.display()))?,
        );
        let token_file = Some(self.file.display().to_string());
        config.auth_info = AuthInfo { token_file, ..AuthInfo::default() };
        Ok(Client::try_from(config)?)
    }

    /// Keeps the token current.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut wait = RENEW_AFTER;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = match self.renew().await {
                Ok(()) => RENEW_AFTER,
                Err(error) => {
                    tracing::warn!("renewing the dataplane's token: {error:#}");
                    RETRY
                }
            };
        }
    }

    async fn renew(&self) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: i64::try_from(LIFETIME.as_secs()).ok(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(self.node_name.clone()),
                    uid: None,
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer: TokenRequest =
            accounts.create_subresource("token", ACCOUNT, &Default::default(), &request).await?;
        let token =
            answer.status.and_then(|status| status.token).context("a token request without an answer")?;
        Ok(write_private(&self.file, token.as_bytes())?)
    }
}
