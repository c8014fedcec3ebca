//! Facts about the machine.

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What the machine has: cpu, memory, ephemeral-storage and pods.
pub(crate) fn capacity(data_dir: &Path, max_pods: u32) -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut out = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", memory_kib().unwrap_or(0)))),
        ("pods".to_owned(), Quantity(max_pods.to_string())),
    ]);
    if let Ok(s) = nix::sys::statvfs::statvfs(data_dir) {
        let kib = s.blocks().saturating_mul(s.fragment_size()) / 1024;
        out.insert("ephemeral-storage".to_owned(), Quantity(format!("{kib}Ki")));
    }
    out
}

/// The machine's memory in KiB; see proc_meminfo(5).
fn memory_kib() -> Option<i64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn meminfo(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The machine's memory in bytes.
pub(crate) fn memory_bytes() -> i64 {
    memory_kib().unwrap_or(0).saturating_mul(1024)
}

/// Go's name of the machine's architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `Node.status.nodeInfo`.
pub(crate) fn system_info(version: &str, runtime: &str) -> NodeSystemInfo {
    let read = |p: &str| fs::read_to_string(p).map(|t| t.trim().to_owned()).unwrap_or_default();
    let machine_id = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime.to_owned(),
        kernel_version: kernel.unwrap_or_default(),
        kube_proxy_version: String::new(),
        kubelet_version: version.to_owned(),
        operating_system: "linux".to_owned(),
        os_image: os_name(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        swap: None,
    }
}

/// The distribution's name; see os-release(5).
fn os_name(text: &str) -> String {
    let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or("Linux", |v| v.trim_matches('"')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        assert_eq!(meminfo("MemTotal:       24574 kB\nMemFree: 1 kB\n"), Some(24574));
        assert_eq!(meminfo(""), None);
        assert_eq!(os_name("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_name(""), "Linux");
        let capacity = capacity(Path::new("/"), 110);
        for name in ["cpu", "memory", "ephemeral-storage"] {
            assert!(crate::resources::units(&capacity[name]).unwrap() > 0, "{name}");
        }
    }
}
