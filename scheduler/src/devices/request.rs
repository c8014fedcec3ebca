//! What a claim asks for, each alternative of a request by itself.

use std::sync::Arc;

use hawser_api::cel::device::Selector;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceRequest, DeviceSelector, DeviceToleration, ResourceClaim,
};

use super::Inventory;
use super::capacity::{Amounts, amounts};
use super::slice::Device;

/// How many devices.
#[derive(Clone, Debug, PartialEq)]
pub enum Count {
    Exactly(usize),
    /// All that are selected.
    All,
}

/// A request, or one alternative of a request with `firstAvailable`.
pub struct Wanted {
    /// `request`, or `request/alternative`.
    pub name: String,
    /// The last part of it.
    pub own_name: String,
    pub class: Arc<DeviceClass>,
    pub count: Count,
    pub admin_access: bool,
    pub tolerations: Option<Vec<DeviceToleration>>,
    /// What of a device's capacity it wants; `None`: what is the default.
    pub asked: Option<Amounts>,
    /// The class' and its own, with the place that messages name.
    selectors: Vec<(String, Result<Selector, String>)>,
}

/// A claim as `namespace/name`.
pub fn name_of(claim: &ResourceClaim) -> String {
    let meta = &claim.metadata;
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// The parts of an exact request and of an alternative that are the same.
struct Parts<'a> {
    name: String,
    own_name: &'a str,
    class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin_access: bool,
    capacity: Option<&'a CapacityRequirements>,
    selectors: Option<&'a [DeviceSelector]>,
    tolerations: Option<&'a Vec<DeviceToleration>>,
}

/// The requests of a claim with their alternatives.
///
/// # Errors
/// What cannot be satisfied on any node.
pub fn requests(claim: &ResourceClaim, inventory: &Inventory) -> Result<Vec<Vec<Wanted>>, String> {
    let asked = claim.spec.devices.as_ref().and_then(|devices| devices.requests.as_ref());
    asked.into_iter().flatten().map(|request| alternatives(claim, request, inventory)).collect()
}

fn alternatives(
    claim: &ResourceClaim,
    request: &DeviceRequest,
    inventory: &Inventory,
) -> Result<Vec<Wanted>, String> {
    let mut parts = Vec::new();
    if let Some(exact) = &request.exactly {
        parts.push(Parts {
            name: request.name.clone(),
            own_name: &request.name,
            class: &exact.device_class_name,
            mode: exact.allocation_mode.as_deref(),
            count: exact.count,
            admin_access: exact.admin_access == Some(true),
            capacity: exact.capacity.as_ref(),
            selectors: exact.selectors.as_deref(),
            tolerations: exact.tolerations.as_ref(),
        });
    }
    for alternative in request.first_available.iter().flatten() {
        parts.push(Parts {
            name: format!("{}/{}", request.name, alternative.name),
            own_name: &alternative.name,
            class: &alternative.device_class_name,
            mode: alternative.allocation_mode.as_deref(),
            count: alternative.count,
            admin_access: false,
            capacity: alternative.capacity.as_ref(),
            selectors: alternative.selectors.as_deref(),
            tolerations: alternative.tolerations.as_ref(),
        });
    }
    parts.into_iter().map(|parts| wanted(claim, parts, inventory)).collect()
}

fn wanted(claim: &ResourceClaim, parts: Parts<'_>, inventory: &Inventory) -> Result<Wanted, String> {
    let (of, name) = (name_of(claim), parts.own_name);
    let class = inventory.class(parts.class).ok_or_else(|| {
        let missing =
            format!("deviceclass.resource.k8s.io {} not found", hawser_api::text::quote(parts.class));
        format!("claim {of}, request {name}: could not retrieve device class {}: {missing}", parts.class)
    })?;
    let count = match parts.mode {
        None | Some("ExactCount") => {
            Count::Exactly(usize::try_from(parts.count.unwrap_or(1)).unwrap_or(usize::MAX))
        }
        Some("All") => Count::All,
        Some(other) => return Err(format!("claim {of}, request {name}: unsupported count mode {other}")),
    };
    let mut selectors = Vec::new();
    let places = [
        (format!("class {}", parts.class), class.spec.selectors.as_deref()),
        (format!("claim {of}"), parts.selectors),
    ];
    for (place, list) in places {
        for (at, selector) in list.into_iter().flatten().enumerate() {
            let Some(cel) = &selector.cel else {
                return Err(format!(
                    "claim {of}, request {name}, selector #{at}: CEL expression empty (unsupported selector type?)"
                ));
            };
            selectors.push((format!("{place}: selector #{at}"), Selector::compile(&cel.expression)));
        }
    }
    Ok(Wanted {
        name: parts.name,
        own_name: name.to_owned(),
        class: class.clone(),
        count,
        admin_access: parts.admin_access,
        tolerations: parts.tolerations.cloned(),
        asked: parts.capacity.and_then(|capacity| capacity.requests.as_ref()).map(amounts),
        selectors,
    })
}

impl Wanted {
    /// Whether a device is one of those asked for.
    ///
    /// # Errors
    /// A selector that is none, or that cannot be evaluated for the device.
    pub fn selects(&self, device: &Device) -> Result<bool, String> {
        let mut seen = None;
        for (place, selector) in &self.selectors {
            let selector =
                selector.as_ref().map_err(|error| format!("{place}: CEL compile error: {error}"))?;
            if let Some(unreadable) = &device.unreadable {
                return Err(format!("{place}: CEL runtime error: {unreadable}"));
            }
            let seen = seen.get_or_insert_with(|| device.as_seen());
            let matches = selector.matches(seen);
            if !matches.map_err(|error| format!("{place}: CEL runtime error: {error}"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether no taint keeps the device from being allocated.
    pub fn tolerates(&self, device: &Device) -> bool {
        let keeps_off = device.taints.iter().filter(|t| matches!(&*t.effect, "NoSchedule" | "NoExecute"));
        keeps_off.into_iter().all(|taint| {
            self.tolerations.iter().flatten().any(|toleration| {
                let any = |wanted: &Option<String>, is: &str| {
                    wanted.as_deref().is_none_or(|w| w.is_empty() || w == is)
                };
                let value = taint.value.as_deref().unwrap_or_default();
                let valued = match toleration.operator.as_deref() {
                    None | Some("" | "Equal") => toleration.value.as_deref().unwrap_or_default() == value,
                    Some("Exists") => true,
                    Some(_) => false,
                };
                any(&toleration.effect, &taint.effect) && any(&toleration.key, &taint.key) && valued
            })
        })
    }
}
