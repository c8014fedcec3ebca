//! From CRI's `LinuxContainerResources` to writes into cgroup files, v1 and v2. Pure.

use std::collections::BTreeMap;

use k8s_cri::v1::LinuxContainerResources;

use crate::error::{Error, Result};

/// Limits of a cgroup; zero or empty means "leave alone".
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Relative weight, 1024 = one CPU's worth of request.
    pub cpu_shares: i64,
    /// CFS quota in microseconds; negative means none.
    pub cpu_quota: i64,
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// Bytes; negative means unlimited.
    pub memory_limit: i64,
    /// Memory and swap together, bytes.
    pub memory_swap_limit: i64,
    /// CPU list.
    pub cpuset_cpus: String,
    /// Memory node list.
    pub cpuset_mems: String,
    /// Processes; negative means unlimited.
    pub pids_limit: i64,
    /// Further v2 files and values.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// From CRI's message. `unified`'s `pids.max` becomes the pids limit on both versions.
    ///
    /// # Errors
    /// `InvalidArgument` when a value cannot be read.
    pub fn from_cri(r: &LinuxContainerResources) -> Result<Self> {
        let mut unified: BTreeMap<_, _> = r.unified.clone().into_iter().collect();
        let pids_limit = match unified.remove("pids.max").as_deref() {
            None => 0,
            Some("max") => -1,
            Some(n) => n
                .parse()
                .map_err(|_| Error::InvalidArgument(format!("pids.max {n:?} is neither a number nor max")))?,
        };
        if let Some(bad) = unified.keys().find(|k| k.contains('/') || k.starts_with("cgroup.")) {
            return Err(Error::InvalidArgument(format!("unified key {bad:?} is not a resource file")));
        }
        Ok(Self {
            cpu_shares: r.cpu_shares,
            cpu_quota: r.cpu_quota,
            cpu_period: r.cpu_period,
            memory_limit: r.memory_limit_in_bytes,
            memory_swap_limit: r.memory_swap_limit_in_bytes,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
            pids_limit,
            unified,
        })
    }

    /// Writes for v1 as (controller, file, value), in order.
    ///
    /// # Errors
    /// `InvalidArgument` for `unified` keys, which v1 does not have.
    pub fn v1_writes(&self) -> Result<Vec<(&'static str, &'static str, String)>> {
        if let Some(key) = self.unified.keys().next() {
            return Err(Error::InvalidArgument(format!("cgroup v1 has no unified resource {key}")));
        }
        let mut w = Vec::new();
        if self.cpu_shares > 0 {
            w.push(("cpu", "cpu.shares", self.cpu_shares.max(2).to_string()));
        }
        if self.cpu_period > 0 {
            w.push(("cpu", "cpu.cfs_period_us", self.cpu_period.to_string()));
        }
        if self.cpu_quota != 0 {
            w.push(("cpu", "cpu.cfs_quota_us", self.cpu_quota.max(-1).to_string()));
        }
        if self.memory_limit != 0 {
            let limit = self.memory_limit.max(-1).to_string();
            w.push(("memory", "memory.limit_in_bytes", limit));
        }
        if self.memory_swap_limit != 0 {
            w.push(("memory", "memory.memsw.limit_in_bytes", self.memory_swap_limit.max(-1).to_string()));
        }
        if !self.cpuset_cpus.is_empty() {
            w.push(("cpuset", "cpuset.cpus", self.cpuset_cpus.clone()));
        }
        if !self.cpuset_mems.is_empty() {
            w.push(("cpuset", "cpuset.mems", self.cpuset_mems.clone()));
        }
        if self.pids_limit != 0 {
            w.push(("pids", "pids.max", max_or(self.pids_limit)));
        }
        Ok(w)
    }

    /// Writes for v2 as (file, value), in order.
    ///
    /// # Errors
    /// `InvalidArgument` when the swap limit is below the memory limit.
    pub fn v2_writes(&self) -> Result<Vec<(String, String)>> {
        let mut w: Vec<(String, String)> = Vec::new();
        let mut push = |file: &str, value: String| w.push((file.to_owned(), value));
        if self.cpu_shares > 0 {
            push("cpu.weight", cpu_weight(self.cpu_shares).to_string());
        }
        if self.cpu_quota != 0 || self.cpu_period > 0 {
            let period = if self.cpu_period > 0 { self.cpu_period } else { 100_000 };
            let quota = if self.cpu_quota > 0 { self.cpu_quota.to_string() } else { "max".into() };
            push("cpu.max", format!("{quota} {period}"));
        }
        if self.memory_limit != 0 {
            push("memory.max", max_or(self.memory_limit));
        }
        if self.memory_swap_limit > 0 && self.memory_limit > 0 {
            let swap = self.memory_swap_limit - self.memory_limit;
            if swap < 0 {
                return Err(Error::InvalidArgument("the swap limit is below the memory limit".into()));
            }
            push("memory.swap.max", swap.to_string());
        }
        if !self.cpuset_cpus.is_empty() {
            push("cpuset.cpus", self.cpuset_cpus.clone());
        }
        if !self.cpuset_mems.is_empty() {
            push("cpuset.mems", self.cpuset_mems.clone());
        }
        if self.pids_limit != 0 {
            push("pids.max", max_or(self.pids_limit));
        }
        w.extend(self.unified.iter().map(|(k, v)| (k.clone(), v.clone())));
        Ok(w)
    }
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// v1 shares (2..=262144) to v2 weight (1..=10000): the mapping of KEP-2254.
fn cpu_weight(shares: i64) -> i64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_for_both_versions() -> Result<()> {
        let cri = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 1024,
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 1 << 20,
            unified: [("pids.max".to_owned(), "7".to_owned())].into_iter().collect(),
            ..Default::default()
        };
        let r = Resources::from_cri(&cri)?;
        let v1: Vec<_> = r.v1_writes()?.into_iter().map(|(_, f, v)| format!("{f}={v}")).collect();
        assert_eq!(
            v1,
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=1048576",
                "pids.max=7"
            ]
        );
        let v2: Vec<_> = r.v2_writes()?.into_iter().map(|(f, v)| format!("{f}={v}")).collect();
        let want = [
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "memory.max=1048576",
            "memory.swap.max=0",
            "pids.max=7",
        ];
        assert_eq!(v2, want);
        Ok(())
    }

    #[test]
    fn weight_keeps_the_ends() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (i64::MAX, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "shares {shares}");
        }
    }

    #[test]
    fn unified_is_refused_where_it_cannot_work() {
        let mut cri = LinuxContainerResources::default();
        cri.unified.insert("memory.high".into(), "1".into());
        let r = Resources::from_cri(&cri);
        assert!(r.as_ref().is_ok_and(|r| r.v1_writes().is_err() && r.v2_writes().is_ok()));
        cri.unified.insert("../cgroup.procs".into(), "1".into());
        assert!(Resources::from_cri(&cri).is_err());
    }
}
