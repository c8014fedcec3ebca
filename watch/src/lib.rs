//! What a watch says, as changes: a list that was read again also says what is gone. For those who keep only what
//! matters of each object: the rest is dropped at once, so that their memory is that of what they make of it. PURE but
//! for [`changes`], which asks the API.
#![forbid(unsafe_code)]

mod pod;
mod protocol;

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;

pub use pod::LeanPod;
pub use protocol::Protocol;

/// Label that names an EndpointSlice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `namespace/name`, or the name alone of what has no namespace.
pub type ObjectName = Arc<str>;

/// The name of an object.
pub fn object_name<K: kube::Resource>(object: &K) -> ObjectName {
    let name = object.name_any();
    match object.namespace() {
        Some(namespace) => Arc::from(format!("{namespace}/{name}")),
        None => Arc::from(name),
    }
}

/// An object's name, and what matters of it; `None` when nothing does, or when it is gone.
#[derive(Debug)]
pub struct Named<T> {
    /// Name.
    pub name: ObjectName,
    /// What matters.
    pub value: Option<T>,
    /// The object's resourceVersion; of one that is gone, that of its deletion. 0: not known.
    pub revision: u64,
}

/// Keeps what matters of an event.
pub fn compact<K: kube::Resource, T>(event: Event<K>, convert: fn(&K) -> Option<T>) -> Event<Named<T>> {
    let named = |object: K| Named {
        name: object_name(&object),
        value: convert(&object),
        revision: object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0),
    };
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(named(object)),
        Event::Apply(object) => Event::Apply(named(object)),
        Event::Delete(object) => Event::Delete(named(object)),
    }
}

/// What becomes of one kind's objects, and why a watch failed, which starts again by itself: as inputs of whoever follows
/// several kinds at once.
pub fn changes<K, T, I>(
    api: Api<K>,
    config: watcher::Config,
    convert: fn(&K) -> Option<T>,
    input: fn(Result<Event<Named<T>>, watcher::Error>) -> I,
) -> BoxStream<'static, I>
where
    K: kube::Resource<DynamicType: Default> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    T: 'static,
    I: 'static,
{
    let events = watcher(api, config).default_backoff();
    events.map(move |event| input(event.map(|event| compact(event, convert)))).boxed()
}

/// One kind's objects, by name only.
#[derive(Debug, Default)]
pub struct Known {
    names: HashSet<ObjectName>,
    /// Names of a list that is being read.
    listing: Option<HashSet<ObjectName>>,
    synced: bool,
    /// The newest resourceVersion seen.
    newest: u64,
}

impl Known {
    /// Whether a list was read to its end.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The resourceVersion up to which every change was handed on; `None` while a list is being read.
    pub fn revision(&self) -> Option<u64> {
        (self.synced && self.listing.is_none()).then_some(self.newest)
    }

    /// Turns an event into changes.
    pub fn on_event<T>(&mut self, event: Event<Named<T>>) -> Vec<Named<T>> {
        if let Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) = &event {
            self.newest = self.newest.max(object.revision);
        }
        match event {
            Event::Init => {
                self.listing = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(object.name.clone());
                }
                self.names.insert(object.name.clone());
                vec![object]
            }
            Event::InitDone => {
                self.synced = true;
                let Some(listing) = self.listing.take() else { return Vec::new() };
                let gone: Vec<ObjectName> = self.names.difference(&listing).cloned().collect();
                self.names = listing;
                gone.into_iter().map(|name| Named { name, value: None, revision: 0 }).collect()
            }
            Event::Apply(object) => {
                self.names.insert(object.name.clone());
                vec![object]
            }
            Event::Delete(object) => {
                self.names.remove(&object.name);
                vec![Named { value: None, ..object }]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str) -> Named<u8> {
        Named { name: name.into(), value: Some(1), revision: u64::from(name.as_bytes()[0]) }
    }

    fn names(changes: Vec<Named<u8>>) -> Vec<(String, bool)> {
        let mut names: Vec<_> = changes.iter().map(|c| (c.name.to_string(), c.value.is_some())).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_name() {
        let mut known = Known::default();
        known.on_event::<u8>(Event::Init);
        known.on_event(Event::InitApply(object("a")));
        known.on_event(Event::InitApply(object("b")));
        assert!(!known.synced());
        assert_eq!(known.revision(), None, "what a list has not named yet may be older");
        assert!(known.on_event::<u8>(Event::InitDone).is_empty());
        assert!(known.synced());
        assert_eq!(names(known.on_event(Event::Apply(object("c")))), [("c".to_string(), true)]);
        assert_eq!(names(known.on_event(Event::Delete(object("a")))), [("a".to_string(), false)]);
        assert_eq!(known.revision(), Some(u64::from(b'c')));
        known.on_event::<u8>(Event::Init);
        assert_eq!(known.revision(), None);
        known.on_event(Event::InitApply(object("c")));
        assert_eq!(names(known.on_event(Event::InitDone)), [("b".to_string(), false)]);
    }
}
