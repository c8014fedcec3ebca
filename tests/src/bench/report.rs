//! The bench's table.

use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

/// Which side of the target is good.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    Below(f64),
    /// Nothing was promised.
    None,
}

/// Lines of figures against their targets.
#[derive(Default)]
pub struct Report {
    lines: Vec<[String; 4]>,
}

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, what: &str, value: f64, unit: &str, target: Target) {
        let (shown, met) = match target {
            Target::AtLeast(bound) => (format!("at least {} {unit}", number(bound)), value >= bound),
            Target::Below(bound) => (format!("below {} {unit}", number(bound)), value < bound),
            Target::None => (String::new(), true),
        };
        let line = [
            what.to_owned(),
            format!("{} {unit}", number(value)),
            shown,
            if matches!(target, Target::None) {
                ""
            } else if met {
                "met"
            } else {
                "MISSED"
            }
            .to_owned(),
        ];
        eprintln!("{}: {} ({})", line[0], line[1], line[3]);
        self.lines.push(line);
    }

    /// Tells a figure that has no target.
    pub fn note(&self, what: &str, value: f64, unit: &str) {
        eprintln!("  {what}: {} {unit}", number(value));
    }

    /// All lines as a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(["figure", "measured", "target", ""]);
        for line in &self.lines {
            table.add_row(line);
        }
        table
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The value below which `share` (0 to 1) of the durations lie.
pub fn percentile(durations: &mut [Duration], share: f64) -> Duration {
    durations.sort_unstable();
    let at = ((durations.len() as f64 * share) as usize).min(durations.len().saturating_sub(1));
    durations.get(at).copied().unwrap_or_default()
}

/// In milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
