//! A process' own metrics, with the names of Prometheus' client libraries, from the texts of its `/proc` directory
//! (`proc(5)`), which the caller reads. Pure.

use super::Exposition;

/// Ticks of processor time per second: Linux shows user space 100, whatever the kernel uses.
const TICKS: f64 = 100.0;
/// `statm` counts pages; those of x86-64, and of arm64 by default.
const PAGE: u64 = 4096;

/// What is read. Empty texts leave their families out.
#[derive(Debug, Default)]
pub struct Texts {
    /// `/proc/self/stat`
    pub stat: String,
    /// `/proc/self/statm`
    pub statm: String,
    /// `/proc/self/limits`
    pub limits: String,
    /// Entries of `/proc/self/fd`.
    pub open_fds: usize,
    /// Start in seconds since 1970.
    pub started: f64,
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok());
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Writes the families.
pub fn write(out: &mut Exposition, texts: &Texts) {
    if let Some(seconds) = cpu_seconds(&texts.stat) {
        let help = "Total user and system CPU time spent in seconds.";
        out.single("process_cpu_seconds_total", "counter", help, seconds);
    }
    let mut pages = texts.statm.split_whitespace().filter_map(|f| f.parse::<u64>().ok());
    for (name, help) in [
        ("process_virtual_memory_bytes", "Virtual memory size in bytes."),
        ("process_resident_memory_bytes", "Resident memory size in bytes."),
    ] {
        if let Some(pages) = pages.next() {
            out.single(name, "gauge", help, pages.saturating_mul(PAGE));
        }
    }
    out.single("process_open_fds", "gauge", "Number of open file descriptors.", texts.open_fds);
    let max = texts.limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    if let Some(max) = max.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()) {
        out.single("process_max_fds", "gauge", "Maximum number of open file descriptors.", max);
    }
    let help = "Start time of the process since unix epoch in seconds.";
    out.single("process_start_time_seconds", "gauge", help, format_args!("{:.3}", texts.started));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        let mut out = Exposition::default();
        let texts = Texts {
            stat: "7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 50 0 0".into(),
            statm: "10 5 1".into(),
            limits:
                "Limit Soft Hard\nMax open files            1024                 4096                 files\n"
                    .into(),
            open_fds: 9,
            started: 12.5,
        };
        write(&mut out, &texts);
        let text = out.finish();
        for line in [
            "process_cpu_seconds_total 3\n",
            "process_virtual_memory_bytes 40960\n",
            "process_resident_memory_bytes 20480\n",
            "process_open_fds 9\n",
            "process_max_fds 1024\n",
            "process_start_time_seconds 12.500\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
