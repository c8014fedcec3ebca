//! Prometheus' text exposition format, version 0.0.4. Pure.

pub mod process;

use std::fmt::{Display, Write as _};

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of a sample, in the order of their names.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text being written.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family; its samples follow. `kind`: counter, gauge or histogram.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (n, (label, text)) in labels.iter().enumerate() {
            self.put(format_args!("{}{label}=\"", if n == 0 { '{' } else { ',' }));
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        self.put(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
    }

    /// A family of one gauge or counter without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.0
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.0.write_fmt(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format() {
        let mut out = Exposition::default();
        out.family("a_total", "counter", "What.");
        out.sample("a_total", &[("x", "1\"\\\n"), ("y", "")], 2);
        out.single("b", "gauge", "Else.", 0.5);
        assert_eq!(
            out.finish(),
            "# HELP a_total What.\n# TYPE a_total counter\na_total{x=\"1\\\"\\\\\\n\",y=\"\"} 2\n\
             # HELP b Else.\n# TYPE b gauge\nb 0.5\n"
        );
    }
}
