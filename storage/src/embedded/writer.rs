//! The writer: one thread that turns whatever writes are waiting into one frame of the log.
//!
//! While a frame is on its way to the disk the next writes gather, so that the batches grow with the
//! load by themselves and a lone writer waits for nobody.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use super::{
    frame::record_bound,
    handoff::{Handoff, Retired},
    plan::{Outcome, Plan, Request, View, plan},
    segment::{Append, Log},
    store::{State, Store},
};
use crate::{
    Error, Event, KeyValue, MAX_KEY_BYTES, MAX_REQUEST_BYTES, Revision, hub::event_bytes, index::Version,
};

/// A batch is not extended beyond this many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// A batch is not extended beyond this many writes.
const BATCH_WRITES: usize = 1024;
/// The largest frame there can be: a full batch and one more write.
pub(crate) const MAX_FRAME_BYTES: usize = BATCH_BYTES + MAX_REQUEST_BYTES + MAX_KEY_BYTES + 4096;
/// How long writes wait for the keeper before they are refused.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) enum Message {
    Write(Request),
    Close,
}

pub(crate) struct Writer {
    pub store: Arc<Store>,
    pub handoff: Arc<Handoff>,
    pub log: Log,
    /// The keeper is woken at this many bytes in the log only.
    pub checkpoint_bytes: usize,
    /// Writes wait while more bytes than this are in the log only.
    pub max_backlog: usize,
    /// Why no more can be written: what is on disk is not known.
    pub failed: Option<Error>,
}

impl View for State {
    fn current(&self) -> Revision {
        self.index.current()
    }
    fn latest(&self, key: &str) -> Option<Version> {
        self.index.latest(key)
    }
    fn intern(&self, key: &str) -> Arc<str> {
        self.index.intern(key)
    }
    fn value(&self, revision: Revision) -> Result<KeyValue, Error> {
        State::value(self, revision)
    }
}

impl Writer {
    /// Writes until everybody is gone or somebody closes.
    pub fn run(mut self, requests: Receiver<Message>) {
        while let Ok(Message::Write(first)) = requests.recv() {
            let (batch, more) = gather(first, &requests);
            self.commit(batch);
            if !more {
                break;
            }
        }
        // Requests that are still queued are answered `Closed` by being dropped.
        drop(requests);
        self.handoff.change(|desk| desk.closing = true);
    }

    fn commit(&mut self, batch: Vec<Request>) {
        if let Err(error) = self.admit() {
            return refuse(batch.into_iter().map(|r| r.reply), &error);
        }
        let Plan { events, answers } = plan(&*self.store.state.read(), batch);
        if !events.is_empty() {
            if let Err(error) = self.make_durable(&events) {
                return refuse(answers.into_iter().map(|(reply, _)| reply), &error);
            }
            // Before the keeper can see the events: it subtracts what it has taken over.
            self.handoff.add_backlog(events.iter().map(event_bytes).sum(), self.checkpoint_bytes);
            self.store.publish(events);
        }
        for (reply, outcome) in answers {
            // Whoever asked may have gone.
            let _ = reply.send(outcome);
        }
    }

    /// Waits until there is room for another batch.
    fn admit(&self) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let room = self.handoff.wait(PATIENCE, |desk| {
            if desk.backlog <= self.max_backlog { Some(Ok(())) } else { desk.trouble.clone().map(Err) }
        });
        room.unwrap_or_else(|| Err(Error::Unavailable("the disk does not keep up".to_owned())))
    }

    fn make_durable(&mut self, events: &[Event]) -> Result<(), Error> {
        if matches!(self.append(events)?, Append::Full) {
            let ready = self.handoff.wait(PATIENCE, |desk| match desk.prepared.take() {
                Some(segment) => Some(Ok(segment)),
                None => desk.trouble.clone().map(Err),
            });
            let Some(segment) = ready else {
                return Err(Error::Unavailable("there is no room for the log".to_owned()));
            };
            let path = self.log.rotate(segment?);
            let last = events.first().map_or(0, |e| e.revision() - 1);
            self.handoff.change(|desk| desk.retired.push(Retired { path, last }));
            if matches!(self.append(events)?, Append::Full) {
                return Err(Error::Unavailable("a batch exceeds the log's segment".to_owned()));
            }
        }
        Ok(())
    }

    fn append(&mut self, events: &[Event]) -> Result<Append, Error> {
        self.log.append(events).map_err(|e| {
            let error = Error::Unavailable(format!("the log cannot be written, restart to recover: {e}"));
            tracing::error!(%error, "storage stops accepting writes");
            self.failed = Some(error.clone());
            error
        })
    }
}

/// `first` and what else is waiting; and whether to go on after that.
fn gather(first: Request, requests: &Receiver<Message>) -> (Vec<Request>, bool) {
    let size = |r: &Request| record_bound(r.key.len(), r.value.as_ref().map_or(0, |v| v.len()));
    let mut bytes = size(&first);
    let mut batch = vec![first];
    while bytes < BATCH_BYTES && batch.len() < BATCH_WRITES {
        match requests.try_recv() {
            Ok(Message::Write(request)) => {
                bytes += size(&request);
                batch.push(request);
            }
            Ok(Message::Close) | Err(TryRecvError::Disconnected) => return (batch, false),
            Err(TryRecvError::Empty) => break,
        }
    }
    (batch, true)
}

fn refuse(replies: impl Iterator<Item = tokio::sync::oneshot::Sender<Outcome>>, error: &Error) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use parking_lot::RwLock;
    use tempfile::TempDir;
    use tokio::sync::oneshot;

    use super::{
        super::{ring::Ring, rows::Rows, segment::Segment},
        *,
    };
    use crate::{FIRST_REVISION, Precondition, hub::Hub, index::Index};

    struct Bench {
        writer: Writer,
        dir: TempDir,
    }

    fn bench(segment: impl FnOnce(&TempDir) -> Segment) -> Bench {
        let dir = TempDir::new().unwrap();
        let table = dir.path().join("table.redb");
        Rows::create(&table, 1, 1).unwrap();
        let state = State {
            index: Index::new(),
            ring: Ring::new(FIRST_REVISION + 1),
            applied: FIRST_REVISION,
            rows: Some(Rows::open(&table, 1 << 20).unwrap()),
        };
        let writer = Writer {
            store: Arc::new(Store { state: RwLock::new(state), hub: Hub::new(FIRST_REVISION) }),
            handoff: Arc::new(Handoff::default()),
            log: Log::new(1, segment(&dir)),
            checkpoint_bytes: usize::MAX,
            max_backlog: 10_000,
            failed: None,
        };
        Bench { writer, dir }
    }

    fn put(key: &str, bytes: usize, precondition: Precondition) -> (Request, oneshot::Receiver<Outcome>) {
        let (reply, answer) = oneshot::channel();
        (
            Request { key: key.to_owned(), value: Some(Bytes::from(vec![1; bytes])), precondition, reply },
            answer,
        )
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_the_writer_for_good() {
        let Bench { mut writer, dir } = bench(|dir| Segment::unwritable(dir.path(), 1 << 20));
        let (request, mut answer) = put("a", 1, Precondition::Absent);
        writer.commit(vec![request]);
        assert!(matches!(answer.try_recv(), Ok(Err(Error::Unavailable(_)))));
        // Nothing of it is visible, and the next one is not even tried.
        assert_eq!(writer.store.get("a").unwrap(), (None, FIRST_REVISION));
        writer.log = Log::new(1, Segment::create(dir.path(), 1, 1 << 20, None).unwrap());
        let (request, mut answer) = put("a", 1, Precondition::Absent);
        writer.commit(vec![request]);
        assert!(matches!(answer.try_recv(), Ok(Err(Error::Unavailable(_)))));
    }

    #[test]
    fn a_keeper_in_trouble_holds_writes_back_and_says_why() {
        let Bench { mut writer, dir: _dir } =
            bench(|dir| Segment::create(dir.path(), 0, 64 << 10, None).unwrap());
        let handoff = writer.handoff.clone();
        handoff.change(|desk| desk.trouble = Some(Error::Unavailable("no space left".to_owned())));
        let mut answers = Vec::new();
        for n in 0..20 {
            let (request, mut answer) = put(&format!("k{n}"), 1000, Precondition::Absent);
            writer.commit(vec![request]);
            answers.push(answer.try_recv().unwrap());
        }
        // Writes go on until the backlog is full, then they are refused and nothing is lost.
        let accepted = answers.iter().take_while(|a| a.is_ok()).count();
        assert!((5..12).contains(&accepted), "{accepted}");
        let refused = answers[accepted..]
            .iter()
            .all(|a| matches!(a, Err(Error::Unavailable(why)) if why == "no space left"));
        assert!(refused);
        handoff.change(|desk| (desk.trouble, desk.backlog) = (None, 0));
        let (request, mut answer) = put("k0", 1, Precondition::Absent);
        writer.commit(vec![request]);
        assert!(matches!(answer.try_recv(), Ok(Err(Error::Conflict { current: Some(_) }))));
        // A full segment without a next one refuses as well.
        handoff.change(|desk| desk.trouble = Some(Error::Unavailable("no space left".to_owned())));
        let (request, mut answer) = put("large", 60 << 10, Precondition::Absent);
        writer.commit(vec![request]);
        assert!(matches!(answer.try_recv(), Ok(Err(Error::Unavailable(_)))));
    }

    #[test]
    fn a_batch_is_decided_in_order_and_answered_after_it_is_durable() {
        let Bench { mut writer, dir: _dir } =
            bench(|dir| Segment::create(dir.path(), 0, 64 << 10, None).unwrap());
        let (first, mut created) = put("a", 1, Precondition::Absent);
        let (second, mut lost) = put("a", 2, Precondition::Absent);
        let (third, mut updated) = put("a", 3, Precondition::ModRevision(2));
        writer.commit(vec![first, second, third]);
        assert!(matches!(created.try_recv(), Ok(Ok((None, 2)))));
        assert!(
            matches!(lost.try_recv(), Ok(Err(Error::Conflict { current: Some(kv) })) if kv.mod_revision == 2)
        );
        assert!(matches!(updated.try_recv(), Ok(Ok((Some(kv), 3))) if kv.value.len() == 1));
        let (kv, revision) = writer.store.get("a").unwrap();
        assert_eq!((kv.unwrap().create_revision, revision), (2, 3));
    }

    #[test]
    fn requests_after_the_end_are_dropped() {
        let Bench { writer, dir: _dir } =
            bench(|dir| Segment::create(dir.path(), 0, 64 << 10, None).unwrap());
        let (requests, receiver) = mpsc::channel();
        let (request, mut answer) = put("a", 1, Precondition::None);
        requests.send(Message::Close).unwrap();
        requests.send(Message::Write(request)).unwrap();
        let handoff = writer.handoff.clone();
        writer.run(receiver);
        assert!(answer.try_recv().is_err());
        assert!(handoff.change(|desk| desk.closing));
    }
}
