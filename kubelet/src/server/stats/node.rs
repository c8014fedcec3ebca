//! What the node itself uses, from `/proc` and the file systems of the agent's folders.

use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The processor time seen last, for rates.
#[derive(Debug, Default)]
pub(crate) struct LastCpu(Mutex<Option<(Instant, u64, Option<u64>)>>);

/// The node at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NodeUsage {
    /// Processor time used since the start, nanoseconds.
    pub cpu_ns: u64,
    /// All memory, bytes.
    pub total: u64,
    /// Memory that can be had, bytes.
    pub available: u64,
    /// Memory in use with page cache, bytes.
    pub used: u64,
    /// Anonymous memory, bytes.
    pub rss: u64,
    pub swap_total: u64,
    pub swap_free: u64,
    pub faults: u64,
    pub major_faults: u64,
}

impl NodeUsage {
    /// Reads `/proc/stat`, `/proc/meminfo` and `/proc/vmstat` (`proc(5)`).
    pub fn read() -> NodeUsage {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        NodeUsage::parse(&text("/proc/stat"), &text("/proc/meminfo"), &text("/proc/vmstat"))
    }

    fn parse(stat: &str, meminfo: &str, vmstat: &str) -> NodeUsage {
        let number = |text: &str, key: &str| -> u64 {
            let value =
                text.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
            value.unwrap_or(0)
        };
        let bytes = |key: &str| number(meminfo, key).saturating_mul(1024);
        // user, nice, system, (idle, iowait,) irq, softirq, steal: hundredths of a second. Guests are in user.
        let cpu = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let cpu: Vec<u64> = cpu.filter_map(|f| f.parse().ok()).collect();
        let ticks: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|n| cpu.get(*n)).sum();
        NodeUsage {
            cpu_ns: ticks.saturating_mul(10_000_000),
            total: bytes("MemTotal:"),
            available: bytes("MemAvailable:"),
            used: bytes("MemTotal:").saturating_sub(bytes("MemFree:")),
            rss: bytes("AnonPages:"),
            swap_total: bytes("SwapTotal:"),
            swap_free: bytes("SwapFree:"),
            faults: number(vmstat, "pgfault "),
            major_faults: number(vmstat, "pgmajfault "),
        }
    }

    /// Memory that cannot be had, bytes.
    pub fn working_set(&self) -> u64 {
        self.total.saturating_sub(self.available)
    }

    /// Nanoseconds of processor time per second since the last look; None at the first.
    pub fn rate(&self, last: &LastCpu) -> Option<u64> {
        let now = Instant::now();
        let mut last = last.0.lock();
        let rate = match *last {
            // Too short a time gives noise; the last rate stands.
            Some((at, _, rate)) if now.duration_since(at).as_millis() < 100 => return rate,
            Some((at, before, _)) => {
                let span = now.duration_since(at).as_nanos().max(1);
                let rate = u128::from(self.cpu_ns.saturating_sub(before)) * 1_000_000_000 / span;
                u64::try_from(rate).ok()
            }
            None => None,
        };
        *last = Some((now, self.cpu_ns, rate));
        rate
    }

    pub fn cpu(&self, time: Timestamp, rate: Option<u64>) -> Value {
        let mut cpu = json!({"time": time, "usageCoreNanoSeconds": self.cpu_ns});
        if let Some(rate) = rate {
            cpu["usageNanoCores"] = rate.into();
        }
        cpu
    }

    pub fn memory(&self, time: Timestamp) -> Value {
        json!({
            "time": time,
            "availableBytes": self.available,
            "usageBytes": self.used,
            "workingSetBytes": self.working_set(),
            "rssBytes": self.rss,
            "pageFaults": self.faults,
            "majorPageFaults": self.major_faults
        })
    }

    pub fn swap(&self, time: Timestamp) -> Value {
        json!({
            "time": time,
            "swapAvailableBytes": self.swap_free,
            "swapUsageBytes": self.swap_total.saturating_sub(self.swap_free)
        })
    }
}

/// The file system that a path is on; `used` where only a part of it is meant.
pub(super) fn file_system(path: &Path, time: Timestamp, used: Option<(u64, u64)>) -> Value {
    let Ok(s) = nix::sys::statvfs::statvfs(path) else { return Value::Null };
    let size = s.fragment_size();
    let (bytes, inodes) = used.unwrap_or((
        s.blocks().saturating_sub(s.blocks_free()).saturating_mul(size),
        s.files().saturating_sub(s.files_free()),
    ));
    json!({
        "time": time,
        "availableBytes": s.blocks_available().saturating_mul(size),
        "capacityBytes": s.blocks().saturating_mul(size),
        "usedBytes": bytes,
        "inodesFree": s.files_free(),
        "inodes": s.files(),
        "inodesUsed": inodes
    })
}

/// Interfaces of the node's network namespace, the one of the default route first.
pub(super) fn network(time: Timestamp) -> Value {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    network_of(time, &text("/proc/net/dev"), &text("/proc/net/route"))
}

fn network_of(time: Timestamp, dev: &str, route: &str) -> Value {
    // The destination 0 in the routing table is everything else.
    let default = route.lines().skip(1).find_map(|l| {
        let mut fields = l.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then_some(name)
    });
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let c: Vec<u64> = counters.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        let name = name.trim();
        let known = (name != "lo" && c.len() > 10).then_some(())?;
        let () = known;
        Some(json!({"name": name, "rxBytes": c[0], "rxErrors": c[2], "txBytes": c[8], "txErrors": c[10]}))
    };
    let interfaces: Vec<Value> = dev.lines().skip(2).filter_map(interface).collect();
    let first = interfaces.iter().find(|i| i["name"].as_str() == default).or(interfaces.first());
    let mut out = first.cloned().unwrap_or_else(|| json!({"name": ""}));
    out["time"] = json!(time);
    out["interfaces"] = interfaces.into();
    out
}

/// How many processes there may be and are.
pub(super) fn processes(time: Timestamp) -> Value {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let max: Option<u64> = text("/proc/sys/kernel/pid_max").trim().parse().ok();
    // The fourth field of loadavg: running/all.
    let loadavg = text("/proc/loadavg");
    let all = loadavg.split_whitespace().nth(3).and_then(|f| f.split_once('/')?.1.parse::<u64>().ok());
    json!({"time": time, "maxpid": max, "curproc": all})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files() {
        let usage = NodeUsage::parse(
            "cpu  100 10 50 9999 7 1 2 3 40 5\ncpu0 1 1 1 1\n",
            "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 600 kB\nAnonPages: 200 kB\nSwapTotal: 50 kB\nSwapFree: 40 kB\n",
            "pgfault 77\npgmajfault 7\n",
        );
        assert_eq!(usage.cpu_ns, 166 * 10_000_000);
        assert_eq!((usage.working_set(), usage.used, usage.rss), (400 << 10, 700 << 10, 200 << 10));
        assert_eq!((usage.faults, usage.major_faults, usage.swap_free), (77, 7, 40 << 10));
        assert_eq!(NodeUsage::parse("", "", ""), NodeUsage::default());
    }

    #[test]
    fn the_default_routes_interface_is_first() {
        let dev = "a\nb\n lo: 1 0 0 0 0 0 0 0 1 0 0\n veth1: 5 0 0 0 0 0 0 0 6 0 0\n eth0: 10 2 3 0 0 0 0 0 20 4 5\n";
        let route = "Iface Destination Gateway\nveth1 0A000000 0\neth0\t00000000\t0100000A\n";
        let network = network_of(Timestamp::UNIX_EPOCH, dev, route);
        assert_eq!(network["name"], "eth0");
        assert_eq!((&network["rxErrors"], &network["txErrors"]), (&json!(3), &json!(5)));
        assert_eq!(network["interfaces"].as_array().map(Vec::len), Some(2));
        assert_eq!(network_of(Timestamp::UNIX_EPOCH, "", "")["name"], "");
    }
}
