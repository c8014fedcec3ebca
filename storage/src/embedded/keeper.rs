//! The keeper: one thread that moves events from the log into the table, prepares and reuses the
//! log's segments, and compacts. Nobody who writes waits for it unless it falls far behind.

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Options,
    frame::Record,
    handoff::{Compaction, Handoff},
    rows::Rows,
    segment::{Segment, io_error},
    store::Store,
};
use crate::{Error, Event, Revision, hub::event_bytes};

/// The most events a checkpoint moves at once.
const CHECKPOINT_EVENTS: usize = 16 * 1024;
/// The most bytes a checkpoint moves at once, give or take an event.
const CHECKPOINT_BYTES: usize = 8 << 20;
/// The most rows one transaction removes.
const SWEEP_ROWS: usize = 4096;
const TICK: Duration = Duration::from_secs(1);
/// How often the revision is noted for compaction by age.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct Keeper {
    pub store: Arc<Store>,
    pub handoff: Arc<Handoff>,
    pub rows: Rows,
    pub options: Options,
    pub log_dir: PathBuf,
    pub next_segment: u64,
    /// Complete segments whose files can be used again.
    pub spare: Vec<PathBuf>,
    /// Held as long as the directory is in use.
    pub lock: File,
}

enum Work {
    Prepare,
    Checkpoint,
    Recycle,
    Compact(Compaction),
    Close,
}

impl Keeper {
    /// Works until the writer has ended.
    pub fn run(mut self) {
        let mut last_checkpoint = Instant::now();
        let mut retention = Retention::new(self.options.history_age, self.options.history_revisions);
        let mut patient = false;
        loop {
            let applied = self.store.state.read().applied;
            let due = last_checkpoint.elapsed() >= self.options.checkpoint_interval;
            let threshold = if due { 1 } else { self.options.checkpoint_bytes };
            let work = self.handoff.wait(TICK, |desk| {
                if desk.closing {
                    Some(Work::Close)
                } else if patient {
                    // After a failure everything else waits for a tick.
                    None
                } else if desk.prepared.is_none() {
                    Some(Work::Prepare)
                } else if let Some(compaction) = desk.compactions.pop() {
                    Some(Work::Compact(compaction))
                } else if desk.backlog >= threshold {
                    Some(Work::Checkpoint)
                } else if desk.retired.first().is_some_and(|r| r.last <= applied) {
                    Some(Work::Recycle)
                } else {
                    None
                }
            });
            let result = match work {
                Some(Work::Close) => break,
                Some(Work::Prepare) => self.prepare(),
                Some(Work::Checkpoint) => {
                    last_checkpoint = Instant::now();
                    self.checkpoint()
                }
                Some(Work::Recycle) => self.recycle(applied),
                Some(Work::Compact(compaction)) => {
                    let result = self.compact(compaction.revision);
                    let _ = compaction.reply.send(result.clone());
                    match result {
                        Err(Error::FutureRevision { .. }) => Ok(()),
                        result => result,
                    }
                }
                None => self.tick(&mut retention),
            };
            patient = result.is_err();
            if let Err(error) = &result {
                tracing::warn!(%error, "storage maintenance failed and will be tried again");
            }
            self.handoff.change(|desk| desk.trouble = result.err());
        }
        self.close();
    }

    fn tick(&mut self, retention: &mut Retention) -> Result<(), Error> {
        let (current, compacted) = {
            let state = self.store.state.read();
            (state.index.current(), state.index.compacted())
        };
        match retention.compact_to(Instant::now(), current) {
            Some(revision) if revision > compacted => self.compact(revision),
            _ => Ok(()),
        }
    }

    fn prepare(&mut self) -> Result<(), Error> {
        let id = self.next_segment;
        let segment = Segment::create(&self.log_dir, id, self.options.segment_bytes, self.spare.pop())?;
        self.next_segment += 1;
        self.handoff.change(|desk| desk.prepared = Some(segment));
        Ok(())
    }

    /// Moves events to the table, a bounded number of them.
    fn checkpoint(&self) -> Result<(), Error> {
        let events: Vec<Event> = {
            let state = self.store.state.read();
            let mut bytes = 0;
            let fits = |event: &&Event| {
                let fits = bytes < CHECKPOINT_BYTES;
                bytes += event_bytes(event);
                fits
            };
            match state.ring.since(state.applied + 1) {
                Some(events) => events.take(CHECKPOINT_EVENTS).take_while(fits).cloned().collect(),
                None => {
                    return Err(Error::Corrupt {
                        what: "events were dropped before their checkpoint".into(),
                    });
                }
            }
        };
        let Some(applied) = events.last().map(Event::revision) else { return Ok(()) };
        self.rows.append(events.iter().map(Record::from))?;
        {
            let mut state = self.store.state.write();
            state.applied = applied;
            state.ring.evict(applied, self.options.recent_bytes);
        }
        let bytes: usize = events.iter().map(event_bytes).sum();
        self.handoff.change(|desk| desk.backlog -= bytes);
        Ok(())
    }

    /// Takes back the files of segments that the table has all of.
    fn recycle(&mut self, applied: Revision) -> Result<(), Error> {
        let retired = self.handoff.change(|desk| {
            let n = desk.retired.partition_point(|r| r.last <= applied);
            desk.retired.drain(..n).collect::<Vec<_>>()
        });
        for segment in retired {
            if self.spare.is_empty() {
                self.spare.push(segment.path);
            } else {
                fs::remove_file(&segment.path).map_err(|e| io_error("remove", &segment.path, &e))?;
            }
        }
        Ok(())
    }

    fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        // Rows to remove must be in the table first.
        loop {
            let state = self.store.state.read();
            if state.applied >= revision.min(state.index.current()) {
                break;
            }
            drop(state);
            self.checkpoint()?;
        }
        loop {
            let gone = {
                let mut state = self.store.state.write();
                state.index.compact(revision)?;
                state.index.sweep(SWEEP_ROWS)
            };
            self.rows.remove(&gone, revision)?;
            if gone.len() < SWEEP_ROWS {
                return Ok(());
            }
        }
    }

    /// Leaves an empty log, if all goes well, and lets go of the files.
    fn close(self) {
        loop {
            let state = self.store.state.read();
            if state.applied >= state.index.current() {
                break;
            }
            drop(state);
            if let Err(error) = self.checkpoint() {
                tracing::warn!(%error, "the last checkpoint failed; the log has the writes");
                break;
            }
        }
        self.store.state.write().rows = None;
        self.store.hub.close(Error::Closed);
        let waiting = self.handoff.change(|desk| std::mem::take(&mut desk.compactions));
        for compaction in waiting {
            let _ = compaction.reply.send(Err(Error::Closed));
        }
        drop(self.rows);
        drop(self.lock);
    }
}

/// Decides how much history to keep. Pure.
struct Retention {
    age: Duration,
    revisions: u64,
    /// When which revision was the current one, oldest first.
    samples: VecDeque<(Instant, Revision)>,
}

impl Retention {
    fn new(age: Duration, revisions: u64) -> Retention {
        Retention { age, revisions, samples: VecDeque::new() }
    }

    /// The revision to compact to now.
    fn compact_to(&mut self, now: Instant, current: Revision) -> Option<Revision> {
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= SAMPLE_INTERVAL) {
            self.samples.push_back((now, current));
        }
        let mut by_age = None;
        while let Some((_, revision)) =
            self.samples.pop_front_if(|(at, _)| now.duration_since(*at) >= self.age)
        {
            by_age = Some(revision);
        }
        let by_count = current.checked_sub(self.revisions);
        by_age.max(by_count).filter(|revision| *revision > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_history_by_age_and_by_count() {
        let start = Instant::now();
        let mut retention = Retention::new(Duration::from_secs(60), 1000);
        let mut got = Vec::new();
        for second in 0..=90 {
            // Ten revisions a second.
            if let Some(revision) = retention.compact_to(start + Duration::from_secs(second), 1 + second * 10)
            {
                got.push((second, revision));
            }
        }
        assert_eq!(got, [(60, 1), (70, 101), (80, 201), (90, 301)]);
        // A burst is cut by count, however young.
        assert_eq!(retention.compact_to(start + Duration::from_secs(91), 50_000), Some(49_000));
    }
}
