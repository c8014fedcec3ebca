//! PURE: Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4).
//!
//! Each backend has a permutation of the table's positions, from two hashes of its address. A position goes
//! to the backend in whose permutation it comes first, as long as that one has not its share. The paper's
//! turns, in which everybody takes what comes next and is free, move twice as many positions when one of a
//! hundred backends goes (1.4 % of them in place of 0.7 %).

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use hawser_ebpf_common::lb::{MAGLEV_CHUNK, MAGLEV_CHUNKS, MAGLEV_SIZE, MaglevChunk, MaglevKey};

use crate::types::L4Addr;

/// What a backend still may take.
struct Taker {
    /// Its number in the table.
    number: u16,
    /// The position that comes next in its permutation.
    position: u64,
    skip: u64,
    /// How many positions are left of its share.
    share: usize,
}

/// The table: for each position the number of a backend, which is its index + 1; all 0 without backends.
pub fn table(backends: &[L4Addr]) -> Vec<u16> {
    let size = u64::from(MAGLEV_SIZE);
    let mut table = vec![0; MAGLEV_SIZE as usize];
    // The order is part of the outcome: by address, not by slot.
    let mut order: Vec<usize> = (0..backends.len().min(usize::from(u16::MAX))).collect();
    order.sort_by_key(|index| backends[*index]);
    let share = table.len().div_ceil(order.len().max(1));
    let taker = |index: &usize| Taker {
        number: (*index + 1) as u16,
        position: hash(&backends[*index], 0x6f66_6673) % size,
        skip: hash(&backends[*index], 0x736b_6970) % (size - 1) + 1,
        share,
    };
    let mut takers: Vec<Taker> = order.iter().map(taker).collect();
    let mut free = table.len();
    // All shares together are at least the table, so somebody is left as long as a position is free.
    while free > 0 && !takers.is_empty() {
        for taker in &mut takers {
            let position = &mut table[taker.position as usize];
            if *position == 0 {
                *position = taker.number;
                taker.share -= 1;
                free -= 1;
            }
            taker.position = (taker.position + taker.skip) % size;
        }
        takers.retain(|taker| taker.share > 0);
    }
    table
}

/// A hash that is the same on every node and in every version.
fn hash(backend: &L4Addr, seed: u64) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    match backend.address {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
    hasher.write(&backend.port.to_be_bytes());
    hasher.write(&[backend.protocol.number()]);
    // FNV alone leaves neighbours close to each other: the finaliser of MurmurHash3 spreads them.
    let mut hash = hasher.finish();
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// FNV-1a (draft-eastlake-fnv).
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Keys of the parts of a table.
pub fn keys(rev_nat_id: u32, generation: u16, scope: u8) -> impl Iterator<Item = MaglevKey> {
    (0..MAGLEV_CHUNKS).map(move |chunk| MaglevKey { rev_nat_id, generation, scope, chunk: chunk as u8 })
}

/// The parts of a table, the last one filled up with 0.
pub fn chunks(table: &[u16]) -> impl Iterator<Item = Arc<MaglevChunk>> {
    table.chunks(MAGLEV_CHUNK as usize).map(|part| {
        let mut chunk = [0; MAGLEV_CHUNK as usize];
        chunk[..part.len()].copy_from_slice(part);
        Arc::new(chunk)
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::types::Protocol;

    fn backends(count: u8) -> Vec<L4Addr> {
        (1..=count).map(|last| L4Addr::new(Ipv4Addr::new(10, 1, 0, last), 8080, Protocol::Tcp)).collect()
    }

    /// For each position the backend itself.
    fn resolve(backends: &[L4Addr]) -> Vec<L4Addr> {
        table(backends).iter().map(|number| backends[usize::from(*number) - 1]).collect()
    }

    #[test]
    fn shares_are_even() {
        let mut counts = [0u32; 100];
        table(&backends(100)).iter().for_each(|number| counts[usize::from(*number) - 1] += 1);
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        assert!(least >= Some(150) && most <= Some(164), "{least:?} {most:?}");
    }

    #[test]
    fn one_of_a_hundred_that_goes_moves_few_others() {
        let all = backends(100);
        let before = resolve(&all);
        let mut worst = 0;
        for gone in 0..all.len() {
            let mut left = all.clone();
            let removed = left.remove(gone);
            let after = resolve(&left);
            let moved = before.iter().zip(&after).filter(|(old, new)| **old != removed && old != new).count();
            worst = worst.max(moved);
        }
        assert!(worst <= MAGLEV_SIZE as usize / 100, "{worst} positions of {MAGLEV_SIZE}");
    }

    #[test]
    fn the_order_of_slots_does_not_matter() {
        let all = backends(7);
        let mut turned = all.clone();
        turned.rotate_left(3);
        assert_eq!(resolve(&all), resolve(&turned));
        assert!(table(&[]).iter().all(|number| *number == 0));
    }

    #[test]
    fn parts_make_up_the_table() {
        let table = table(&backends(3));
        let whole: Vec<u16> = chunks(&table).flat_map(|chunk| *chunk).take(MAGLEV_SIZE as usize).collect();
        assert_eq!(whole, table);
        assert_eq!(keys(1, 2, 0).count(), chunks(&table).count());
    }
}
