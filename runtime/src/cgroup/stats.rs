//! Reading what a cgroup uses.

use std::path::Path;

use super::Cgroups;

/// Usage of one cgroup at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time used since the group was made, nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, bytes.
    pub memory: u64,
    /// Memory charged minus inactive page cache, bytes.
    pub working_set: u64,
    /// Anonymous memory, bytes.
    pub rss: u64,
    /// Limit in bytes; `None` without one.
    pub limit: Option<u64>,
    /// Page faults.
    pub faults: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Swap used, bytes.
    pub swap: u64,
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Cgroups {
    /// What `group` uses now; `None` when it is not there.
    pub fn usage(&self, group: &Path) -> Option<Usage> {
        if self.is_v2() { self.usage_v2(group) } else { self.usage_v1(group) }
    }

    fn usage_v2(&self, group: &Path) -> Option<Usage> {
        let dir = self.v2_dir(group)?;
        let cpu = std::fs::read_to_string(dir.join("cpu.stat")).ok()?;
        let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let memory = number(&dir.join("memory.current")).unwrap_or(0);
        Some(Usage {
            cpu_ns: keyed(&cpu, "usage_usec").unwrap_or(0).saturating_mul(1000),
            memory,
            working_set: memory.saturating_sub(keyed(&stat, "inactive_file").unwrap_or(0)),
            rss: keyed(&stat, "anon").unwrap_or(0),
            limit: number(&dir.join("memory.max")),
            faults: keyed(&stat, "pgfault").unwrap_or(0),
            major_faults: keyed(&stat, "pgmajfault").unwrap_or(0),
            pids: number(&dir.join("pids.current")).unwrap_or(0),
            swap: number(&dir.join("memory.swap.current")).unwrap_or(0),
        })
    }

    fn usage_v1(&self, group: &Path) -> Option<Usage> {
        let memory_dir = self.v1_dir("memory", group)?;
        let stat = std::fs::read_to_string(memory_dir.join("memory.stat")).ok()?;
        let memory = number(&memory_dir.join("memory.usage_in_bytes")).unwrap_or(0);
        let limit = number(&memory_dir.join("memory.limit_in_bytes"));
        let file =
            |controller, name: &str| self.v1_dir(controller, group).and_then(|d| number(&d.join(name)));
        Some(Usage {
            cpu_ns: file("cpuacct", "cpuacct.usage").unwrap_or(0),
            memory,
            working_set: memory.saturating_sub(keyed(&stat, "total_inactive_file").unwrap_or(0)),
            rss: keyed(&stat, "total_rss").unwrap_or(0),
            // "No limit" is the largest page-aligned number.
            limit: limit.filter(|l| *l < (1 << 62)),
            faults: keyed(&stat, "total_pgfault").unwrap_or(0),
            major_faults: keyed(&stat, "total_pgmajfault").unwrap_or(0),
            pids: file("pids", "pids.current").unwrap_or(0),
            swap: keyed(&stat, "total_swap").unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keyed_takes_whole_keys() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(super::keyed(text, "oom_kill"), Some(3));
        assert_eq!(super::keyed(text, "oom"), None);
    }
}
