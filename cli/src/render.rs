//! PURE: tables, with the columns that Cilium's operators know.

use comfy_table::{ContentArrangement, Table, presets};

use crate::proto::{CtEntry, Endpoint, Frontend, IpcacheEntry, L4Addr, Metric};

fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn l4(address: Option<&L4Addr>) -> String {
    let text = |a: &L4Addr| match a.address.contains(':') {
        true => format!("[{}]:{}/{}", a.address, a.port, a.protocol),
        false => format!("{}:{}/{}", a.address, a.port, a.protocol),
    };
    address.map_or_else(|| "-".to_string(), text)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_string() } else { text.to_string() }
}

/// One row per backend; a frontend that refuses or drops has one row too.
pub fn lb(frontends: &[Frontend]) -> String {
    table(
        &[
            "SERVICE ADDRESS",
            "TYPE",
            "REV_NAT",
            "SLOT (BACKEND ID)",
            "BACKEND ADDRESS",
            "STATE",
            "OPEN",
            "ALGORITHM",
            "FLAGS",
        ],
        frontends.iter().flat_map(lb_rows),
    )
}

fn lb_rows(frontend: &Frontend) -> Vec<Vec<String>> {
    let row = |slot: String, address: String, state: &str, open: String| {
        vec![
            l4(frontend.address.as_ref()),
            or_dash(&frontend.kind),
            frontend.rev_nat_id.to_string(),
            slot,
            address,
            state.to_string(),
            open,
            or_dash(&frontend.algorithm),
            or_dash(&lb_flags(frontend)),
        ]
    };
    let has = |flag: &str| frontend.flags.iter().any(|held| held == flag);
    let mut scopes = vec![("", &frontend.backends)];
    if has("two-scopes") {
        scopes.push(("external ", &frontend.external_backends));
    }
    let nobody = if has("drop-if-empty") { "(dropped)" } else { "(refused)" };
    let mut rows = Vec::new();
    for (scope, backends) in scopes {
        if backends.is_empty() {
            rows.push(row(or_dash(scope.trim_end()), nobody.to_string(), "-", "-".to_string()));
        }
        rows.extend(backends.iter().map(|backend| {
            let slot = format!("{scope}{} ({})", backend.slot, backend.id);
            row(slot, l4(backend.address.as_ref()), &backend.state, backend.open_connections.to_string())
        }));
    }
    rows
}

/// The flags, with what belongs to them.
fn lb_flags(frontend: &Frontend) -> String {
    let flags = frontend.flags.iter().map(|flag| match flag.as_str() {
        "affinity" => format!("affinity={}s", frontend.affinity_timeout_s),
        "source-ranges" => format!("source-ranges={}", frontend.source_ranges.join("+")),
        flag => flag.to_string(),
    });
    flags.collect::<Vec<_>>().join(",")
}

/// One row per pod.
pub fn endpoints(endpoints: &[Endpoint]) -> String {
    let rows = endpoints.iter().map(|endpoint| {
        let pod = match endpoint.pod_name.as_str() {
            "" => "-".to_string(),
            name => format!("{}/{name}", endpoint.pod_namespace),
        };
        vec![
            endpoint.address.clone(),
            pod,
            endpoint.ifindex.to_string(),
            or_dash(&endpoint.interface),
            endpoint.pod_mac.clone(),
            endpoint.host_mac.clone(),
            or_dash(&endpoint.sandbox_id),
        ]
    });
    table(&["IP ADDRESS", "POD", "IFINDEX", "INTERFACE", "POD MAC", "NODE MAC", "SANDBOX"], rows)
}

/// One row per prefix.
pub fn ipcache(entries: &[IpcacheEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let via = match (entry.node.as_str(), entry.on_link) {
            ("", _) => "-",
            (_, true) => "link",
            (_, false) => "route",
        };
        vec![entry.prefix.clone(), entry.identity.clone(), or_dash(&entry.node), via.to_string()]
    });
    table(&["IP PREFIX", "IDENTITY", "NODE", "VIA"], rows)
}

/// One row per direction of a flow.
pub fn ct(entries: &[CtEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let idle = format!("{}.{:03}s", entry.idle_ms / 1000, entry.idle_ms % 1000);
        vec![
            l4(entry.source.as_ref()),
            l4(entry.destination.as_ref()),
            l4(entry.new_source.as_ref()),
            l4(entry.new_destination.as_ref()),
            or_dash(&entry.flags.join(",")),
            entry.rev_nat_id.to_string(),
            entry.backend_id.to_string(),
            entry.packets.to_string(),
            entry.bytes.to_string(),
            idle,
        ]
    });
    let columns = [
        "SOURCE",
        "DESTINATION",
        "NEW SOURCE",
        "NEW DESTINATION",
        "FLAGS",
        "REV_NAT",
        "BACKEND ID",
        "PACKETS",
        "BYTES",
        "IDLE",
    ];
    table(&columns, rows)
}

/// One row per counter.
pub fn metrics(metrics: &[Metric]) -> String {
    let rows = metrics.iter().map(|metric| {
        let outcome = if metric.dropped { "dropped" } else { "passed" };
        vec![
            metric.reason.clone(),
            metric.direction.clone(),
            outcome.to_string(),
            metric.packets.to_string(),
            metric.bytes.to_string(),
        ]
    });
    table(&["REASON", "DIRECTION", "OUTCOME", "PACKETS", "BYTES"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Backend;

    fn addr(address: &str, port: u32) -> Option<L4Addr> {
        Some(L4Addr { address: address.into(), port, protocol: "TCP".into() })
    }

    #[test]
    fn a_frontend_that_refuses_is_shown() {
        let backend = Backend {
            id: 7,
            address: addr("10.244.1.2", 8080),
            slot: 1,
            state: "active".into(),
            open_connections: 3,
        };
        let frontends = [
            Frontend {
                address: addr("10.96.0.1", 443),
                rev_nat_id: 1,
                kind: "ClusterIP".into(),
                algorithm: "default".into(),
                backends: vec![backend.clone()],
                ..Default::default()
            },
            Frontend {
                address: addr("fd00::2", 80),
                rev_nat_id: 2,
                backends: vec![backend],
                flags: vec!["two-scopes".into(), "affinity".into(), "drop-if-empty".into()],
                affinity_timeout_s: 60,
                ..Default::default()
            },
            Frontend { address: addr("10.96.0.2", 80), rev_nat_id: 3, ..Default::default() },
        ];
        let text = lb(&frontends);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["SERVICE", "ADDRESS", "TYPE", "REV_NAT"]);
        let first = [
            "10.96.0.1:443/TCP",
            "ClusterIP",
            "1",
            "1",
            "(7)",
            "10.244.1.2:8080/TCP",
            "active",
            "3",
            "default",
            "-",
        ];
        assert_eq!(lines[1], first);
        let flags = "two-scopes,affinity=60s,drop-if-empty";
        let second =
            ["[fd00::2]:80/TCP", "-", "2", "1", "(7)", "10.244.1.2:8080/TCP", "active", "3", "-", flags];
        assert_eq!(lines[2], second);
        assert_eq!(lines[3], ["[fd00::2]:80/TCP", "-", "2", "external", "(dropped)", "-", "-", "-", flags]);
        assert_eq!(lines[4], ["10.96.0.2:80/TCP", "-", "3", "-", "(refused)", "-", "-", "-", "-"]);
    }

    #[test]
    fn idle_times_and_drops_are_readable() {
        let entry = CtEntry { source: addr("1.2.3.4", 5), idle_ms: 61_007, ..Default::default() };
        assert!(ct(&[entry]).contains("61.007s"));
        let metric = Metric { reason: "No backend".into(), dropped: true, packets: 3, ..Default::default() };
        assert!(metrics(&[metric]).contains("dropped"));
        assert_eq!(ipcache(&[]).lines().count(), 1, "the header alone");
    }
}
