//! Components of the control plane that run alone, against any Kubernetes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use hawser_apiserver::tokens::jws::SigningKey;
use hawser_controllers::accounts::SignClaims;
use hawser_controllers::{Config, ControllerManager, SigningCa};
use hawser_scheduler::Scheduler;
use hawser_scheduler::plugins::Registry;

use crate::flags::{ControllerManagerFlags, ControllerSettings, SchedulerFlags};
use crate::{clients, signals};

/// `hawser scheduler`.
pub async fn scheduler(flags: SchedulerFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let client = clients::from_kubeconfig(&flags.kubeconfig).await?;
    let config = match &flags.config {
        None => hawser_scheduler::Config::default(),
        Some(path) => scheduler_config(path)?,
    };
    Scheduler::new(config, client)?.run(stop).await.context("scheduler")
}

fn scheduler_config(path: &Path) -> Result<hawser_scheduler::Config> {
    let what = || format!("reading {}", path.display());
    let document = serde_yaml_ng::from_str(&read(path)?).with_context(what)?;
    hawser_scheduler::Config::read(document, &Registry::new()).with_context(what)
}

/// `hawser controller-manager`.
pub async fn controller_manager(flags: ControllerManagerFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let client = clients::from_kubeconfig(&flags.kubeconfig).await?;
    let mut config = controller_config(&flags.settings);
    config.root_ca_pem = Some(match &flags.root_ca_file {
        Some(path) => read(path)?,
        None => ca_of_kubeconfig(&flags.kubeconfig)?,
    });
    if let (Some(certificate), Some(key)) =
        (&flags.cluster_signing_cert_file, &flags.cluster_signing_key_file)
    {
        config.signing_ca = Some(SigningCa { certificate_pem: read(certificate)?, key_pem: read(key)? });
    }
    if let Some(key) = &flags.service_account_private_key_file {
        config.sign_claims = Some(sign_claims(&read(key)?).with_context(|| format!("{}", key.display()))?);
    }
    config.legacy_token_unused_for = Duration::from_secs(flags.legacy_service_account_token_clean_up_period);
    if !flags.no_leader_elect {
        config.leader_election = Some(leader_config()?);
    }
    ControllerManager { config, client }.run(stop).await.context("controllers")
}

/// What the flags shared with `hawser server` say.
pub fn controller_config(settings: &ControllerSettings) -> Config {
    Config {
        controllers: settings.controllers.clone(),
        cluster_cidrs: settings.cluster_cidr.clone(),
        node_cidr_mask_size_v4: settings.node_cidr_mask_size_ipv4,
        node_cidr_mask_size_v6: settings.node_cidr_mask_size_ipv6,
        node_monitor_grace_period: Duration::from_secs(settings.node_monitor_grace_period),
        ..Config::default()
    }
}

/// Signs tokens with a key (PKCS#8, PEM).
pub fn sign_claims(key_pem: &str) -> Result<SignClaims> {
    let key = SigningKey::from_pem(key_pem).context("key of ServiceAccounts' tokens")?;
    Ok(Arc::new(move |claims| key.sign(claims).map_err(|e| e.to_string())))
}

fn leader_config() -> Result<hawser_controllers::runner::leader::LeaderConfig> {
    let host = nix::unistd::gethostname().context("reading the host's name")?;
    let identity = format!("{}_{}", host.to_string_lossy(), std::process::id());
    Ok(hawser_controllers::runner::leader::LeaderConfig::new("kube-controller-manager", identity))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn ca_of_kubeconfig(path: &Path) -> Result<String> {
    let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
    let cluster = kubeconfig
        .clusters
        .iter()
        .find_map(|c| c.cluster.as_ref())
        .context("a kubeconfig without cluster")?;
    if let Some(data) = &cluster.certificate_authority_data {
        let pem = base64::engine::general_purpose::STANDARD.decode(data.trim())?;
        return Ok(String::from_utf8(pem)?);
    }
    let file =
        cluster.certificate_authority.as_ref().context("the kubeconfig names no CA: give --root-ca-file")?;
    read(Path::new(file))
}
