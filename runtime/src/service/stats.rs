//! What containers and pods use, in CRI's terms.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, SwapUsage, UInt64Value,
};

use super::Inner;
use super::store::{Container, CpuSample, DiskSample, Sandbox};
use crate::cgroup::stats::Usage;
use crate::error::Result;
use crate::fsutil;
use crate::image::pull::blocking;

/// How long a measured size of a writable layer is good for, nanoseconds: measuring walks its files.
const DISK_AGE: i64 = 10_000_000_000;

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu_usage(at: i64, used: u64, rate: Option<u64>) -> CpuUsage {
    CpuUsage { timestamp: at, usage_core_nano_seconds: value(used), usage_nano_cores: rate.and_then(value) }
}

fn memory_usage(at: i64, u: &Usage) -> MemoryUsage {
    MemoryUsage {
        timestamp: at,
        working_set_bytes: value(u.working_set),
        available_bytes: u.limit.and_then(|l| value(l.saturating_sub(u.working_set))),
        usage_bytes: value(u.memory),
        rss_bytes: value(u.rss),
        page_faults: value(u.faults),
        major_page_faults: value(u.major_faults),
    }
}

/// Bytes and inodes of a tree, without following symlinks and without leaving its file system.
pub fn tree_size(path: &Path) -> DiskSample {
    let mut sum = DiskSample { at: fsutil::now_nanos(), ..DiskSample::default() };
    let mut stack = vec![path.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            sum.inodes += 1;
            sum.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    sum
}

/// One interface of `/proc/PID/net/dev`.
fn interface(line: &str) -> Option<NetworkInterfaceUsage> {
    let (name, counters) = line.split_once(':')?;
    let c: Vec<u64> = counters.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    let at = |n: usize| c.get(n).copied().and_then(value);
    Some(NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: at(0),
        rx_errors: at(2),
        tx_bytes: at(8),
        tx_errors: at(10),
    })
}

fn network_usage(at: i64, net_dev: &str) -> NetworkUsage {
    let mut interfaces: Vec<_> =
        net_dev.lines().skip(2).filter_map(interface).filter(|i| i.name != "lo").collect();
    let first = (!interfaces.is_empty()).then(|| interfaces.remove(0));
    NetworkUsage { timestamp: at, default_interface: first, interfaces }
}

impl Inner {
    /// What a container uses.
    pub async fn container_stats(&self, container: &Arc<Container>) -> Result<ContainerStats> {
        let record = container.record.lock().clone();
        let at = fsutil::now_nanos();
        let usage = self.cgroups.usage(&record.group);
        let rate = usage.and_then(|u| {
            let mut last = container.cpu_sample.lock();
            let rate = match *last {
                // Too short a time gives noise; the last rate stands.
                Some(s) if at - s.at < 1_000_000 => return Some(s.rate),
                Some(s) => {
                    let span = u64::try_from(at - s.at).unwrap_or(u64::MAX).max(1);
                    let used = u.cpu_ns.saturating_sub(s.used);
                    Some((u128::from(used) * 1_000_000_000 / u128::from(span)) as u64)
                }
                None => None,
            };
            *last = Some(CpuSample { at, used: u.cpu_ns, rate: rate.unwrap_or(0) });
            rate
        });
        let upper = self.upper_dir(&record.id);
        let known = *container.disk.lock();
        let disk = match known {
            Some(d) if at - d.at < DISK_AGE => d,
            _ => {
                let path = upper.clone();
                let measured = blocking(move || Ok(tree_size(&path))).await?;
                *container.disk.lock() = Some(measured);
                measured
            }
        };
        Ok(ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id,
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            cpu: usage.map(|u| cpu_usage(at, u.cpu_ns, rate)),
            memory: usage.map(|u| memory_usage(at, &u)),
            writable_layer: Some(FilesystemUsage {
                timestamp: disk.at,
                fs_id: Some(FilesystemIdentifier { mountpoint: upper.display().to_string() }),
                used_bytes: value(disk.bytes),
                inodes_used: value(disk.inodes),
            }),
            swap: usage.map(|u| SwapUsage {
                timestamp: at,
                swap_available_bytes: None,
                swap_usage_bytes: value(u.swap),
            }),
        })
    }

    /// What a pod uses.
    pub async fn sandbox_stats(&self, sandbox: &Arc<Sandbox>) -> Result<PodSandboxStats> {
        let record = sandbox.record.lock().clone();
        let at = fsutil::now_nanos();
        let usage = self.cgroups.usage(&record.group);
        let mut containers = Vec::new();
        for container in self.store.containers_of(&record.id) {
            if container.phase.borrow().running() {
                containers.push(self.container_stats(&container).await?);
            }
        }
        let rates = containers.iter().filter_map(|c| c.cpu.as_ref()?.usage_nano_cores.map(|v| v.value));
        let rate = rates.reduce(|a, b| a + b);
        let network = record
            .netns
            .is_some()
            .then(|| std::fs::read_to_string(format!("/proc/{}/net/dev", record.shim_pid)).ok())
            .flatten()
            .map(|text| network_usage(at, &text));
        Ok(PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: record.id,
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: usage.map(|u| cpu_usage(at, u.cpu_ns, rate)),
                memory: usage.map(|u| memory_usage(at, &u)),
                network,
                process: usage.map(|u| ProcessUsage { timestamp: at, process_count: value(u.pids) }),
                containers,
            }),
            windows: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_proc_net_dev() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0: 10 2 3 0 0 0 0 0 20 4 5 0 0 0 0 0\n";
        let usage = network_usage(7, text);
        let first = usage.default_interface.unwrap_or_default();
        assert_eq!((first.name.as_str(), first.rx_bytes, first.tx_errors), ("eth0", value(10), value(5)));
        assert!(usage.interfaces.is_empty());
    }
}
