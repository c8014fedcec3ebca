//! Equal values are kept once, for as long as somebody holds them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::Serialize;

/// Below so many entries nobody looks for those that are not held any more.
const FEW: usize = 1024;

/// Values by a hash of what they serialise to, as Kubernetes' types have no hash of their own.
pub struct Pool<T: ?Sized> {
    entries: Mutex<Entries<T>>,
}

struct Entries<T: ?Sized> {
    by_hash: HashMap<u64, Weak<T>>,
    /// At how many entries to look for those that nobody holds.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { by_hash: HashMap::new(), sweep_at: FEW }) }
    }
}

impl<T: Serialize + PartialEq + ?Sized> Pool<T> {
    /// The one that is equal to `value`, or `value`.
    pub fn share(&self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        let Some(hash) = hash_of(value.borrow()) else { return value.into() };
        let mut entries = self.entries.lock();
        let held = entries.by_hash.get(&hash).and_then(Weak::upgrade);
        if let Some(held) = held.filter(|held| **held == *value.borrow()) {
            return held;
        }
        let new: Arc<T> = value.into();
        // Of two values with the same hash only the newer one is found again.
        entries.by_hash.insert(hash, Arc::downgrade(&new));
        if entries.by_hash.len() >= entries.sweep_at {
            entries.by_hash.retain(|_, held| held.strong_count() > 0);
            entries.sweep_at = (entries.by_hash.len() * 2).max(FEW);
        }
        new
    }

    /// How many values are remembered, held or not.
    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.entries.lock().by_hash.len()
    }
}

struct Hashed(DefaultHasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash_of(value: &(impl Serialize + ?Sized)) -> Option<u64> {
    let mut hashed = Hashed(DefaultHasher::new());
    serde_json::to_writer(&mut hashed, value).ok()?;
    Some(hashed.0.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_while_somebody_holds_them() {
        let pool: Pool<str> = Pool::default();
        let first = pool.share("a");
        assert!(Arc::ptr_eq(&first, &pool.share("a")));
        assert!(!Arc::ptr_eq(&first, &pool.share("b")));
        drop(first);
        assert_eq!(&*pool.share("a"), "a");
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let pool: Pool<str> = Pool::default();
        let held: Vec<_> = (0..100).map(|n| pool.share(n.to_string())).collect();
        for n in 0..100_000 {
            pool.share(format!("x{n}"));
        }
        assert!(pool.remembered() <= 2 * FEW, "{}", pool.remembered());
        assert!(Arc::ptr_eq(&held[7], &pool.share("7")));
    }
}
