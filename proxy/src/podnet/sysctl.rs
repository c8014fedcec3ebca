//! Network settings below /proc/sys, as tables.

use std::io;

/// Why a setting could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct SysctlError {
    /// Its path.
    pub path: String,
    /// What went wrong.
    pub source: io::Error,
}

/// A setting of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    name: String,
    value: &'static str,
    /// A kernel without IPv6 has nothing to set.
    optional: bool,
}

impl Sysctl {
    /// Writes it, in the calling thread's network namespace.
    pub fn write(&self) -> Result<(), SysctlError> {
        match write_sysctl(&self.name, self.value) {
            Err(error) if self.optional && error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Writes a setting of the calling thread's network namespace.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = format!("/proc/sys/{name}");
    std::fs::write(&path, value).map_err(|source| SysctlError { path, source })
}

/// Of IPv4, of the node's end. Packets of a pod reach the stack from where its route leads, but answers of other
/// interfaces to it may not: the programs have checked the source already.
const HOST4: [(&str, &str); 2] = [("rp_filter", "0"), ("forwarding", "1")];
/// Of IPv6, of the node's end: no address, not even a link-local one, and no router solicitations.
const HOST6: [(&str, &str); 5] = [
    ("disable_ipv6", "0"),
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("accept_dad", "0"),
    ("forwarding", "1"),
];
/// Of IPv6, of the node's end when the pod has no such address.
const HOST_WITHOUT6: [(&str, &str); 1] = [("disable_ipv6", "1")];
/// Of IPv6, in the pod: its addresses are the node's to give, and known to be nobody else's.
const POD6: [(&str, &str); 3] = [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")];

fn table(
    family: &str,
    interface: &str,
    rows: &[(&'static str, &'static str)],
    optional: bool,
) -> Vec<Sysctl> {
    let row = |(name, value): &(&str, &'static str)| Sysctl {
        name: format!("net/{family}/conf/{interface}/{name}"),
        value,
        optional,
    };
    rows.iter().map(row).collect()
}

/// Settings of the node's end of a pod's pair.
pub fn of_host_end(interface: &str, v6: bool) -> Vec<Sysctl> {
    let six = match v6 {
        true => table("ipv6", interface, &HOST6, false),
        false => table("ipv6", interface, &HOST_WITHOUT6, true),
    };
    [table("ipv4", interface, &HOST4, false), six].concat()
}

/// Settings of the pod's end.
pub fn of_pod_end(interface: &str, v6: bool) -> Vec<Sysctl> {
    if v6 { table("ipv6", interface, &POD6, false) } else { Vec::new() }
}
