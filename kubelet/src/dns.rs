//! Names of a pod: hostname, /etc/hosts and resolver configuration. PURE, except for reading resolv.conf.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;
use std::path::Path;

/// Limits of the resolver, as the kubelet applies them.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// Longest name of a domain; some resolvers (glibc 2.28) abort at a longer one.
const MAX_DOMAIN: usize = 253;
/// Longest host name that a pod is given, and the longest that Linux takes (sethostname(2)).
const MAX_HOSTNAME: usize = 63;
const MAX_NODENAME: usize = 64;

/// The cluster's DNS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster<'a> {
    pub servers: &'a [IpAddr],
    pub domain: &'a str,
}

/// Reads the host's resolv.conf; one that is not there is empty. Without a path there is no resolver, which is said as
/// resolvers understand it: the server is this host, and nothing is searched.
pub(crate) fn host_resolver(path: &Path, node_ips: &[IpAddr]) -> DnsConfig {
    if !path.as_os_str().is_empty() {
        return parse(&std::fs::read_to_string(path).unwrap_or_default());
    }
    let loopback = |ip: &IpAddr| if ip.is_ipv4() { "127.0.0.1" } else { "::1" }.to_owned();
    DnsConfig {
        servers: unique(node_ips.iter().map(loopback).collect()),
        searches: vec![".".to_owned()],
        options: Vec::new(),
    }
}

fn parse(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            // The last line of this kind counts. A dot at a domain's end says nothing.
            Some("search") => {
                let domains = words.filter(|w| *w != ".");
                out.searches = domains.map(|w| w.strip_suffix('.').unwrap_or(w).to_owned()).collect();
            }
            Some("options") => words.for_each(|option| set_option(&mut out.options, option.to_owned())),
            _ => {}
        }
    }
    out
}

/// An option replaces one of the same name.
fn set_option(options: &mut Vec<String>, option: String) {
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    options.retain(|old| name(old) != name(&option));
    options.push(option);
}

fn unique(list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    list.into_iter().filter(|s| seen.insert(s.clone())).collect()
}

/// Reason and message of a warning about a pod's resolver configuration.
pub(crate) type Warning = (&'static str, String);

/// A pod's resolver configuration by its dnsPolicy and dnsConfig, and what of it could not be had.
pub(crate) fn resolver(pod: &Pod, cluster: Cluster<'_>, host: &DnsConfig) -> (DnsConfig, Vec<Warning>) {
    let mut warnings = Vec::new();
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let mut out = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirst" if host_network => host.clone(),
        "ClusterFirst" | "ClusterFirstWithHostNet" if cluster.servers.is_empty() => {
            let name = |part: &Option<String>| part.clone().unwrap_or_default();
            let m = &pod.metadata;
            warnings.push((
                "MissingClusterDNS",
                format!(
                    "pod: \"{}_{}({})\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
                    name(&m.name), name(&m.namespace), name(&m.uid)
                ),
            ));
            host.clone()
        }
        "ClusterFirst" | "ClusterFirstWithHostNet" => {
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
            let value = o.value.as_ref().filter(|value| !value.is_empty());
            set_option(
                &mut out.options,
                value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            );
        }
    }
    out.servers = unique(out.servers);
    out.searches = unique(out.searches);
    if out.servers.len() > MAX_SERVERS {
        out.servers.truncate(MAX_SERVERS);
        let applied = out.servers.join(" ");
        let message = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {applied}"
        );
        warnings.push(("DNSConfigForming", message));
    }
    let wanted = out.searches.len();
    out.searches.truncate(MAX_SEARCHES);
    out.searches.retain(|domain| domain.len() <= MAX_DOMAIN);
    while out.searches.join(" ").len() > MAX_SEARCH_CHARS {
        out.searches.pop();
    }
    if out.searches.len() < wanted {
        let applied = out.searches.join(" ");
        let message = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {applied}"
        );
        warnings.push(("DNSConfigForming", message));
    }
    (out, warnings)
}

/// The pod's host name and, with a subdomain, its fully qualified one.
pub(crate) fn hostname(pod: &Pod, domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    let set = |o: Option<&String>| o.filter(|s| !s.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|s| s.hostname_override.as_ref())) {
        return (cut(name), None);
    }
    let name = cut(set(spec.and_then(|s| s.hostname.as_ref()))
        .unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default()));
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let fqdn =
        set(spec.and_then(|s| s.subdomain.as_ref())).map(|sub| format!("{name}.{sub}.{ns}.svc.{domain}"));
    (name, fqdn)
}

fn cut(mut name: String) -> String {
    if name.len() > MAX_HOSTNAME {
        name.truncate(MAX_HOSTNAME);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    name
}

/// The host name that the kernel is told.
///
/// # Errors
/// The fully qualified one is asked for and too long, in the kubelet's words.
pub(crate) fn nodename(pod: &Pod, domain: &str) -> Result<String, String> {
    let as_fqdn = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    match hostname(pod, domain) {
        (_, Some(full)) if as_fqdn && full.len() > MAX_NODENAME => Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({MAX_NODENAME} characters is the max, {} characters requested)",
            full.len()
        )),
        (_, Some(full)) if as_fqdn => Ok(full),
        (name, _) => Ok(name),
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
                    Some(full) => out.push_str(&format!("{ip}\t{full}\t{name}\n")),
                    None => out.push_str(&format!("{ip}\t{name}\n")),
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
        let host = parse(
            "# x\nnameserver 1.1.1.1\nsearch old\nsearch corp. .\noptions timeout:2\noptions timeout:1\n",
        );
        let servers = ["10.96.0.10".parse().unwrap()];
        let cluster = Cluster { servers: &servers, domain: "cluster.local" };
        let run = |spec| {
            let (config, warnings) = resolver(&pod(spec), cluster, &host);
            assert_eq!(warnings, []);
            config
        };
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
        let (config, warnings) = resolver(&pod(json!({})), none, &host);
        assert_eq!((config, warnings.len(), warnings[0].0), (host, 1, "MissingClusterDNS"));
        let nowhere = host_resolver(Path::new(""), &servers);
        assert_eq!((nowhere.servers, nowhere.searches), (vec!["127.0.0.1".to_owned()], vec![".".to_owned()]));
    }

    #[test]
    fn limits() {
        let cluster = Cluster { servers: &["10.96.0.10".parse().unwrap()], domain: "d" };
        let run = |config| resolver(&pod(json!({"dnsConfig": config})), cluster, &DnsConfig::default());
        let (config, warnings) = run(json!({"nameservers": ["9.9.9.1", "9.9.9.2", "9.9.9.3", "9.9.9.1"]}));
        assert_eq!(config.servers, ["10.96.0.10", "9.9.9.1", "9.9.9.2"]);
        let message = "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 10.96.0.10 9.9.9.1 9.9.9.2";
        assert_eq!(warnings, [("DNSConfigForming", message.to_owned())]);
        let many: Vec<String> = (0..32).map(|n| format!("a{n}")).collect();
        let (config, warnings) = run(json!({"searches": many}));
        assert_eq!((config.searches.len(), warnings.len()), (32, 1));
        assert!(warnings[0].1.starts_with("Search Line limits were exceeded"));
        let (config, warnings) = run(json!({"searches": ["x".repeat(254)]}));
        assert_eq!((config.searches.len(), warnings.len()), (3, 1));
        let long: Vec<String> = (0..20).map(|n| format!("{n:02}{}", "y".repeat(198))).collect();
        let (config, warnings) = run(json!({"searches": long}));
        assert!(config.searches.join(" ").len() <= MAX_SEARCH_CHARS && config.searches.len() == 13);
        assert_eq!(warnings.len(), 1);
        assert!(run(json!({"searches": ["one", "one"]})).1.is_empty());
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
        let fqdn = pod(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
        assert_eq!(nodename(&fqdn, "d"), Ok("h.s.ns.svc.d".into()));
        assert!(hosts_file(&fqdn, &["10.0.0.5".into()], "d", None).contains("10.0.0.5\th.s.ns.svc.d\th\n"));
        assert_eq!(nodename(&with, "d"), Ok("h".into()));
        let error = nodename(&fqdn, &"d".repeat(60)).expect_err("too long");
        assert!(
            error.ends_with("is too long (64 characters is the max, 71 characters requested)"),
            "{error}"
        );
        assert_eq!(nodename(&pod(json!({"setHostnameAsFQDN": true})), "d"), Ok("p".into()));
    }
}
