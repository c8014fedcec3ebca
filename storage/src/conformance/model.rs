//! Random histories against a model: a map, and a copy of it per revision.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures::Future;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};

use super::{Fixture, at, events_upto};
use crate::{Error, Event, EventKind, KeyValue, ListOptions, Precondition, Revision, Storage};

type Check = Result<(), TestCaseError>;

#[derive(Clone, Copy, Debug)]
enum Condition {
    None,
    Absent,
    Current,
    Stale,
    Zero,
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, size: u16, condition: Condition },
    Delete { key: u8, condition: Condition },
    Get { key: u8 },
    List { start_after: Option<u8>, limit: u8, back: u8 },
    Compact { back: u8 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let condition = prop_oneof![
        4 => Just(Condition::None),
        2 => Just(Condition::Absent),
        4 => Just(Condition::Current),
        1 => Just(Condition::Stale),
        1 => Just(Condition::Zero),
    ];
    prop_oneof![
        60 => (0..8u8, 0..600u16, condition.clone()).prop_map(|(key, size, condition)| Step::Put { key, size, condition }),
        30 => (0..8u8, condition).prop_map(|(key, condition)| Step::Delete { key, condition }),
        10 => (0..8u8).prop_map(|key| Step::Get { key }),
        20 => (prop::option::of(0..9u8), 0..5u8, 0..12u8)
            .prop_map(|(start_after, limit, back)| Step::List { start_after, limit, back }),
        5 => (0..12u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Restart),
    ]
}

/// What the store has to be.
struct Model {
    prefix: String,
    start: Revision,
    revision: Revision,
    compacted: Revision,
    /// The live keys after each revision since `start`.
    history: Vec<BTreeMap<String, KeyValue>>,
    events: Vec<Event>,
}

impl Model {
    fn live(&self) -> &BTreeMap<String, KeyValue> {
        &self.history[(self.revision - self.start) as usize]
    }

    fn key(&self, n: u8) -> String {
        // Keys that are prefixes of each other.
        format!("{}{}{}", self.prefix, n % 3, "/x".repeat(usize::from(n / 3)))
    }

    fn precondition(&self, key: &str, condition: Condition) -> Precondition {
        let current = self.live().get(key).map_or(self.revision, |kv| kv.mod_revision);
        match condition {
            Condition::None => Precondition::None,
            Condition::Absent => Precondition::Absent,
            Condition::Current => Precondition::ModRevision(current),
            Condition::Stale => Precondition::ModRevision(current - 1),
            Condition::Zero => Precondition::ModRevision(0),
        }
    }

    /// The outcome of a write, which is noted when it succeeds.
    fn write(
        &mut self,
        key: &str,
        value: Option<bytes::Bytes>,
        precondition: Precondition,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        let prev = self.live().get(key).cloned();
        if value.is_none() && prev.is_none() {
            return Err(Error::NotFound);
        }
        let holds = match (precondition, &prev) {
            (Precondition::None, _) | (Precondition::Absent, None) => true,
            (Precondition::ModRevision(want), Some(kv)) => kv.mod_revision == want,
            _ => false,
        };
        if !holds {
            return Err(Error::Conflict { current: prev });
        }
        let mut live = self.live().clone();
        self.revision += 1;
        let kind = if value.is_some() { EventKind::Put } else { EventKind::Delete };
        let create_revision = match (kind, &prev) {
            (EventKind::Delete, _) => 0,
            (EventKind::Put, Some(kv)) => kv.create_revision,
            (EventKind::Put, None) => self.revision,
        };
        let kv = KeyValue {
            key: key.into(),
            value: value.unwrap_or_default(),
            create_revision,
            mod_revision: self.revision,
        };
        match kind {
            EventKind::Put => live.insert(key.to_owned(), kv.clone()),
            EventKind::Delete => live.remove(key),
        };
        self.history.push(live);
        self.events.push(Event { kind, kv, prev: prev.clone() });
        Ok((prev, self.revision))
    }
}

/// Results are compared by what they show: errors have no equality.
fn shown<T: std::fmt::Debug>(result: &Result<T, Error>) -> String {
    format!("{result:?}")
}

async fn run_step(fixture: &mut dyn Fixture, model: &mut Model, step: &Step) -> Check {
    let store = fixture.store();
    match step {
        Step::Put { key, size, condition } => {
            let key = model.key(*key);
            let precondition = model.precondition(&key, *condition);
            let value = bytes::Bytes::from(vec![model.revision as u8; usize::from(*size)]);
            let want = model.write(&key, Some(value.clone()), precondition).map(|(_, revision)| revision);
            let got = store.put(&key, value, precondition).await;
            prop_assert_eq!(shown(&got), shown(&want));
        }
        Step::Delete { key, condition } => {
            let key = model.key(*key);
            let precondition = model.precondition(&key, *condition);
            let want =
                model.write(&key, None, precondition).map(|(prev, revision)| (prev.unwrap(), revision));
            let got = store.delete(&key, precondition).await;
            prop_assert_eq!(shown(&got), shown(&want));
        }
        Step::Get { key } => {
            let key = model.key(*key);
            let got = store.get(&key).await.map_err(fail)?;
            prop_assert_eq!(got, (model.live().get(&key).cloned(), model.revision));
        }
        Step::List { start_after, limit, back } => list(&*store, model, *start_after, *limit, *back).await?,
        Step::Compact { back } => {
            let to = model.revision.saturating_sub(Revision::from(*back)).max(model.start);
            store.compact(to).await.map_err(fail)?;
            model.compacted = model.compacted.max(to);
        }
        Step::Restart => {
            drop(store);
            fixture.restart().await;
        }
    }
    let revision = fixture.store().current_revision().await.map_err(fail)?;
    prop_assert_eq!(revision, model.revision);
    Ok(())
}

async fn list(store: &dyn Storage, model: &Model, start_after: Option<u8>, limit: u8, back: u8) -> Check {
    let revision = model.revision.saturating_sub(Revision::from(back)).max(model.start);
    let start_after = start_after.map(|n| model.key(n));
    let limit = usize::from(limit);
    let options = ListOptions { start_after: start_after.clone(), limit, ..at(revision) };
    let got = store.list(&model.prefix, options).await;
    if revision < model.compacted {
        prop_assert!(matches!(got, Err(Error::Compacted { .. })), "{:?}", got);
        return Ok(());
    }
    let got = got.map_err(fail)?;
    let live = &model.history[(revision - model.start) as usize];
    let all: Vec<_> = live
        .iter()
        .filter(|(k, _)| start_after.as_ref().is_none_or(|after| *k > after))
        .map(|(_, kv)| kv)
        .collect();
    let count = if limit == 0 { all.len() } else { all.len().min(limit) };
    prop_assert_eq!(got.items.iter().collect::<Vec<_>>(), &all[..count]);
    prop_assert_eq!(got.remaining, (all.len() - count) as u64);
    prop_assert_eq!((got.more, got.revision), (all.len() > count, revision));
    Ok(())
}

fn fail(error: Error) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

async fn run_case(fixture: &mut dyn Fixture, number: usize, steps: &[Step]) -> Check {
    let start = fixture.store().current_revision().await.map_err(fail)?;
    let mut model = Model {
        prefix: format!("case-{number}/"),
        start,
        revision: start,
        compacted: 0,
        history: vec![BTreeMap::new()],
        events: Vec::new(),
    };
    for step in steps {
        run_step(fixture, &mut model, step).await?;
    }
    // What is left of history is what happened.
    let after = start.max(model.compacted);
    let want: Vec<_> = model.events.into_iter().filter(|e| e.revision() > after).collect();
    if let Some(last) = want.last() {
        let mut watch = fixture.store().watch(&model.prefix, after).await.map_err(fail)?;
        prop_assert_eq!(events_upto(&mut watch, last.revision()).await, want);
    }
    Ok(())
}

/// A fixture in the making.
pub type Making = Pin<Box<dyn Future<Output = Box<dyn Fixture>>>>;

/// Runs `cases` random histories, all on one store.
pub fn model(make: impl Fn() -> Making, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let fixture = Arc::new(tokio::sync::Mutex::new(runtime.block_on(make())));
    let number = std::sync::atomic::AtomicUsize::new(0);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let result = TestRunner::new(config).run(&prop::collection::vec(step(), 1..60), |steps| {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        runtime.block_on(async { run_case(&mut **fixture.lock().await, number, &steps).await })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    drop(fixture);
}
