//! The back-off of watches: quick at first, since pods wait for them, and kind to a server that stays away.

use kube::runtime::utils::Backoff;
use rand::Rng;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const MAX: Duration = Duration::from_secs(10);

/// Doubles from 50 ms to 10 s with a jitter of up to a half; starts over after a success.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    next: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { next: FIRST }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = self.next;
        self.next = (base * 2).min(MAX);
        Some(base.mul_f64(1.0 + rand::rng().random::<f64>() / 2.0))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.next = FIRST;
    }
}
