//! A work queue that holds each key once, hands a key to one worker at a time, and delays retries.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::object::Key;

/// The first retry's delay; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest delay of a retry.
const LAST_RETRY: Duration = Duration::from_secs(300);

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    /// Keys that wait for a worker, in `ready` or behind one that is at work on them.
    dirty: HashSet<Key>,
    /// Keys that a worker has.
    busy: HashSet<Key>,
    delayed: BinaryHeap<Reverse<(Instant, u64, Key)>>,
    /// The earliest delayed entry per key; later ones in the heap are void.
    due: HashMap<Key, (Instant, u64)>,
    failures: HashMap<Key, u32>,
    serial: u64,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for work on `key`. While it waits already, this does nothing; while a worker has it, it
    /// will be handed out once more afterwards.
    pub fn add(&self, key: Key) {
        if self.state.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Asks for work on `key` after `delay`; of several requests the earliest counts.
    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.state.lock();
        if state.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return;
        }
        state.serial += 1;
        let serial = state.serial;
        state.due.insert(key.clone(), (at, serial));
        state.delayed.push(Reverse((at, serial, key)));
        drop(state);
        self.wake.notify_one();
    }

    /// Asks for work on `key` after a delay that grows with each call until [`Queue::forget`].
    /// Returns the delay.
    pub fn retry(&self, key: Key) -> Duration {
        let failures = {
            let mut state = self.state.lock();
            let n = state.failures.entry(key.clone()).or_default();
            *n = n.saturating_add(1);
            *n
        };
        let delay = FIRST_RETRY.saturating_mul(1u32 << (failures - 1).min(16)).min(LAST_RETRY);
        self.add_after(key, delay);
        delay
    }

    /// Forgets the failures of `key`.
    pub fn forget(&self, key: &Key) {
        self.state.lock().failures.remove(key);
    }

    /// How many times `key` failed in a row.
    pub fn failures(&self, key: &Key) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key to work on. To be awaited by one task; the key is busy until [`Queue::done`].
    pub async fn next(&self) -> Key {
        loop {
            let (key, next_due) = self.state.lock().take(Instant::now());
            if let Some(key) = key {
                return key;
            }
            match next_due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// A key that is due now, if there is one.
    pub fn try_next(&self) -> Option<Key> {
        self.state.lock().take(Instant::now()).0
    }

    /// Ends the work on `key`.
    pub fn done(&self, key: &Key) {
        let mut state = self.state.lock();
        state.busy.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// How many keys wait to be handed out now.
    pub fn len(&self) -> usize {
        self.state.lock().dirty.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl State {
    fn add(&mut self, key: Key) -> bool {
        if !self.dirty.insert(key.clone()) || self.busy.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// A key that is due, or when the next one will be.
    fn take(&mut self, now: Instant) -> (Option<Key>, Option<Instant>) {
        let mut next_due = None;
        while let Some(Reverse((at, serial, key))) = self.delayed.peek() {
            let valid = self.due.get(key).is_some_and(|(_, s)| s == serial);
            if valid && *at > now {
                next_due = Some(*at);
                break;
            }
            let Some(Reverse((_, _, key))) = self.delayed.pop() else { break };
            if valid {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let key = self.ready.pop_front();
        if let Some(key) = &key {
            self.dirty.remove(key);
            self.busy.insert(key.clone());
        }
        (key, next_due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::cluster(name)
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_on_by_one() {
        let q = Queue::new();
        q.add(key("a"));
        q.add(key("a"));
        q.add(key("b"));
        assert_eq!(q.next().await, key("a"));
        q.add(key("a"));
        assert_eq!(q.next().await, key("b"));
        assert_eq!(q.try_next(), None, "a is busy");
        q.done(&key("a"));
        assert_eq!(q.next().await, key("a"), "a was asked for while it was busy");
        q.done(&key("a"));
        assert_eq!(q.try_next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let q = Queue::new();
        let start = Instant::now();
        q.add_after(key("a"), Duration::from_secs(60));
        q.add_after(key("a"), Duration::from_secs(10));
        q.add_after(key("a"), Duration::from_secs(30));
        assert_eq!(q.next().await, key("a"));
        assert_eq!(start.elapsed().as_secs(), 10);
        q.done(&key("a"));
        assert!(tokio::time::timeout(Duration::from_secs(600), q.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn retries_back_off_until_forgotten() {
        let q = Queue::new();
        let delays: Vec<u128> = (0..4)
            .map(|_| {
                let d = q.retry(key("a")).as_millis();
                q.state.lock().due.clear();
                d
            })
            .collect();
        assert_eq!(delays, [5, 10, 20, 40]);
        for _ in 0..100 {
            assert!(q.retry(key("a")) <= LAST_RETRY);
        }
        q.forget(&key("a"));
        assert_eq!(q.retry(key("a")), FIRST_RETRY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeping_consumer_wakes_for_an_earlier_key() {
        let q = std::sync::Arc::new(Queue::new());
        q.add_after(key("late"), Duration::from_secs(100));
        let q2 = q.clone();
        let task = tokio::spawn(async move { q2.next().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        q.add(key("now"));
        assert_eq!(task.await.ok(), Some(key("now")));
    }
}
