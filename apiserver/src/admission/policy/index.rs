//! Policies with their bindings, by the resources they are for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::super::Versions;
use super::compiled::{Binding, Policy};
use crate::access::{Change, ObjectRef, Operation};
use crate::request_info::RequestInfo;

/// A policy that is bound.
#[derive(Debug)]
pub struct Active {
    pub policy: Arc<Policy>,
    pub bindings: Vec<Arc<Binding>>,
}

/// All bound policies of one sort, by name.
#[derive(Debug, Default)]
pub struct Index {
    active: Vec<Arc<Active>>,
    by_resource: HashMap<String, Vec<usize>>,
}

/// What the index is made of.
#[derive(Debug, Default)]
pub struct Held {
    policies: BTreeMap<String, Arc<Policy>>,
    bindings: BTreeMap<String, Arc<Binding>>,
}

impl Held {
    /// Notes a change of a policy: only that one is compiled anew.
    pub fn policy(&mut self, change: Change) {
        note(&mut self.policies, change, Policy::read);
    }

    /// Notes a change of a binding.
    pub fn binding(&mut self, change: Change) {
        note(&mut self.bindings, change, Binding::read);
    }

    /// The index of what is held.
    pub fn index(&self) -> Index {
        let mut bound: HashMap<&str, Vec<Arc<Binding>>> = HashMap::new();
        for binding in self.bindings.values() {
            bound.entry(&binding.policy).or_default().push(Arc::clone(binding));
        }
        let mut index = Index::default();
        for policy in self.policies.values() {
            let Some(bindings) = bound.remove(policy.name.as_str()) else { continue };
            let at = index.active.len();
            for resource in policy.criteria.resources() {
                let list = index.by_resource.entry(resource.to_owned()).or_default();
                if list.last() != Some(&at) {
                    list.push(at);
                }
            }
            index.active.push(Arc::new(Active { policy: Arc::clone(policy), bindings }));
        }
        index
    }
}

fn note<T>(held: &mut BTreeMap<String, Arc<T>>, change: Change, read: impl Fn(&Value) -> T) {
    let entry = |o: &ObjectRef| match o.decode::<Value>() {
        Ok(value) => Some((o.name.to_string(), Arc::new(read(&value)))),
        Err(error) => {
            tracing::error!(name = %o.name, %error, "an admission policy or binding does not decode; ignored");
            None
        }
    };
    match change {
        Change::Reset(all) => *held = all.iter().filter_map(entry).collect(),
        Change::Applied(o) => held.extend(entry(&o)),
        Change::Deleted(o) => {
            held.remove(&*o.name);
        }
    }
}

impl Index {
    /// The policies whose rules may be for a request, by name.
    pub fn concern(&self, versions: &Versions, operation: Operation, info: &RequestInfo) -> Vec<Arc<Active>> {
        if self.active.is_empty() {
            return Vec::new();
        }
        let listed = |resource: &str| self.by_resource.get(resource).map_or(&[][..], Vec::as_slice);
        let mut places: Vec<usize> = listed("*").iter().chain(listed(&info.resource)).copied().collect();
        places.sort_unstable();
        places.dedup();
        let active = places.into_iter().filter_map(|i| self.active.get(i));
        active.filter(|a| a.policy.criteria.concern(versions, operation, info)).cloned().collect()
    }
}
