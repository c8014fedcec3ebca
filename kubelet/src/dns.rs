//! Names of a pod: hostname, /etc/hosts and resolver configuration. PURE, except for reading resolv.conf.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;
use std::path::Path;

/// Limits of the resolver, as the kubelet applies them.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// Longest host name that Linux takes; see sethostname(2).
const MAX_HOSTNAME: usize = 63;

/// The cluster's DNS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster<'a> {
    pub servers: &'a [IpAddr],
    pub domain: &'a str,
}

/// Reads a resolv.conf; one that is not there is empty.
pub(crate) fn host_resolver(path: &Path) -> DnsConfig {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => out.searches = words.map(|w| w.to_owned()).collect(),
            Some("options") => out.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    out
}

/// A pod's resolver configuration by its dnsPolicy and dnsConfig.
pub(crate) fn resolver(pod: &Pod, cluster: Cluster<'_>, host: &DnsConfig) -> DnsConfig {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let mut out = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirst" if host_network => host.clone(),
        "ClusterFirst" | "ClusterFirstWithHostNet" if !cluster.servers.is_empty() => {
            let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
            let d = cluster.domain;
            let mut searches = vec![format!("{ns}.svc.{d}"), format!("svc.{d}"), d.to_owned()];
            searches.extend(host.searches.iter().cloned());
            DnsConfig {
                servers: cluster.servers.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => host.clone(),
    };
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        out.servers.extend(own.nameservers.iter().flatten().cloned());
        out.searches.extend(own.searches.iter().flatten().cloned());
        for o in own.options.iter().flatten() {
            let name = o.name.clone().unwrap_or_default();
            // An option of the pod's replaces one of the same name.
            out.options.retain(|old| old.split(':').next() != Some(name.as_str()));
            out.options.push(match &o.value {
                Some(v) => format!("{name}:{v}"),
                None => name,
            });
        }
    }
    let unique = |list: Vec<String>| {
        let mut seen = std::collections::HashSet::new();
        list.into_iter().filter(|s| seen.insert(s.clone())).collect::<Vec<_>>()
    };
    out.servers = unique(out.servers);
    out.searches = unique(out.searches);
    out.servers.truncate(MAX_SERVERS);
    out.searches.truncate(MAX_SEARCHES);
    while out.searches.join(" ").len() > MAX_SEARCH_CHARS {
        out.searches.pop();
    }
    out
}

/// The pod's host name and, with a subdomain, its fully qualified one.
pub(crate) fn hostname(pod: &Pod, domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    let set = |o: Option<&String>| o.filter(|s| !s.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|s| s.hostname_override.as_ref())) {
        return (name, None);
    }
    let mut name = set(spec.and_then(|s| s.hostname.as_ref()))
        .unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    if name.len() > MAX_HOSTNAME {
        name.truncate(MAX_HOSTNAME);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let fqdn =
        set(spec.and_then(|s| s.subdomain.as_ref())).map(|sub| format!("{name}.{sub}.{ns}.svc.{domain}"));
    match (&fqdn, spec.and_then(|s| s.set_hostname_as_fqdn)) {
        (Some(full), Some(true)) if full.len() <= MAX_HOSTNAME + 1 => (full.clone(), fqdn),
        _ => (name, fqdn),
    }
}

/// The contents of /etc/hosts. With host networking they begin with the node's file.
pub(crate) fn hosts_file(pod: &Pod, ips: &[String], domain: &str, node_hosts: Option<&str>) -> String {
    let mut out = match node_hosts {
        Some(text) => format!("# Kubernetes-managed hosts file (host network).\n{text}"),
        None => {
            let mut out = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
                 ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\n\
                 fe00::2\tip6-allrouters\n",
            );
            let (name, fqdn) = hostname(pod, domain);
            for ip in ips {
                match &fqdn {
                    Some(full) if *full != name => out.push_str(&format!("{ip}\t{full}\t{name}\n")),
                    _ => out.push_str(&format!("{ip}\t{name}\n")),
                }
            }
            out
        }
    };
    let aliases = pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten());
    for (i, alias) in aliases.enumerate() {
        if i == 0 {
            out.push_str("\n# Entries added by HostAliases.\n");
        }
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
        out.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn policies() {
        let host = parse("# x\nnameserver 1.1.1.1\nsearch corp\noptions timeout:1\n");
        let servers = ["10.96.0.10".parse().unwrap()];
        let cluster = Cluster { servers: &servers, domain: "cluster.local" };
        let run = |spec| resolver(&pod(spec), cluster, &host);
        let first = run(json!({}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp"]);
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(run(json!({"dnsPolicy": "Default"})), host);
        assert_eq!(run(json!({"hostNetwork": true})), host);
        assert_eq!(run(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})), first);
        let own = run(json!({"dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["9.9.9.9"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!(
            (own.servers, own.searches, own.options),
            (vec!["9.9.9.9".to_owned()], vec!["a".to_owned()], vec!["ndots:2".to_owned()])
        );
        let merged = run(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
        assert_eq!(merged.options, ["ndots:1"]);
        let none = Cluster { servers: &[], domain: "cluster.local" };
        assert_eq!(resolver(&pod(json!({})), none, &host), host);
    }

    #[test]
    fn names() {
        assert_eq!(hostname(&pod(json!({})), "d"), ("p".into(), None));
        let with = pod(json!({"hostname": "h", "subdomain": "s", "hostAliases": [
            {"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}));
        assert_eq!(hostname(&with, "d"), ("h".into(), Some("h.s.ns.svc.d".into())));
        let text = hosts_file(&with, &["10.0.0.5".into()], "d", None);
        assert!(text.contains("10.0.0.5\th.s.ns.svc.d\th\n"));
        assert!(text.ends_with("1.2.3.4\tx\ty\n"));
        assert!(hosts_file(&with, &[], "d", Some("127.0.0.1 me\n")).contains("me"));
    }
}
