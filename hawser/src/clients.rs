//! Clients of the API: from a kubeconfig, or on the API server of the same process.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use hawser_apiserver::ApiServer;
use hawser_apiserver::access::UserInfo;
use hawser_apiserver::in_process::InProcessService;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A client for the current context of a kubeconfig file.
pub async fn from_kubeconfig(path: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{}: not usable", path.display()))?;
    Client::try_from(config).with_context(|| format!("{}: not usable", path.display()))
}

/// Makes clients that sit on the router of an API server in this process, with an identity each.
#[derive(Clone)]
pub struct InProcess {
    /// Somebody's service; only made to make others'.
    service: InProcessService,
}

impl InProcess {
    /// For an API server.
    pub fn new(apiserver: &ApiServer) -> Self {
        InProcess { service: apiserver.in_process(UserInfo::anonymous()) }
    }

    /// A client that is this user.
    pub fn client(&self, user: UserInfo) -> Client {
        Client::new(self.service.with_user(user), "default")
    }

    /// A client per controller: each is the ServiceAccount that Kubernetes' bootstrap roles are bound to.
    pub fn for_controllers(&self) -> hawser_controllers::config::ClientFor {
        let clients = self.clone();
        Arc::new(move |controller| {
            let user = UserInfo::new(
                format!("system:serviceaccount:kube-system:{controller}"),
                ["system:serviceaccounts", "system:serviceaccounts:kube-system"],
            );
            clients.client(user)
        })
    }
}
