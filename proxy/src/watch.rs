//! What a watch says, as changes: a list that was read again also says what is gone.

use std::collections::HashSet;

use kube::runtime::watcher::Event;

use crate::convert::object_name;
use crate::desired::ObjectName;

/// One kind's objects, by name only.
#[derive(Debug, Default)]
pub struct Known {
    names: HashSet<ObjectName>,
    /// Names of a list that is being read.
    listing: Option<HashSet<ObjectName>>,
    synced: bool,
}

/// A change of one object; `None` when it is gone.
pub type Change<K> = (ObjectName, Option<K>);

impl Known {
    /// Whether a list was read to its end.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Turns an event into changes.
    pub fn on_event<K: kube::Resource>(&mut self, event: Event<K>) -> Vec<Change<K>> {
        match event {
            Event::Init => {
                self.listing = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let name = object_name(&object);
                if let Some(listing) = &mut self.listing {
                    listing.insert(name.clone());
                }
                self.names.insert(name.clone());
                vec![(name, Some(object))]
            }
            Event::InitDone => {
                self.synced = true;
                let Some(listing) = self.listing.take() else { return Vec::new() };
                let gone: Vec<ObjectName> = self.names.difference(&listing).cloned().collect();
                self.names = listing;
                gone.into_iter().map(|name| (name, None)).collect()
            }
            Event::Apply(object) => {
                let name = object_name(&object);
                self.names.insert(name.clone());
                vec![(name, Some(object))]
            }
            Event::Delete(object) => {
                let name = object_name(&object);
                self.names.remove(&name);
                vec![(name, None)]
            }
        }
    }
}
