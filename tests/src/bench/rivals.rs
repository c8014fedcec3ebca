//! PURE: Services of one endpoint as kube-proxy writes them for iptables and for nftables (pkg/proxy of Kubernetes 1.36):
//! the base chains and their jumps, and for each Service what a ClusterIP and, if it has one, a node port take.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// The mark of what is to be masqueraded, kube-proxy's default.
const MARK: &str = "0x4000";

/// A Service's port, and its one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// Number of the Service: its name.
    pub number: u32,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Address of the Service.
    pub address: Ipv4Addr,
    /// Its port; the endpoint's is the same.
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
    /// Address of the endpoint.
    pub endpoint: Ipv4Addr,
}

impl Port {
    /// kube-proxy's names end in 16 characters of a hash.
    fn id(&self) -> String {
        format!("{:08}{}{:05}", self.number, if self.protocol == "tcp" { "TCP" } else { "UDP" }, self.port)
    }

    fn name(&self) -> String {
        format!("default/s{}:p{}", self.number, self.port)
    }
}

/// Chains of a base chain, their conditions and what the jump says of itself.
const JUMPS_FILTER: [(&str, &str, &str, bool); 9] = [
    ("INPUT", "KUBE-EXTERNAL-SERVICES", "kubernetes externally-visible service portals", true),
    ("FORWARD", "KUBE-EXTERNAL-SERVICES", "kubernetes externally-visible service portals", true),
    ("INPUT", "KUBE-NODEPORTS", "kubernetes health check service ports", false),
    ("FORWARD", "KUBE-SERVICES", "kubernetes service portals", true),
    ("OUTPUT", "KUBE-SERVICES", "kubernetes service portals", true),
    ("FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules", false),
    ("INPUT", "KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall", true),
    ("OUTPUT", "KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall", true),
    ("FORWARD", "KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall", true),
];
const JUMPS_NAT: [(&str, &str, &str, bool); 3] = [
    ("OUTPUT", "KUBE-SERVICES", "kubernetes service portals", false),
    ("PREROUTING", "KUBE-SERVICES", "kubernetes service portals", false),
    ("POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules", false),
];

fn jumps(text: &mut String, jumps: &[(&str, &str, &str, bool)]) {
    for (from, to, comment, new) in jumps {
        let state = if *new { " -m conntrack --ctstate NEW" } else { "" };
        let _ = writeln!(text, "-A {from}{state} -m comment --comment \"{comment}\" -j {to}");
    }
}

/// What `iptables-restore` reads. `local`: the node's pods.
pub fn iptables(ports: &[Port], local: &str) -> String {
    let mut text = String::from(
        "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n",
    );
    jumps(&mut text, &JUMPS_FILTER);
    let _ = write!(
        text,
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK}/{MARK} -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
         --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n"
    );
    for port in ports {
        let id = port.id();
        let _ = write!(text, ":KUBE-SVC-{id} - [0:0]\n:KUBE-SEP-{id} - [0:0]\n");
        if port.node_port != 0 {
            let _ = writeln!(text, ":KUBE-EXT-{id} - [0:0]");
        }
    }
    jumps(&mut text, &JUMPS_NAT);
    let _ = write!(
        text,
        "-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE \
         --random-fully\n-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n"
    );
    for port in ports {
        let (id, name) = (port.id(), port.name());
        let Port { protocol, address, port: number, node_port, endpoint, .. } = port;
        let _ = write!(
            text,
            "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} -d {address} \
             --dport {number} -j KUBE-SVC-{id}\n\
             -A KUBE-SVC-{id} -m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} -d {address} \
             --dport {number} ! -s {local} -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-{id} -m comment --comment \"{name} -> {endpoint}:{number}\" -j KUBE-SEP-{id}\n\
             -A KUBE-SEP-{id} -m comment --comment {name} -s {endpoint} -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{id} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT \
             --to-destination {endpoint}:{number}\n"
        );
        if *node_port != 0 {
            let _ = write!(
                text,
                "-A KUBE-NODEPORTS -m comment --comment {name} -m {protocol} -p {protocol} --dport {node_port} \
                 -j KUBE-EXT-{id}\n\
                 -A KUBE-EXT-{id} -m comment --comment \"masquerade traffic for {name} external destinations\" \
                 -j KUBE-MARK-MASQ\n\
                 -A KUBE-EXT-{id} -j KUBE-SVC-{id}\n"
            );
        }
    }
    text.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in \
         this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
    text
}

/// Base chains: name, type, hook, priority, and the rules in them.
const BASE: [(&str, &str, &str, &str, &[&str]); 8] = [
    ("filter-prerouting-pre-dnat", "filter", "prerouting", "-110", &["ct state new jump firewall-check"]),
    ("filter-output-pre-dnat", "filter", "output", "-110", &["ct state new jump firewall-check"]),
    (
        "filter-input",
        "filter",
        "input",
        "0",
        &["ct state new jump nodeport-endpoints-check", "ct state new jump service-endpoints-check"],
    ),
    (
        "filter-forward",
        "filter",
        "forward",
        "0",
        &["ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"],
    ),
    (
        "filter-output",
        "filter",
        "output",
        "0",
        &["ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"],
    ),
    ("nat-prerouting", "nat", "prerouting", "-100", &["jump services"]),
    ("nat-output", "nat", "output", "-100", &["jump services"]),
    ("nat-postrouting", "nat", "postrouting", "100", &["jump masquerading"]),
];

/// Sets and maps that may be empty.
const EMPTY: [(&str, &str, &str); 3] = [
    ("map", "no-endpoint-services", "ipv4_addr . inet_proto . inet_service : verdict"),
    ("map", "no-endpoint-nodeports", "inet_proto . inet_service : verdict"),
    ("map", "firewall-ips", "ipv4_addr . inet_proto . inet_service : verdict"),
];

fn chain(text: &mut String, name: &str, rules: &[&str]) {
    let _ = write!(text, "chain {name} {{\n{}\n}}\n", rules.join("\n"));
}

fn elements(text: &mut String, kind: &str, name: &str, of: &str, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    let _ = write!(text, "{kind} {name} {{\ntype {of}\n");
    if !elements.is_empty() {
        let _ = writeln!(text, "elements = {{ {} }}", elements.join(", "));
    }
    text.push_str("}\n");
}

/// What `nft -f` reads. `local`: the node's pods; `node`: the address that node ports are open on; `range`: of Services.
pub fn nftables(ports: &[Port], local: &str, node: Ipv4Addr, range: &str) -> String {
    let service = |port: &Port| {
        format!("service-{}-default/s{}/{}/p{}", port.id(), port.number, port.protocol, port.port)
    };
    let external = |port: &Port| {
        format!("external-{}-default/s{}/{}/p{}", port.id(), port.number, port.protocol, port.port)
    };
    let mut text = String::from("table ip kube-proxy {\n");
    for (kind, name, of) in EMPTY {
        elements(&mut text, kind, name, of, std::iter::empty());
    }
    // One per Service, not one per port.
    let mut addresses: Vec<String> = ports.iter().map(|port| port.address.to_string()).collect();
    addresses.dedup();
    elements(&mut text, "set", "cluster-ips", "ipv4_addr", addresses.into_iter());
    elements(&mut text, "set", "nodeport-ips", "ipv4_addr", std::iter::once(node.to_string()));
    let mut hairpins: Vec<String> = ports
        .iter()
        .map(|p| format!("{} . {} . {} . {}", p.endpoint, p.endpoint, p.protocol, p.port))
        .collect();
    hairpins.sort();
    hairpins.dedup();
    elements(
        &mut text,
        "set",
        "hairpin-connections",
        "ipv4_addr . ipv4_addr . inet_proto . inet_service",
        hairpins.into_iter(),
    );
    for port in ports {
        let Port { protocol, port: number, endpoint, node_port, .. } = port;
        let to = format!(
            "meta l4proto {protocol} dnat ip addr . port to numgen random mod 1 map {{ 0 : {endpoint} . {number} }}"
        );
        chain(&mut text, &service(port), &[&to]);
        if *node_port != 0 {
            let mark = format!("mark set mark or {MARK}");
            chain(&mut text, &external(port), &[&mark, &format!("goto {}", service(port))]);
        }
    }
    let of_address = |port: &Port| {
        format!("{} . {} . {} : goto {}", port.address, port.protocol, port.port, service(port))
    };
    let kind = "ipv4_addr . inet_proto . inet_service : verdict";
    elements(&mut text, "map", "service-ips", kind, ports.iter().map(of_address));
    let of_node = |port: &Port| format!("{} . {} : goto {}", port.protocol, port.node_port, external(port));
    let with_port = ports.iter().filter(|port| port.node_port != 0);
    let kind = "inet_proto . inet_service : verdict";
    elements(&mut text, "map", "service-nodeports", kind, with_port.map(of_node));
    chain(&mut text, "reject-chain", &["reject"]);
    chain(
        &mut text,
        "service-endpoints-check",
        &["ip daddr . meta l4proto . th dport vmap @no-endpoint-services"],
    );
    chain(
        &mut text,
        "nodeport-endpoints-check",
        &["ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports"],
    );
    chain(&mut text, "firewall-check", &["ip daddr . meta l4proto . th dport vmap @firewall-ips"]);
    chain(
        &mut text,
        "cluster-ips-check",
        &["ip daddr @cluster-ips reject", &format!("ip daddr {{ {range} }} drop")],
    );
    chain(
        &mut text,
        "services",
        &[
            &format!("ip daddr @cluster-ips ip saddr != {local} mark set mark or {MARK}"),
            "ip daddr . meta l4proto . th dport vmap @service-ips",
            "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        ],
    );
    chain(
        &mut text,
        "masquerading",
        &[
            &format!("mark and {MARK} != 0 mark set mark xor {MARK} masquerade fully-random"),
            "ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random",
        ],
    );
    for (name, kind, hook, priority, rules) in BASE {
        let head = format!("type {kind} hook {hook} priority {priority};");
        let mut all = vec![head.as_str()];
        all.extend(rules);
        chain(&mut text, name, &all);
    }
    text.push_str("}\n");
    text
}
