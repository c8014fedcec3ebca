//! Decides a batch of writes, as if they came one after the other. Pure.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    Error, Event, EventKind, KeyValue, Precondition, Revision,
    index::{Decision, Version, decide},
};

/// What a write comes to: the value it replaced and its revision.
pub(crate) type Outcome = Result<(Option<KeyValue>, Revision), Error>;

/// A write somebody waits for.
pub(crate) struct Request {
    pub key: String,
    /// `None` deletes.
    pub value: Option<Bytes>,
    pub precondition: Precondition,
    pub reply: oneshot::Sender<Outcome>,
}

/// The store before the batch.
pub(crate) trait View {
    fn current(&self) -> Revision;
    fn latest(&self, key: &str) -> Option<Version>;
    fn intern(&self, key: &str) -> Arc<str>;
    fn value(&self, revision: Revision) -> Result<KeyValue, Error>;
}

/// What to make durable, and what to answer then.
#[derive(Default)]
pub(crate) struct Plan {
    pub events: Vec<Event>,
    pub answers: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

/// A refusal may rest on a write of the same batch, so that no answer may be given before the
/// batch is durable.
pub(crate) fn plan(view: &dyn View, batch: Vec<Request>) -> Plan {
    let mut plan = Plan::default();
    // Keys the batch has written so far: the position of their last event.
    let mut written: HashMap<Arc<str>, usize> = HashMap::new();
    for request in batch {
        let outcome =
            plan_one(view, &mut plan.events, &mut written, &request.key, request.value, request.precondition);
        plan.answers.push((request.reply, outcome));
    }
    plan
}

fn plan_one(
    view: &dyn View,
    events: &mut Vec<Event>,
    written: &mut HashMap<Arc<str>, usize>,
    key: &str,
    value: Option<Bytes>,
    precondition: Precondition,
) -> Outcome {
    let earlier = written.get_key_value(key).map(|(key, n)| (key.clone(), events[*n].kv.clone()));
    let live = match &earlier {
        Some((_, kv)) if kv.create_revision == 0 => None,
        Some((_, kv)) => Some(Version { create: kv.create_revision, revision: kv.mod_revision }),
        None => view.latest(key),
    };
    let value_of = |live: Option<Version>| match (&earlier, live) {
        (_, None) => Ok(None),
        (Some((_, kv)), Some(_)) => Ok(Some(kv.clone())),
        (None, Some(version)) => view.value(version.revision).map(Some),
    };
    let prev = match decide(live, value.is_none(), precondition) {
        Decision::NotFound => return Err(Error::NotFound),
        Decision::Conflict(live) => return Err(Error::Conflict { current: value_of(live)? }),
        Decision::Go(live) => value_of(live)?,
    };
    let revision = view.current() + 1 + events.len() as Revision;
    let kind = if value.is_some() { EventKind::Put } else { EventKind::Delete };
    let create_revision = match kind {
        EventKind::Put => live.map_or(revision, |v| v.create),
        EventKind::Delete => 0,
    };
    let key = earlier.map_or_else(|| view.intern(key), |(key, _)| key);
    let kv = KeyValue {
        key: key.clone(),
        value: value.unwrap_or_default(),
        create_revision,
        mod_revision: revision,
    };
    written.insert(key, events.len());
    events.push(Event { kind, kv, prev: prev.clone() });
    Ok((prev, revision))
}
