//! PURE: whether the counts of open connections are what the counted sockets say.
//!
//! The programs count a socket when it connects and uncount it when it is closed. The counts can drift only
//! when a program is interrupted between its two writes, or when the hooks were away while a socket was
//! closed. What is read here changes meanwhile, so only a difference that two readings in a row agree on is
//! one.

use std::collections::HashMap;

use hawser_ebpf_common::lb::CountedSocket;

/// Differences of the last reading: what was held, and what should have been.
#[derive(Debug, Default)]
pub struct Drift {
    suspected: HashMap<u32, (u64, u64)>,
}

impl Drift {
    /// Compares the counts with the sockets. Returns backends whose count is to be set, and to what.
    pub fn corrections(
        &mut self,
        counts: &[(u32, u64)],
        sockets: &[(u64, CountedSocket)],
    ) -> Vec<(u32, u64)> {
        let mut right: HashMap<u32, u64> = HashMap::new();
        for (_, socket) in sockets {
            *right.entry(socket.backend_id).or_default() += 1;
        }
        let differs = |(id, held): &(u32, u64)| {
            let right = right.get(id).copied().unwrap_or(0);
            (*held != right).then_some((*id, (*held, right)))
        };
        let found: HashMap<u32, (u64, u64)> = counts.iter().filter_map(differs).collect();
        let before = std::mem::replace(&mut self.suspected, found);
        let again = self.suspected.iter().filter(|(id, values)| before.get(id) == Some(values));
        again.map(|(id, (_, right))| (*id, *right)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(backends: &[u32]) -> Vec<(u64, CountedSocket)> {
        let socket = |(cookie, id): (usize, &u32)| {
            (cookie as u64, CountedSocket { backend_id: *id, ..CountedSocket::default() })
        };
        backends.iter().enumerate().map(socket).collect()
    }

    #[test]
    fn only_what_stays_wrong_is_corrected() {
        let mut drift = Drift::default();
        let held = [(1, 2), (2, 5), (3, 0)];
        assert!(drift.corrections(&held, &sockets(&[1, 1, 2])).is_empty(), "seen once");
        assert_eq!(drift.corrections(&held, &sockets(&[1, 1, 2])), [(2, 1)]);
        assert!(drift.corrections(&held, &sockets(&[1, 1, 2, 2])).is_empty(), "it moved meanwhile");
        assert!(drift.corrections(&[(1, 2), (2, 2)], &sockets(&[1, 1, 2, 2])).is_empty());
    }
}
