//! Events about pods (`events.k8s.io/v1`), as kube-scheduler's recorder writes them: what is said of a pod once more
//! becomes a series of the event that there is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::json;

use crate::pod::PodKey;

/// An event's note is no longer.
const MAX_NOTE: usize = 1024;
/// A series that nothing was added to for so long has ended (`finishTime` of client-go's recorder).
const FINISHED: Duration = Duration::from_secs(6 * 60);
/// So many events are remembered; the oldest is forgotten first.
const MEMORY: usize = 1 << 16;

/// Something to tell about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    warning: bool,
    reason: &'static str,
    action: &'static str,
    note: String,
    related: Option<PodKey>,
}

impl Notice {
    /// Of a pod that was bound.
    pub fn scheduled(key: &PodKey, node: &str) -> Self {
        Notice {
            warning: false,
            reason: "Scheduled",
            action: "Binding",
            note: format!("Successfully assigned {}/{} to {node}", key.namespace, key.name),
            related: None,
        }
    }

    /// Of a pod that waits for devices before it is bound.
    pub fn waits(node: &str) -> Self {
        Notice {
            warning: false,
            reason: "BindingConditionsPending",
            action: "Scheduling",
            note: format!("waiting for binding conditions for device on node {node}"),
            related: None,
        }
    }

    /// Of a pod that could not be placed.
    pub fn failed(message: &str) -> Self {
        let mut note = message.to_owned();
        if note.len() > MAX_NOTE {
            note.truncate(note.floor_char_boundary(MAX_NOTE - 4));
            note.push_str(" ...");
        }
        Notice { warning: true, reason: "FailedScheduling", action: "Scheduling", note, related: None }
    }

    /// Of a pod that has to go for another one.
    pub fn preempted(by: &PodKey, node: &str) -> Self {
        Notice {
            warning: false,
            reason: "Preempted",
            action: "Preempting",
            note: format!("Preempted by pod {} on node {node}", by.uid),
            related: Some(by.clone()),
        }
    }

    /// A pod is bound once.
    fn may_repeat(&self) -> bool {
        self.reason != "Scheduled"
    }
}

/// What makes two events of a process the same: the pod, the reason, and the other pod.
type Alike = (Arc<str>, &'static str, Option<Arc<str>>);

/// The event that was written for a notice.
#[derive(Clone, Debug)]
struct Written {
    name: String,
    count: i32,
    last: Instant,
}

/// What was told lately. PURE.
#[derive(Debug, Default)]
struct Memory {
    written: HashMap<Alike, Written>,
    /// In the order in which they are looked at again; a series may have gone on meanwhile.
    order: VecDeque<(Instant, Alike)>,
}

impl Memory {
    /// The event that this is one more of, with their number; `None`: it is the first.
    fn again(&mut self, alike: &Alike, now: Instant) -> Option<(String, i32)> {
        self.forget(now);
        let written = self.written.get_mut(alike)?;
        written.count = written.count.saturating_add(1);
        written.last = now;
        Some((written.name.clone(), written.count))
    }

    fn remember(&mut self, alike: Alike, name: String, now: Instant) {
        if self.written.insert(alike.clone(), Written { name, count: 1, last: now }).is_none() {
            self.order.push_back((now, alike));
        }
        if self.written.len() > MEMORY
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.written.remove(&oldest);
        }
    }

    /// Forgets series that have ended.
    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= FINISHED)
            && let Some((_, alike)) = self.order.pop_front()
        {
            match self.written.get(&alike).map(|written| written.last) {
                Some(last) if now.saturating_duration_since(last) < FINISHED => {
                    self.order.push_back((last, alike));
                }
                _ => drop(self.written.remove(&alike)),
            }
        }
    }
}

/// Writes events.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    instance: Arc<str>,
    memory: Arc<Mutex<Memory>>,
}

impl Recorder {
    /// Writes them with this `reportingInstance`.
    pub fn new(client: Client, instance: &str) -> Self {
        Recorder { client, instance: instance.into(), memory: Arc::default() }
    }

    /// Tells something of a pod on behalf of a profile; what is lost is only told to the log, as events are best effort.
    pub async fn publish(&self, notice: Notice, scheduler: &str, key: &PodKey) {
        if let Err(error) = self.write(notice, scheduler, key).await {
            tracing::debug!(%error, namespace = %key.namespace, pod = %key.name, "event not recorded");
        }
    }

    async fn write(&self, notice: Notice, scheduler: &str, key: &PodKey) -> Result<(), kube::Error> {
        let alike = (key.uid.clone(), notice.reason, notice.related.as_ref().map(|by| by.uid.clone()));
        let repeats = notice.may_repeat();
        let again = if repeats { self.memory().again(&alike, Instant::now()) } else { None };
        let now = Timestamp::now();
        let requests = Request::new(Event::url_path(&(), Some(&key.namespace)));
        if let Some((name, count)) = again {
            let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(now)}});
            let request = requests.patch(&name, &PatchParams::default(), &Patch::Merge(series));
            match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
                // It has expired, and is written anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let event = self.event(notice, scheduler, key, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        let body = serde_json::to_vec(&event).map_err(kube::Error::SerdeError)?;
        let request = requests.create(&PostParams::default(), body).map_err(kube::Error::BuildRequest)?;
        // The answer is the event again, which nobody needs.
        self.client.request_text(request).await?;
        if repeats {
            self.memory().remember(alike, name, Instant::now());
        }
        Ok(())
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // Whatever was being noted when another thread ended: a count may be one short.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, notice: Notice, scheduler: &str, key: &PodKey, now: Timestamp) -> Event {
        Event {
            metadata: ObjectMeta {
                namespace: Some(key.namespace.to_string()),
                name: Some(format!("{}.{:x}", key.name, now.as_nanosecond())),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(scheduler.to_owned()),
            reporting_instance: Some(self.instance.to_string()),
            action: Some(notice.action.to_owned()),
            reason: Some(notice.reason.to_owned()),
            regarding: Some(reference(key)),
            related: notice.related.as_ref().map(reference),
            note: Some(notice.note),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

/// A reference to a pod, as events hold it.
fn reference(key: &PodKey) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(key.uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alike(uid: &str) -> Alike {
        (uid.into(), "FailedScheduling", None)
    }

    #[test]
    fn what_is_said_again_is_a_series_until_it_ends() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        assert_eq!(memory.again(&alike("a"), at(0)), None);
        memory.remember(alike("a"), "a.1".into(), at(0));
        memory.remember(alike("b"), "b.1".into(), at(0));
        assert_eq!(memory.again(&alike("a"), at(5)), Some(("a.1".into(), 2)));
        // The series of one goes on, the other one has ended.
        assert_eq!(memory.again(&alike("b"), at(7)), None);
        assert_eq!(memory.again(&alike("a"), at(10)), Some(("a.1".into(), 3)));
        assert_eq!(memory.again(&alike("a"), at(16)), None);
        assert!(memory.written.is_empty() && memory.order.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for number in 0..=MEMORY {
            memory.remember(alike(&number.to_string()), String::new(), now);
        }
        assert_eq!((memory.written.len(), memory.order.len()), (MEMORY, MEMORY));
        assert_eq!(memory.again(&alike("0"), now), None);
    }

    #[test]
    fn long_notes_are_cut_between_characters() {
        let notice = Notice::failed(&"ä".repeat(MAX_NOTE));
        assert!(notice.note.len() <= MAX_NOTE && notice.note.ends_with("ä ..."));
    }
}
