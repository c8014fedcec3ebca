//! A pool of numbers that are given out once: offsets of addresses, ports.

use rand::Rng as _;

/// A set of free and taken numbers below `size`, as a bitmap.
#[derive(Debug, Clone)]
pub struct Pool {
    taken: Vec<u64>,
    size: usize,
    /// Numbers below this are given out only when the others are gone, so that people can ask for them by number.
    reserved: usize,
}

impl Pool {
    /// A pool of `size` free numbers.
    pub fn new(size: usize, reserved: usize) -> Self {
        Self { taken: vec![0; size.div_ceil(64)], size, reserved: reserved.min(size) }
    }

    fn bit(&self, n: usize) -> (usize, u64) {
        (n / 64, 1 << (n % 64))
    }

    /// Whether a number is given out. Numbers out of range are.
    pub fn has(&self, n: usize) -> bool {
        let (word, bit) = self.bit(n);
        n >= self.size || self.taken.get(word).is_none_or(|w| w & bit != 0)
    }

    /// Takes a number; false when it is taken or out of range.
    pub fn take(&mut self, n: usize) -> bool {
        if self.has(n) {
            return false;
        }
        let (word, bit) = self.bit(n);
        self.taken[word] |= bit;
        true
    }

    /// Gives a number back.
    pub fn release(&mut self, n: usize) {
        if n < self.size {
            let (word, bit) = self.bit(n);
            self.taken[word] &= !bit;
        }
    }

    /// Takes some free number, reserved ones last.
    pub fn take_any(&mut self) -> Option<usize> {
        let n = self.free_in(self.reserved, self.size).or_else(|| self.free_in(0, self.reserved))?;
        self.take(n).then_some(n)
    }

    fn free_in(&self, low: usize, high: usize) -> Option<usize> {
        if low >= high {
            return None;
        }
        let start = rand::rng().random_range(low..high);
        (start..high).chain(low..start).find(|n| !self.has(*n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn reserved_numbers_come_last() {
        let mut pool = Pool::new(100, 90);
        for _ in 0..10 {
            assert!(pool.take_any().is_some_and(|n| n >= 90));
        }
        assert!(pool.take_any().is_some_and(|n| n < 90));
        assert!(!pool.take(100));
        assert!(!pool.take(95));
        pool.release(95);
        assert!(pool.take(95));
    }

    proptest! {
        #[test]
        fn never_twice(ops in proptest::collection::vec((any::<bool>(), 0usize..70), 0..200)) {
            let (mut pool, mut model) = (Pool::new(64, 10), HashSet::new());
            for (any, n) in ops {
                if any {
                    match pool.take_any() {
                        Some(n) => prop_assert!(model.insert(n)),
                        None => prop_assert_eq!(model.len(), 64),
                    }
                } else if model.remove(&n) {
                    pool.release(n);
                } else {
                    prop_assert_eq!(pool.take(n), n < 64);
                    if n < 64 {
                        model.insert(n);
                    }
                }
            }
        }
    }
}
