//! The multi-version index: which revisions a key has. Pure; it holds no values.
//!
//! An engine keeps one row per revision (key, value or tombstone) wherever it likes and finds the
//! row to read here, as etcd does. The cost of compaction is that of what it removes.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use crate::{Error, FIRST_REVISION, Precondition, Revision};

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// 0 for a tombstone.
    pub create: Revision,
    pub revision: Revision,
}

impl Version {
    fn live(self) -> Option<Version> {
        (self.create != 0).then_some(self)
    }
}

struct Versions {
    latest: Version,
    /// Older ones that are not compacted yet, oldest first.
    older: VecDeque<Version>,
}

impl Versions {
    fn at(&self, revision: Revision) -> Option<Version> {
        if self.latest.revision <= revision {
            return self.latest.live();
        }
        let n = self.older.partition_point(|v| v.revision <= revision);
        self.older.get(n.checked_sub(1)?).copied().and_then(Version::live)
    }
}

/// A revision whose row nobody can ask for once `superseded_at` is compacted.
struct Garbage {
    superseded_at: Revision,
    revision: Revision,
    key: Arc<str>,
}

/// A page of an index: `(key, version)` in order, and how many more follow.
pub(crate) struct Page {
    pub items: Vec<(Arc<str>, Version)>,
    pub remaining: u64,
}

/// All keys with their versions, the current and the compacted revision.
pub(crate) struct Index {
    keys: BTreeMap<Arc<str>, Versions>,
    garbage: VecDeque<Garbage>,
    current: Revision,
    compacted: Revision,
}

impl Index {
    pub fn new() -> Self {
        Index { keys: BTreeMap::new(), garbage: VecDeque::new(), current: FIRST_REVISION, compacted: 0 }
    }

    pub fn current(&self) -> Revision {
        self.current
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The stored key equal to `key`, so that all copies of a key share one allocation.
    pub fn intern(&self, key: &str) -> Arc<str> {
        self.keys.get_key_value(key).map_or_else(|| Arc::from(key), |(k, _)| k.clone())
    }

    /// The live version of `key` now.
    pub fn latest(&self, key: &str) -> Option<Version> {
        self.keys.get(key).and_then(|v| v.latest.live())
    }

    /// Notes that `key` was written (`create` its create revision) or, with `create` 0, deleted.
    /// `revision` becomes the current one; revisions only go up.
    pub fn apply(&mut self, key: Arc<str>, version: Version) {
        debug_assert!(version.revision > self.current || self.keys.is_empty());
        self.current = self.current.max(version.revision);
        let superseded_at = version.revision;
        match self.keys.get_mut(&key) {
            Some(versions) => {
                let old = std::mem::replace(&mut versions.latest, version);
                versions.older.push_back(old);
                // A tombstone is garbage from its own revision on, so it is already listed.
                if old.live().is_some() {
                    self.garbage.push_back(Garbage {
                        superseded_at,
                        revision: old.revision,
                        key: key.clone(),
                    });
                }
            }
            None => {
                self.keys.insert(key.clone(), Versions { latest: version, older: VecDeque::new() });
            }
        }
        if version.live().is_none() {
            self.garbage.push_back(Garbage { superseded_at, revision: superseded_at, key });
        }
    }

    /// Sets the current revision without a write, when a store is opened.
    pub fn advance_to(&mut self, revision: Revision) {
        self.current = self.current.max(revision);
    }

    /// The revision to read at.
    pub fn resolve(&self, revision: Option<Revision>) -> Result<Revision, Error> {
        match revision {
            None | Some(0) => Ok(self.current),
            Some(r) if r > self.current => Err(Error::FutureRevision { current: self.current }),
            Some(r) if r < self.compacted => Err(Error::Compacted { compacted: self.compacted }),
            Some(r) => Ok(r),
        }
    }

    /// Whether every event after `after` is still there.
    pub fn check_watch(&self, after: Revision) -> Result<(), Error> {
        if after > self.current {
            return Err(Error::FutureRevision { current: self.current });
        }
        if after < self.compacted {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        Ok(())
    }

    /// A page of the live keys below `prefix` at `revision`, which [`Index::resolve`] answered.
    pub fn page(&self, prefix: &str, start_after: Option<&str>, limit: usize, revision: Revision) -> Page {
        let from = match start_after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut page = Page { items: Vec::new(), remaining: 0 };
        for (key, versions) in self.keys.range::<str, _>((from, Bound::Unbounded)) {
            if !key.starts_with(prefix) {
                break;
            }
            let Some(version) = versions.at(revision) else { continue };
            if limit == 0 || page.items.len() < limit {
                page.items.push((key.clone(), version));
            } else {
                page.remaining += 1;
            }
        }
        page
    }

    /// Gives up history before `revision`. [`Index::sweep`] then says what can go.
    ///
    /// # Errors
    /// [`Error::FutureRevision`].
    pub fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        if revision > self.current {
            return Err(Error::FutureRevision { current: self.current });
        }
        self.compacted = self.compacted.max(revision);
        Ok(())
    }

    /// At most `limit` revisions whose rows nobody can ask for any more, forgotten here;
    /// none when all are swept.
    pub fn sweep(&mut self, limit: usize) -> Vec<Revision> {
        let mut gone = Vec::new();
        while gone.len() < limit
            && let Some(garbage) = self.garbage.pop_front_if(|g| g.superseded_at <= self.compacted)
        {
            gone.push(garbage.revision);
            let Some(versions) = self.keys.get_mut(&garbage.key) else { continue };
            if versions.latest.revision == garbage.revision {
                // A tombstone that nothing followed: the key is gone for good.
                self.keys.remove(&garbage.key);
                continue;
            }
            // A key's versions are superseded in their order, so it is the oldest.
            if versions.older.front().is_some_and(|v| v.revision == garbage.revision) {
                versions.older.pop_front();
            }
            if versions.older.is_empty() {
                versions.older = VecDeque::new();
            }
        }
        gone
    }
}

/// What a write comes to, before it is made durable.
pub(crate) enum Decision {
    /// It happens, over this live version (`None`: creation).
    Go(Option<Version>),
    /// A deletion of what is not there.
    NotFound,
    /// The precondition does not hold for this live version.
    Conflict(Option<Version>),
}

/// Decides a write to a key whose live version is `live`.
pub(crate) fn decide(live: Option<Version>, is_delete: bool, precondition: Precondition) -> Decision {
    if is_delete && live.is_none() {
        return Decision::NotFound;
    }
    if precondition.holds(live.map(|v| v.revision)) { Decision::Go(live) } else { Decision::Conflict(live) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(create: Revision, revision: Revision) -> Version {
        Version { create, revision }
    }

    fn index(writes: &[(&str, Revision)]) -> Index {
        let mut index = Index::new();
        for (n, (key, create)) in writes.iter().enumerate() {
            index.apply(index.intern(key), v(*create, n as Revision + 2));
        }
        index
    }

    fn keys(index: &Index, prefix: &str, revision: Revision) -> Vec<(String, Revision)> {
        index.page(prefix, None, 0, revision).items.iter().map(|(k, v)| (k.to_string(), v.revision)).collect()
    }

    #[test]
    fn reads_each_revision_until_it_is_compacted() {
        // 2: a created, 3: b created, 4: a updated, 5: b deleted, 6: b created again, 7: a deleted
        let mut index = index(&[("a", 2), ("b", 3), ("a", 2), ("b", 0), ("b", 6), ("a", 0)]);
        let want: [(Revision, &[(&str, Revision)]); 6] = [
            (2, &[("a", 2)]),
            (3, &[("a", 2), ("b", 3)]),
            (4, &[("a", 4), ("b", 3)]),
            (5, &[("a", 4)]),
            (6, &[("a", 4), ("b", 6)]),
            (7, &[("b", 6)]),
        ];
        let mut all_gone = Vec::new();
        for compact in 1..=7 {
            index.compact(compact).unwrap();
            loop {
                let gone = index.sweep(1);
                if gone.is_empty() {
                    break;
                }
                all_gone.extend(gone);
            }
            for (revision, want) in want.iter().filter(|w| w.0 >= compact) {
                let want: Vec<_> = want.iter().map(|(k, r)| ((*k).to_owned(), *r)).collect();
                assert_eq!(keys(&index, "", *revision), want, "at {revision} compacted to {compact}");
            }
            assert!(matches!(index.resolve(Some(compact)), Ok(r) if r == compact));
            if compact > 1 {
                assert!(
                    matches!(index.resolve(Some(compact - 1)), Err(Error::Compacted { compacted }) if compacted == compact)
                );
            }
        }
        // Only the one live row is left.
        assert_eq!(all_gone, [2, 3, 5, 4, 7]);
        assert_eq!(index.keys.len(), 1);
        assert!(index.garbage.is_empty());
        assert!(matches!(index.compact(8), Err(Error::FutureRevision { current: 7 })));
    }

    #[test]
    fn pages_within_the_prefix() {
        let index = index(&[("a/1", 2), ("a/2", 3), ("a/3", 4), ("a", 5), ("b/1", 6)]);
        let page = index.page("a/", Some("a/1"), 1, 6);
        assert_eq!(page.items.len(), 1);
        assert_eq!(&*page.items[0].0, "a/2");
        assert_eq!(page.remaining, 1);
        // A start before or beyond the prefix.
        assert_eq!(index.page("a/", Some("0"), 0, 6).items.len(), 3);
        assert_eq!(index.page("a/", Some("z"), 0, 6).items.len(), 0);
    }

    #[test]
    fn decides_writes() {
        let live = Some(v(3, 5));
        for (live, delete, pre, want) in [
            (None, false, Precondition::None, "go"),
            (None, false, Precondition::Absent, "go"),
            (None, false, Precondition::ModRevision(5), "conflict"),
            (None, false, Precondition::ModRevision(0), "conflict"),
            (live, false, Precondition::None, "go"),
            (live, false, Precondition::Absent, "conflict"),
            (live, false, Precondition::ModRevision(5), "go"),
            (live, false, Precondition::ModRevision(3), "conflict"),
            (None, true, Precondition::None, "not found"),
            (None, true, Precondition::ModRevision(5), "not found"),
            (live, true, Precondition::None, "go"),
            (live, true, Precondition::ModRevision(5), "go"),
            (live, true, Precondition::ModRevision(4), "conflict"),
        ] {
            let got = match decide(live, delete, pre) {
                Decision::Go(_) => "go",
                Decision::NotFound => "not found",
                Decision::Conflict(_) => "conflict",
            };
            assert_eq!(got, want, "{live:?} delete={delete} {pre:?}");
        }
    }
}
