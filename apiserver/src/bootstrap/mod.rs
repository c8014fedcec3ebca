//! Putting access control together, and what a fresh cluster contains.

pub mod flow;
pub mod objects;
pub mod policy;
pub mod pools;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::access::{Access, AccessBuilder, BootstrapObject, BootstrapPolicy, Host};
use crate::authn::RequestAuthenticator;
use crate::authn::bearer::Bearer;
use crate::authz::follow::{follow_nodes, follow_rbac};
use crate::authz::node::NodeAuthorizer;
use crate::authz::reviews::{AccessReviews, SelfReviews};
use crate::authz::{Authorizers, RbacAuthorizer};
use crate::pki::{Pki, write_private};
use crate::tokens::ServiceAccountTokens;
use crate::tokens::legacy::LegacyTokens;
use crate::tokens::node_token::{BootstrapToken, NodeToken};
use crate::tokens::request::TokenRequests;
use crate::tokens::review::TokenReviews;
use crate::usage::Usage;

/// The API of migrations of what is stored, which is off by default.
pub const STORAGE_MIGRATION: &str = "storagemigration.k8s.io/v1beta1";

/// Settings of access control.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// Key material.
    pub pki: Arc<Pki>,
    /// Issuer of ServiceAccount tokens, `https://kubernetes.default.svc` by default.
    pub issuer: String,
    /// Audiences of the API server; the issuer alone when empty.
    pub api_audiences: Vec<String>,
    /// Whether requests without credentials are `system:anonymous` everywhere rather than 401 outside health and
    /// version. The default roles forbid them all but health and version either way.
    pub anonymous: bool,
    /// Where the join token is kept (mode 0600); None for a server that nodes do not join by token.
    pub node_token_file: Option<PathBuf>,
    /// Whether the kubelets are asked for what their nodes and pods use, to serve `metrics.k8s.io`.
    pub usage: bool,
    /// Whether the controller that migrates what is stored ([`STORAGE_MIGRATION`]) has its role, with which it may write
    /// everything.
    pub storage_migration: bool,
    /// Whether there are address pools of load balancers (`loadbalancerippools.hawser.io`).
    pub address_pools: bool,
}

impl AccessConfig {
    /// The defaults over some key material.
    pub fn new(pki: Arc<Pki>) -> Self {
        Self {
            pki,
            issuer: "https://kubernetes.default.svc".to_owned(),
            api_audiences: Vec::new(),
            anonymous: true,
            node_token_file: None,
            usage: false,
            address_pools: false,
            storage_migration: false,
        }
    }
}

#[async_trait]
impl AccessBuilder for AccessConfig {
    async fn build(&self, host: Host) -> Result<Access, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let reader = Arc::clone(&host.reader);
        let tokens = ServiceAccountTokens::new(
            &self.pki.service_account_key,
            &self.issuer,
            self.api_audiences.clone(),
            Arc::clone(&reader),
        );
        let tokens = Arc::new(tokens.map_err(|e| format!("service account key: {e}"))?);
        let (index, rbac_ready) = follow_rbac(&*reader, &host.stop).map_err(|e| text(&e))?;
        let followed = follow_nodes(&*reader, &host.stop).map_err(|e| text(&e))?;
        let rules = policy::node_rules().map_err(|e| text(&e))?.into();
        let authorizers = Arc::new(Authorizers {
            node: NodeAuthorizer { followed, rules },
            rbac: RbacAuthorizer { index, ready: rbac_ready },
        });
        let legacy = LegacyTokens::new(Arc::clone(&tokens), Arc::clone(&host.local));
        let bearer = Arc::new(Bearer::new(Arc::clone(&tokens), legacy, Arc::clone(&reader)));
        let mut bootstrap = objects::bootstrap_objects(&self.pki.ca.cert_pem, self.storage_migration)
            .map_err(|e| text(&e))?;
        if let Some(path) = &self.node_token_file {
            let token = load_or_create_node_token(path, &self.pki)?;
            let object = token.token.secret_object();
            bootstrap.push(BootstrapObject { object, policy: BootstrapPolicy::CreateOnly });
        }
        if self.address_pools {
            let object = pools::definition();
            bootstrap.push(BootstrapObject { object, policy: BootstrapPolicy::ReconcileSpec });
        }
        let usage = self.usage.then(Arc::<Usage>::default);
        if let Some(usage) = &usage {
            let kubelets = crate::streaming::kubelets(&self.pki).map_err(|e| text(&e))?;
            let (usage, stop) = (Arc::clone(usage), host.stop.clone());
            tokio::spawn(crate::usage::collect::run(usage, Arc::clone(&reader), kubelets, stop));
        }
        let (configuration, keys) = (Arc::clone(&tokens), Arc::clone(&tokens));
        Ok(Access {
            authenticator: Arc::new(RequestAuthenticator { bearer: Arc::clone(&bearer) }),
            anonymous: self.anonymous,
            admission: crate::admission::plugins(&host, &authorizers),
            connectors: crate::streaming::connectors(&host, &authorizers, &self.pki).map_err(|e| text(&e))?,
            virtuals: vec![
                Arc::new(AccessReviews { authorizers: Arc::clone(&authorizers) }),
                Arc::new(SelfReviews),
                Arc::new(TokenReviews { bearer }),
                Arc::new(TokenRequests { tokens }),
            ],
            authorizer: authorizers,
            usage,
            documents: vec![
                (
                    "/.well-known/openid-configuration".to_owned(),
                    Arc::new(move || configuration.openid_configuration()),
                ),
                ("/openid/v1/jwks".to_owned(), Arc::new(move || keys.jwks())),
            ],
            bootstrap,
        })
    }
}

/// Reads the join token, or makes one on first start.
fn load_or_create_node_token(path: &Path, pki: &Pki) -> Result<NodeToken, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let token: NodeToken = text.parse().map_err(|e| format!("{}: {e}", path.display()))?;
            let digest = pki.ca_digest().map_err(|e| e.to_string())?;
            if token.ca_digest != digest {
                return Err(format!("{}: the token is for another CA", path.display()));
            }
            Ok(token)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ca_digest = pki.ca_digest().map_err(|e| e.to_string())?;
            let token = NodeToken { ca_digest, token: BootstrapToken::generate() };
            write_private(path, format!("{token}\n").as_bytes()).map_err(|e| e.to_string())?;
            Ok(token)
        }
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
