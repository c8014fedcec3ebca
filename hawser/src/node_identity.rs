//! The identities of a node's own parts: ServiceAccounts' tokens, asked for with the node's certificate.
//!
//! The dataplane and the DNS server read the Services of the whole cluster, which a node's certificate may not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_apiserver::bootstrap::policy::{DATAPLANE_ACCOUNT, DNS_ACCOUNT};
use hawser_apiserver::pki::write_private;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::config::AuthInfo;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
/// Lifetime that is asked for.
const LIFETIME: Duration = Duration::from_secs(3600);
/// A new token is got long before the old one ends, since readers look at the file once a minute.
const RENEW_AFTER: Duration = Duration::from_secs(1800);
const RETRY: Duration = Duration::from_secs(10);

/// A part of a node with an identity of its own.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// The dataplane.
    Dataplane,
    /// The DNS server.
    Dns,
}

impl Part {
    fn account(self) -> &'static str {
        match self {
            Part::Dataplane => DATAPLANE_ACCOUNT,
            Part::Dns => DNS_ACCOUNT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Part::Dataplane => "dataplane",
            Part::Dns => "dns",
        }
    }
}

/// A token's file and how it is kept current.
pub struct NodeIdentity {
    part: Part,
    server: String,
    client: Client,
    node_name: String,
    ca: PathBuf,
    file: PathBuf,
}

impl NodeIdentity {
    /// Gets the first token, with the node's own client, into a file below `data_dir` (mode 0600). The token is
    /// bound to the Node, so it waits until that is registered, and ends with it.
    pub async fn obtain(
        part: Part,
        client: Client,
        server: &str,
        node_name: &str,
        data_dir: &Path,
    ) -> Result<Self> {
        let nodes: Api<Node> = Api::all(client.clone());
        await_condition(nodes, node_name, |node: Option<&Node>| node.is_some()).await?;
        let file = data_dir.join(format!("pki/{}.token", part.name()));
        let ca = data_dir.join("pki/ca.crt");
        let (server, node_name) = (server.to_owned(), node_name.to_owned());
        let identity = NodeIdentity { part, server, client, node_name, ca, file };
        identity.renew().await.with_context(|| format!("getting the token of {}", part.account()))?;
        Ok(identity)
    }

    /// A client with this identity. The file is read again while it is used.
    pub fn client(&self) -> Result<Client> {
        let mut config = kube::Config::new(self.server.parse().context("the server's URL")?);
        let ca = &self.ca;
        let pem = std::fs::read(ca).with_context(|| format!("reading {}", ca.display()))?;
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

    /// A kubeconfig with this identity, for another process. It names the token's file, so that it stays valid.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let name = self.part.name();
        let (ca, token) = (self.ca.display().to_string(), self.file.display().to_string());
        // JSON is YAML.
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {"server": self.server, "certificate-authority": ca}}],
            "users": [{"name": name, "user": {"tokenFile": token}}],
            "contexts": [{"name": name, "context": {"cluster": "cluster", "user": name}}],
            "current-context": name,
        });
        let path = self.file.with_extension("kubeconfig");
        write_private(&path, text.to_string().as_bytes())?;
        Ok(path)
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
                    tracing::warn!("renewing the token of {}: {error:#}", self.part.account());
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
            accounts.create_subresource("token", self.part.account(), &Default::default(), &request).await?;
        let token =
            answer.status.and_then(|status| status.token).context("a token request without an answer")?;
        Ok(write_private(&self.file, token.as_bytes())?)
    }
}
