//! Records events, folding repetitions into one event's count and damping floods.

use std::collections::HashMap;

use jiff::{Timestamp, ToSpan};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::plan::Note;

/// How many notes may wait to be written; further ones are dropped, as events are best effort.
const BACKLOG: usize = 1024;
/// How many different events are remembered.
const MEMORY: usize = 4096;
/// How long similar events are counted together, in seconds.
const WINDOW: i64 = 600;
/// How many events with different messages may be alike before they are combined.
const SIMILAR: usize = 10;
/// How many events one object may have at once, and how often it regains one (seconds).
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

/// Takes notes on behalf of one component.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    sink: mpsc::Sender<(&'static str, Note)>,
}

impl Recorder {
    /// A recorder and the far end to be written out by [`write_events`].
    pub fn channel() -> (Self, mpsc::Receiver<(&'static str, Note)>) {
        let (sink, source) = mpsc::channel(BACKLOG);
        (Self { component: "kube-controller-manager", sink }, source)
    }

    /// The same sink on behalf of `component`.
    pub fn for_component(&self, component: &'static str) -> Self {
        Self { component, sink: self.sink.clone() }
    }

    /// Notes an event. Never waits: when too many are waiting, it is dropped.
    pub fn record(&self, note: Note) {
        if self.sink.try_send((self.component, note)).is_err() {
            tracing::debug!(component = self.component, "event dropped");
        }
    }
}

/// Writes noted events until cancelled.
pub async fn write_events(
    client: Client,
    mut source: mpsc::Receiver<(&'static str, Note)>,
    stop: CancellationToken,
) {
    let mut correlator = Correlator::default();
    loop {
        let (component, note) = tokio::select! {
            () = stop.cancelled() => return,
            next = source.recv() => match next {
                Some(next) => next,
                None => return,
            },
        };
        let Some(event) = correlator.fold(component, note, Timestamp::now()) else { continue };
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Err(error) = write(&api, &event).await {
            tracing::debug!(%error, reason = event.reason, "event not written");
        }
    }
}

async fn write(api: &Api<Event>, event: &Event) -> Result<(), kube::Error> {
    if event.count.unwrap_or(1) > 1 {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "count": event.count,
            "lastTimestamp": event.last_timestamp,
            "message": event.message,
        });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {} // expired: write it anew
            other => return other.map(|_| ()),
        }
    }
    api.create(&PostParams::default(), event).await.map(|_| ())
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Similar {
    component: &'static str,
    object: String,
    warning: bool,
    reason: &'static str,
}

struct Group {
    messages: Vec<String>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// Decides what becomes of each note: a new event, a higher count of an old one, or nothing. PURE.
#[derive(Default)]
struct Correlator {
    events: HashMap<(Similar, String), Event>,
    groups: HashMap<Similar, Group>,
    buckets: HashMap<(&'static str, String), Bucket>,
    serial: u64,
}

impl Correlator {
    fn fold(&mut self, component: &'static str, note: Note, now: Timestamp) -> Option<Event> {
        self.shrink(now);
        let object = identity(&note.about);
        let similar =
            Similar { component, object: object.clone(), warning: note.warning, reason: note.reason };

        let group =
            self.groups.entry(similar.clone()).or_insert_with(|| Group { messages: Vec::new(), last: now });
        if now.as_second() - group.last.as_second() > WINDOW {
            group.messages.clear();
        }
        group.last = now;
        if !group.messages.contains(&note.message) && group.messages.len() < SIMILAR {
            group.messages.push(note.message.clone());
        }
        let (id, message) = if group.messages.contains(&note.message) {
            (note.message.clone(), note.message.clone())
        } else {
            (String::new(), format!("(combined from similar events): {}", note.message))
        };

        let bucket =
            self.buckets.entry((component, object)).or_insert_with(|| Bucket { tokens: BURST, at: now });
        let passed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed / REFILL_SECONDS).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;

        let slot = (similar, id);
        if let Some(event) = self.events.get_mut(&slot) {
            event.count = Some(event.count.unwrap_or(1).saturating_add(1));
            event.last_timestamp = Some(object::time(now));
            event.message = Some(message);
            return Some(event.clone());
        }
        self.serial += 1;
        let event = new_event(component, &note, message, now, self.serial);
        self.events.insert(slot, event.clone());
        Some(event)
    }

    /// Keeps the memory bounded: forgets what is older than the window, or all of it.
    fn shrink(&mut self, now: Timestamp) {
        if self.events.len() < MEMORY && self.groups.len() < MEMORY && self.buckets.len() < MEMORY {
            return;
        }
        let floor = now.checked_sub(WINDOW.seconds()).unwrap_or(now);
        self.events.retain(|_, e| e.last_timestamp.as_ref().is_some_and(|t| t.0 > floor));
        self.groups.retain(|_, g| g.last > floor);
        self.buckets.retain(|_, b| b.at > floor);
        if self.events.len() >= MEMORY || self.groups.len() >= MEMORY || self.buckets.len() >= MEMORY {
            *self = Self { serial: self.serial, ..Self::default() };
        }
    }
}

fn identity(about: &ObjectReference) -> String {
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    format!("{}/{}/{}/{}", part(&about.kind), part(&about.namespace), part(&about.name), part(&about.uid))
}

fn new_event(component: &str, note: &Note, message: String, now: Timestamp, serial: u64) -> Event {
    let mut event = Event {
        involved_object: note.about.clone(),
        reason: Some(note.reason.to_owned()),
        message: Some(message),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        count: Some(1),
        first_timestamp: Some(object::time(now)),
        last_timestamp: Some(object::time(now)),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        ..Event::default()
    };
    let name = note.about.name.as_deref().unwrap_or_default();
    // Unique per process by its serial, and between processes by the time.
    let nanos = u64::try_from(now.as_nanosecond()).unwrap_or_default().wrapping_add(serial);
    event.metadata.name = Some(format!("{name}.{nanos:x}"));
    let namespace = note.about.namespace.clone().filter(|n| !n.is_empty());
    event.metadata.namespace = Some(namespace.unwrap_or_else(|| "default".to_owned()));
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, message: &str) -> Note {
        let about = ObjectReference {
            kind: Some("Pod".into()),
            name: Some(name.into()),
            namespace: Some("ns".into()),
            ..ObjectReference::default()
        };
        Note::normal(about, "Created", message)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn repetitions_count() {
        let mut c = Correlator::default();
        let first = c.fold("x", note("a", "m"), at(1)).unwrap();
        let again = c.fold("x", note("a", "m"), at(2)).unwrap();
        assert_eq!(first.metadata.name, again.metadata.name);
        assert_eq!((first.count, again.count), (Some(1), Some(2)));
        let other = c.fold("x", note("b", "m"), at(2)).unwrap();
        assert_eq!(other.count, Some(1));
        assert_ne!(other.metadata.name, first.metadata.name);
    }

    #[test]
    fn similar_messages_are_combined() {
        let mut c = Correlator::default();
        for n in 0..SIMILAR {
            assert_eq!(c.fold("x", note("a", &format!("m{n}")), at(1)).unwrap().count, Some(1));
        }
        let combined = c.fold("x", note("a", "m-last"), at(1)).unwrap();
        assert_eq!(combined.message.as_deref(), Some("(combined from similar events): m-last"));
        assert_eq!(c.fold("x", note("a", "m-more"), at(1)).unwrap().count, Some(2));
    }

    #[test]
    fn a_flood_is_damped_and_memory_is_bounded() {
        let mut c = Correlator::default();
        let written = (0..1000).filter(|_| c.fold("x", note("a", "m"), at(1)).is_some()).count();
        assert_eq!(written, 25);
        assert!(c.fold("x", note("a", "m"), at(302)).is_some());
        for n in 0..3 * MEMORY {
            c.fold("x", note(&n.to_string(), "m"), at(400));
        }
        assert!(c.events.len() <= MEMORY && c.buckets.len() <= MEMORY);
    }
}
