//! Puts endpoints into slices with as few writes as possible.
//!
//! Endpoints stay in the slice they are in. New ones fill slices that must be written anyway, then
//! the fullest unchanged slice that takes all that is left, then new slices. A slice that would be
//! deleted is filled anew before another is created.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::desired::{PortGroup, PortsKey, identity, ports_key};
use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::object::{self, Labels};
use crate::plan::Act;
use crate::services;

/// Where a slice stands during placement.
struct Slot {
    /// What is stored; `None` for a slice to be made.
    stored: Option<Arc<EndpointSlice>>,
    endpoints: Vec<Endpoint>,
    ports: Vec<EndpointPort>,
    dirty: bool,
}

/// The writes that bring the slices of one family to what is wanted.
pub fn place(
    service: &Service,
    family: &str,
    mut wanted: BTreeMap<PortsKey, PortGroup>,
    existing: &[Arc<EndpointSlice>],
    max: usize,
) -> Vec<Act> {
    // A Service without endpoints keeps one empty slice: watchers can tell "none" from "not yet".
    if wanted.is_empty() {
        wanted.insert(PortsKey::new(), PortGroup { ports: Vec::new(), endpoints: BTreeMap::new() });
    }
    let mut by_ports: BTreeMap<PortsKey, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut spare: Vec<Arc<EndpointSlice>> = Vec::new();
    for slice in existing {
        let key = ports_key(slice.ports.as_deref().unwrap_or_default());
        if wanted.contains_key(&key) && object::is_controlled_by(&slice.metadata, service) {
            by_ports.entry(key).or_default().push(slice.clone());
        } else {
            spare.push(slice.clone());
        }
    }
    let mut slots = Vec::new();
    for (key, group) in wanted {
        let (kept, empty) = fill(group, by_ports.remove(&key).unwrap_or_default(), max);
        slots.extend(kept);
        spare.extend(empty);
    }

    let mut acts = Vec::new();
    let mut spare = spare.into_iter();
    let mut leftovers = Vec::new();
    for mut slot in slots {
        if slot.stored.is_none() {
            // Somebody else's slice (by its owner) is not reused.
            let reusable = spare.by_ref().find(|s| {
                let ours = object::is_controlled_by(&s.metadata, service);
                if !ours {
                    leftovers.push(s.clone());
                }
                ours
            });
            slot.stored = reusable;
            slot.dirty = true;
        }
        acts.extend(write(service, family, slot));
    }
    acts.extend(spare.chain(leftovers).map(|s| Act::delete(s.as_ref())));
    acts
}

/// Distributes one port group's endpoints. Returns slices with their content, and stored ones that
/// are left empty.
fn fill(
    group: PortGroup,
    existing: Vec<Arc<EndpointSlice>>,
    max: usize,
) -> (Vec<Slot>, Vec<Arc<EndpointSlice>>) {
    let PortGroup { ports, mut endpoints } = group;
    let placeholder = endpoints.is_empty();
    let mut slots = Vec::new();
    let mut empty = Vec::new();
    for slice in existing {
        let stored = slice.endpoints.as_deref().unwrap_or_default();
        let mut dirty = false;
        let mut kept: Vec<Endpoint> = Vec::with_capacity(stored.len());
        for endpoint in stored {
            match endpoints.remove(&identity(endpoint)) {
                Some(wanted) => {
                    dirty |= wanted != *endpoint;
                    kept.push(wanted);
                }
                None => dirty = true,
            }
        }
        // A limit that was lowered: what is too much moves on.
        for endpoint in kept.split_off(kept.len().min(max)) {
            endpoints.insert(identity(&endpoint), endpoint);
            dirty = true;
        }
        let keep_empty = placeholder && slots.is_empty();
        if kept.is_empty() && !keep_empty {
            empty.push(slice);
        } else {
            slots.push(Slot { stored: Some(slice), endpoints: kept, ports: ports.clone(), dirty });
        }
    }
    let mut rest: Vec<Endpoint> = endpoints.into_values().collect();
    let mut dirty: Vec<&mut Slot> = slots.iter_mut().filter(|s| s.dirty).collect();
    dirty.sort_by_key(|s| std::cmp::Reverse(s.endpoints.len()));
    for slot in dirty {
        let room = max.saturating_sub(slot.endpoints.len()).min(rest.len());
        slot.endpoints.extend(rest.drain(..room));
    }
    if !rest.is_empty() && rest.len() < max {
        let fits = slots.iter_mut().filter(|s| !s.dirty && s.endpoints.len() + rest.len() <= max);
        if let Some(slot) = fits.max_by_key(|s| s.endpoints.len()) {
            slot.endpoints.append(&mut rest);
            slot.dirty = true;
        }
    }
    while !rest.is_empty() || slots.is_empty() {
        let part = rest.drain(..max.min(rest.len())).collect();
        slots.push(Slot { stored: None, endpoints: part, ports: ports.clone(), dirty: true });
    }
    (slots, empty)
}

/// The write that a slice needs, if any.
fn write(service: &Service, family: &str, slot: Slot) -> Option<Act> {
    match slot.stored {
        None => Some(Act::create(&EndpointSlice {
            address_type: family.to_owned(),
            endpoints: Some(slot.endpoints),
            ports: Some(slot.ports),
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", object::name(service))),
                namespace: service.metadata.namespace.clone(),
                labels: Some(labels(service, None)),
                owner_references: Some(vec![object::new_controller_ref(service)]),
                ..ObjectMeta::default()
            },
        })),
        Some(stored) => {
            let labels = Some(labels(service, stored.metadata.labels.as_ref()));
            if !slot.dirty && object::same_map(&labels, &stored.metadata.labels) {
                return None;
            }
            let mut slice = EndpointSlice::clone(&stored);
            slice.endpoints = Some(slot.endpoints);
            slice.ports = Some(slot.ports);
            slice.metadata.labels = labels;
            Some(Act::update(&slice))
        }
    }
}

/// The labels of the Service's slices: its own and the reserved ones. Reserved labels that others set
/// on a slice are kept.
fn labels(service: &Service, stored: Option<&Labels>) -> Labels {
    let reserved = |key: &str| key == SERVICE_NAME || key == MANAGED_BY || key == services::HEADLESS;
    let mut labels: Labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| !reserved(key));
    if let Some(stored) = stored {
        for (key, value) in stored.iter().filter(|(k, _)| k.contains("endpointslice.kubernetes.io/")) {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    if services::is_headless(service) {
        labels.insert(services::HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), object::name(service).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}
