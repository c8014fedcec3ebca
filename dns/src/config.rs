//! Configuration, checked before a socket is opened.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use hickory_proto::rr::Name;
use hickory_resolver::system_conf::parse_resolv_conf;
use ipnet::IpNet;

use crate::zone::Zone;

/// What the binary gives a server. Becomes valid through [`Config::check`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to answer on, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Where `/metrics` is served.
    pub metrics: Vec<SocketAddr>,
    /// Domain of the cluster, such as `cluster.local`.
    pub domain: String,
    /// Addresses of the Service that leads here.
    pub service_addresses: Vec<IpAddr>,
    /// Ranges of the cluster's addresses: an address in them that nothing has, has no name anywhere.
    pub cluster_ranges: Vec<IpNet>,
    /// The host's resolver configuration, which says where everything else is asked; `None` for nowhere.
    pub resolv_conf: Option<PathBuf>,
    /// Domains that have servers of their own, as `domain=address[:port]`.
    pub stub_domains: Vec<String>,
    /// Clients that are answered.
    pub clients: Vec<IpNet>,
    /// Socket for the next process, and for inspection.
    pub control: PathBuf,
    /// What tells this process from one with other settings or of another build.
    pub fingerprint: String,
}

/// Networks that are not the internet's: private, shared, link-local and loopback addresses (RFC 1918, 6598, 3927,
/// 4193, 4291). Whoever asks from elsewhere is refused by default, so that no node is an open resolver.
pub const LOCAL_NETWORKS: [&str; 9] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "fc00::/7",
    "fe80::/10",
    "::1/128",
];

/// Servers of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stub {
    /// The domain, fully qualified.
    pub domain: Name,
    /// Its servers.
    pub servers: Vec<SocketAddr>,
}

/// A configuration that passed [`Config::check`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// As given.
    pub config: Config,
    /// The names that the server speaks for.
    pub zone: Zone,
    /// Domains with servers of their own.
    pub stubs: Vec<Stub>,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to listen on.
    #[error("no address to answer on")]
    NoAddress,
    /// Not a domain.
    #[error("{0:?} is not a domain name")]
    Domain(String),
    /// Not `domain=address`.
    #[error("{0:?} is not a domain with its server: give domain=address or domain=address:port")]
    Stub(String),
}

impl Config {
    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first thing that cannot work.
    pub fn check(self) -> Result<Settings, ConfigError> {
        if self.listen.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        let origin = domain(&self.domain).filter(|name| !name.is_root());
        let origin = origin.ok_or_else(|| ConfigError::Domain(self.domain.clone()))?;
        let mut stubs: Vec<Stub> = Vec::new();
        for text in &self.stub_domains {
            let (domain, server) = stub(text).ok_or_else(|| ConfigError::Stub(text.clone()))?;
            match stubs.iter_mut().find(|stub| stub.domain == domain) {
                Some(stub) => stub.servers.push(server),
                None => stubs.push(Stub { domain, servers: vec![server] }),
            }
        }
        // The longest domain comes first.
        stubs.sort_by_key(|stub| std::cmp::Reverse(stub.domain.num_labels()));
        let (reverse, servers) = (self.cluster_ranges.clone(), self.service_addresses.clone());
        Ok(Settings { zone: Zone { origin, reverse, servers }, stubs, config: self })
    }
}

fn domain(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?.to_lowercase();
    name.set_fqdn(true);
    Some(name)
}

fn stub(text: &str) -> Option<(Name, SocketAddr)> {
    let (name, server) = text.split_once('=')?;
    let address = server.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    Some((domain(name)?, address.or_else(|_| server.parse()).ok()?))
}

/// The servers that a resolv.conf names, without those that lead back to the cluster's DNS. None for a file that is not
/// there or names none.
pub fn upstreams(resolv_conf: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    let Ok(text) = std::fs::read(resolv_conf) else { return Vec::new() };
    let Ok((parsed, _)) = parse_resolv_conf(text) else { return Vec::new() };
    let servers = parsed.name_servers().iter().map(|server| server.ip);
    servers.filter(|server| !own.contains(server)).map(|server| SocketAddr::new(server, 53)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(domain: &str, stubs: &[&str]) -> Config {
        Config {
            listen: vec!["127.0.0.1:10053".parse().expect("address")],
            metrics: Vec::new(),
            domain: domain.into(),
            service_addresses: vec![],
            cluster_ranges: vec![],
            resolv_conf: None,
            stub_domains: stubs.iter().map(|s| (*s).to_owned()).collect(),
            clients: vec![],
            control: "/run/hawser/dns.sock".into(),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn domains_are_checked() {
        let settings = config("Cluster.LOCAL", &["a.example=192.0.2.1", "b.a.example=[2001:db8::1]:5353"]);
        let settings = settings.check().expect("valid");
        assert_eq!(settings.zone.origin.to_string(), "cluster.local.");
        let stubs: Vec<_> =
            settings.stubs.iter().map(|s| (s.domain.to_string(), s.servers.clone())).collect();
        assert_eq!(stubs[0], ("b.a.example.".into(), vec!["[2001:db8::1]:5353".parse().expect("address")]));
        assert_eq!(stubs[1], ("a.example.".into(), vec!["192.0.2.1:53".parse().expect("address")]));
        for wrong in ["", ".", "a..b"] {
            assert!(config(wrong, &[]).check().is_err(), "{wrong:?}");
        }
        for wrong in ["a", "a=", "a=b", "=192.0.2.1:x", "a=192.0.2.1:99999"] {
            assert_eq!(
                config("d", &[wrong]).check().err(),
                Some(ConfigError::Stub(wrong.into())),
                "{wrong:?}"
            );
        }
        let mut none = config("d", &[]);
        none.listen.clear();
        assert_eq!(none.check().err(), Some(ConfigError::NoAddress));
    }

    #[test]
    fn upstreams_leave_the_cluster_out() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "# x\nsearch a\nnameserver 10.96.0.10\nnameserver 192.0.2.7\n")
            .expect("written");
        let own = ["10.96.0.10".parse().expect("address")];
        assert_eq!(upstreams(&file, &own), ["192.0.2.7:53".parse().expect("address")]);
        assert!(upstreams(&dir.path().join("missing"), &own).is_empty());
        std::fs::write(&file, "search a\n").expect("written");
        assert!(upstreams(&file, &own).is_empty());
    }
}
