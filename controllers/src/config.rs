//! The controller manager's configuration.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::Client;

use crate::accounts::SignClaims;
use crate::autoscaler;
use crate::clusterdns::ClusterDns;
use crate::runner::leader::LeaderConfig;

/// Which client a controller gets, by the name of its ServiceAccount in Kubernetes
/// (`deployment-controller`, …). With it every controller can have an identity of its own.
pub type ClientFor = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// A CA with which CertificateSigningRequests are signed.
#[derive(Clone)]
pub struct SigningCa {
    /// The CA's certificate, PEM.
    pub certificate_pem: String,
    /// The CA's private key, PEM (PKCS#8).
    pub key_pem: String,
}

impl std::fmt::Debug for SigningCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningCa").finish_non_exhaustive()
    }
}

/// Configuration of all controllers. [`Config::default`] is what Kubernetes has by default.
#[derive(Clone)]
pub struct Config {
    /// Which controllers run: `*` for all, `name` for one, `-name` for all but one.
    pub controllers: Vec<String>,
    /// Bounds how much work is done at once, per controller.
    pub concurrent_syncs: usize,
    /// Endpoints per EndpointSlice, at most.
    pub max_endpoints_per_slice: usize,
    /// The CA that clients check the API server's certificate with, PEM. Without it nothing is published.
    pub root_ca_pem: Option<String>,
    /// Signs the tokens in Secrets. Without it Secrets that ask for one stay without.
    pub sign_claims: Option<SignClaims>,
    /// For how long a token in a Secret must have been unused before it is cleaned up.
    pub legacy_token_unused_for: Duration,
    /// The CA that signs certificates. Without it none are signed.
    pub signing_ca: Option<SigningCa>,
    /// The longest validity of a signed certificate.
    pub signing_duration: Duration,
    /// Ranges that nodes get their pods' addresses from, at most one per family. Empty: none are given.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 range.
    pub node_cidr_mask_size_v4: u8,
    /// Prefix length of a node's IPv6 range.
    pub node_cidr_mask_size_v6: u8,
    /// The nodes' own DNS. Without it, pods ask whatever DNS its user brings.
    pub cluster_dns: Option<ClusterDns>,
    /// How often nodes' health is checked at least.
    pub node_monitor_period: Duration,
    /// After which time without a sign of life a node counts as unknown.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that has never given one.
    pub node_startup_grace_period: Duration,
    /// Nodes per second and zone whose pods may start being evicted.
    pub node_eviction_rate: f64,
    /// The same in a zone where many nodes are unhealthy.
    pub secondary_node_eviction_rate: f64,
    /// The share of unhealthy nodes from which a zone counts as disrupted.
    pub unhealthy_zone_threshold: f32,
    /// The size of zones up to which a disrupted zone is left alone.
    pub large_cluster_size_threshold: usize,
    /// How autoscalers decide.
    pub autoscaler: autoscaler::Settings,
    /// How many ended pods are kept; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
    /// How long a pod on a node that is gone is left before it is deleted.
    pub orphan_quarantine: Duration,
    /// Leader election; `None` for none.
    pub leader_election: Option<LeaderConfig>,
    /// A client per controller; `None`: the manager's.
    pub client_for: Option<ClientFor>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            concurrent_syncs: 8,
            max_endpoints_per_slice: 100,
            root_ca_pem: None,
            sign_claims: None,
            legacy_token_unused_for: Duration::from_secs(365 * 24 * 3600),
            signing_ca: None,
            signing_duration: Duration::from_secs(365 * 24 * 3600),
            cluster_cidrs: vec![IpNet::V4(ipnet::Ipv4Net::new_assert(
                std::net::Ipv4Addr::new(10, 244, 0, 0),
                16,
            ))],
            node_cidr_mask_size_v4: 24,
            node_cidr_mask_size_v6: 64,
            cluster_dns: None,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
            autoscaler: autoscaler::Settings::default(),
            terminated_pod_gc_threshold: 12_500,
            orphan_quarantine: Duration::from_secs(40),
            leader_election: None,
            client_for: None,
        }
    }
}

impl Config {
    /// Whether the controller of this name runs. The last entry that names it decides.
    pub fn runs(&self, name: &str) -> bool {
        let named = |entry: &&String| entry.trim_start_matches('-') == name;
        match self.controllers.iter().rev().find(named) {
            Some(entry) => !entry.starts_with('-'),
            None => self.controllers.iter().any(|entry| entry == "*"),
        }
    }

    /// Whether the configuration makes sense; the error says what does not.
    pub fn validate(&self) -> Result<(), String> {
        if self.cluster_cidrs.len() > 2 {
            return Err(format!("{} cluster CIDRs: there may be one per family", self.cluster_cidrs.len()));
        }
        if let [IpNet::V4(_), IpNet::V4(_)] | [IpNet::V6(_), IpNet::V6(_)] = self.cluster_cidrs.as_slice() {
            return Err("both cluster CIDRs are of the same family".to_owned());
        }
        for cidr in &self.cluster_cidrs {
            let mask = match cidr {
                IpNet::V4(_) => self.node_cidr_mask_size_v4,
                IpNet::V6(_) => self.node_cidr_mask_size_v6,
            };
            if mask < cidr.prefix_len() || mask > cidr.max_prefix_len() {
                return Err(format!("a node's mask of {mask} does not fit into the cluster CIDR {cidr}"));
            }
            if mask - cidr.prefix_len() > 16 {
                return Err(format!("more than 65536 node ranges of /{mask} in {cidr}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_chosen_by_name() {
        let mut config = Config::default();
        assert!(config.runs("deployment"));
        config.controllers = vec!["*".into(), "-deployment".into()];
        assert!(!config.runs("deployment") && config.runs("replicaset"));
        config.controllers = vec!["deployment".into()];
        assert!(config.runs("deployment") && !config.runs("replicaset"));
    }

    #[test]
    fn ranges_are_checked() {
        let mut config = Config::default();
        assert_eq!(config.validate(), Ok(()));
        config.node_cidr_mask_size_v4 = 8;
        assert!(config.validate().is_err());
        config = Config::default();
        config.cluster_cidrs = vec!["10.0.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()];
        assert!(config.validate().is_err());
    }
}
