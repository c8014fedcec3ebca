//! Thresholds: how many results in a row make a probe pass or fail. PURE.

use super::Kind;
use k8s_openapi::api::core::v1::Probe;

/// Counts a probe's results.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    success: u32,
    failure: u32,
    last: bool,
    run: u32,
    shown: Option<bool>,
}

impl Tally {
    pub fn new(probe: &Probe, kind: Kind) -> Tally {
        let at_least_one = |v: Option<i32>, d: u32| v.and_then(|v| u32::try_from(v).ok()).unwrap_or(d).max(1);
        // Readiness is unknown, hence not ready, until it passes; the others hold until they fail.
        let shown = match kind {
            Kind::Readiness | Kind::Startup => None,
            Kind::Liveness => Some(true),
        };
        Tally {
            success: at_least_one(probe.success_threshold, 1),
            failure: at_least_one(probe.failure_threshold, 3),
            last: false,
            run: 0,
            shown,
        }
    }

    /// Counts one result; answers with the probe's state when it changes.
    pub fn count(&mut self, ok: bool) -> Option<bool> {
        self.run = if ok == self.last { self.run.saturating_add(1) } else { 1 };
        self.last = ok;
        let reached = self.run >= if ok { self.success } else { self.failure };
        if !reached || self.shown == Some(ok) {
            return None;
        }
        self.shown = Some(ok);
        Some(ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: Kind, success: i32, failure: i32, results: &[bool]) -> Vec<Option<bool>> {
        let probe =
            Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
        let mut tally = Tally::new(&probe, kind);
        results.iter().map(|r| tally.count(*r)).collect()
    }

    #[test]
    fn thresholds() {
        use Kind::*;
        let (t, f, n) = (Some(true), Some(false), None);
        assert_eq!(run(Readiness, 1, 2, &[true, true, false, false, true]), [t, n, n, f, t]);
        assert_eq!(run(Readiness, 2, 1, &[true, false, true, true]), [n, f, n, t]);
        assert_eq!(
            run(Liveness, 1, 3, &[true, false, false, true, false, false, false]),
            [n, n, n, n, n, n, f]
        );
        assert_eq!(run(Startup, 1, 2, &[false, true]), [n, t]);
        assert_eq!(run(Startup, 1, 2, &[false, false]), [n, f]);
    }
}
