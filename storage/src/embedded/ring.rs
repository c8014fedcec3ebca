//! The most recent events, by revision. Pure.

use std::collections::VecDeque;

use crate::{Event, KeyValue, Revision, hub::event_bytes};

/// Contiguous events up to the current revision. They hold the values that are not in the table
/// yet, and those that watches are likely to read.
pub(crate) struct Ring {
    events: VecDeque<Event>,
    /// The revision of the first event, or of the next one when there is none.
    base: Revision,
    bytes: usize,
}

impl Ring {
    /// An empty ring; the next revision is `base`.
    pub fn new(base: Revision) -> Ring {
        Ring { events: VecDeque::new(), base, bytes: 0 }
    }

    pub fn base(&self) -> Revision {
        self.base
    }

    /// Adds the next revision's event.
    pub fn push(&mut self, event: Event) {
        debug_assert_eq!(event.revision(), self.base + self.events.len() as Revision);
        self.bytes += event_bytes(&event);
        self.events.push_back(event);
    }

    pub fn get(&self, revision: Revision) -> Option<&KeyValue> {
        let n = revision.checked_sub(self.base)?;
        self.events.get(usize::try_from(n).ok()?).map(|event| &event.kv)
    }

    /// The events from revision `from` on; `None` when that one is not here any more.
    pub fn since(&self, from: Revision) -> Option<impl Iterator<Item = &Event>> {
        let n = usize::try_from(from.checked_sub(self.base)?).ok()?;
        Some(self.events.range(n.min(self.events.len())..))
    }

    /// Drops the oldest events, none newer than `upto`, until at most `bytes` are held.
    pub fn evict(&mut self, upto: Revision, bytes: usize) {
        while self.bytes > bytes
            && self.base <= upto
            && let Some(event) = self.events.pop_front()
        {
            self.bytes -= event_bytes(&event);
            self.base += 1;
        }
        if self.events.len() * 4 < self.events.capacity() {
            self.events.shrink_to(self.events.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventKind;

    fn event(revision: Revision) -> Event {
        let kv = KeyValue {
            key: "k".into(),
            value: vec![0; 1000].into(),
            create_revision: 2,
            mod_revision: revision,
        };
        Event { kind: EventKind::Put, kv, prev: None }
    }

    #[test]
    fn keeps_a_window() {
        let mut ring = Ring::new(5);
        assert!(ring.since(4).is_none());
        assert_eq!(ring.since(5).unwrap().count(), 0);
        for revision in 5..15 {
            ring.push(event(revision));
        }
        assert_eq!(ring.get(5).unwrap().mod_revision, 5);
        assert_eq!(ring.since(12).unwrap().count(), 3);
        // Not what is needed still, however large.
        ring.evict(6, 0);
        assert_eq!((ring.base(), ring.get(6).is_none(), ring.get(7).is_some()), (7, true, true));
        ring.evict(14, 3 * event_bytes(&event(1)));
        assert_eq!(ring.base(), 12);
        ring.evict(14, 0);
        assert_eq!((ring.base(), ring.bytes), (15, 0));
        ring.push(event(15));
        assert!(ring.get(14).is_none() && ring.get(15).is_some() && ring.get(16).is_none());
    }
}
