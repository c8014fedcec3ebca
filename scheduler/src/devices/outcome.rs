//! What was found, as the claim's status has it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::capacity::Amounts;
use super::request::Wanted;
use super::slice::{Device, Reach, Slice};

/// A device that was chosen for a request of a claim.
pub struct Chosen<'a> {
    pub request: usize,
    pub alternative: usize,
    pub admin_access: bool,
    pub slice: &'a Slice,
    pub device: &'a Device,
    /// What is taken of a device that is shared.
    pub share: Option<Amounts>,
}

/// Stands for a share's id until the allocation is written: it is drawn at random then.
pub const SHARE: &str = "";

/// The allocation of a claim on a node.
///
/// # Errors
/// If a slice has a node selector that the API does not allow.
pub fn write_down(
    claim: &ResourceClaim,
    requests: &[Vec<Wanted>],
    chosen: &[Chosen<'_>],
    node: &str,
) -> Result<AllocationResult, String> {
    let results = chosen.iter().map(|choice| {
        let wanted = &requests[choice.request][choice.alternative];
        DeviceRequestAllocationResult {
            request: wanted.name.clone(),
            driver: choice.device.id.driver.to_string(),
            pool: choice.device.id.pool.to_string(),
            device: choice.device.id.device.to_string(),
            admin_access: choice.admin_access.then_some(true),
            tolerations: wanted.tolerations.clone(),
            share_id: choice.share.as_ref().map(|_| SHARE.to_owned()),
            consumed_capacity: choice.share.as_ref().filter(|share| !share.is_empty()).map(in_api),
            binding_conditions: choice.device.binding_conditions.clone(),
            binding_failure_conditions: choice.device.failure_conditions.clone(),
        }
    });
    let results: Vec<_> = results.collect();
    let config = configuration(claim, requests, chosen);
    Ok(AllocationResult {
        devices: Some(DeviceAllocationResult {
            results: Some(results).filter(|list| !list.is_empty()),
            config: Some(config).filter(|list| !list.is_empty()),
        }),
        node_selector: node_selector(claim, chosen, node)?,
        allocation_timestamp: None,
    })
}

/// Amounts as the API has them.
fn in_api(amounts: &Amounts) -> BTreeMap<String, ApiQuantity> {
    amounts.iter().map(|(name, amount)| (name.to_string(), ApiQuantity(amount.to_string()))).collect()
}

/// The configuration of the classes, each once, then that of the claim.
fn configuration(
    claim: &ResourceClaim,
    requests: &[Vec<Wanted>],
    chosen: &[Chosen<'_>],
) -> Vec<DeviceAllocationConfiguration> {
    let mut found: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut of_class: HashMap<&str, std::ops::Range<usize>> = HashMap::new();
    let mut names: Vec<&str> = Vec::new();
    for (at, alternatives) in requests.iter().enumerate() {
        let alternative = chosen.iter().find(|c| c.request == at).map_or(0, |c| c.alternative);
        let Some(wanted) = alternatives.get(alternative) else { continue };
        names.push(&wanted.name);
        let class = wanted.class.metadata.name.as_deref().unwrap_or_default();
        if let Some(range) = of_class.get(class) {
            for config in &mut found[range.clone()] {
                config.requests.get_or_insert_default().push(wanted.name.clone());
            }
            continue;
        }
        let first = found.len();
        found.extend(wanted.class.spec.config.iter().flatten().map(|config| DeviceAllocationConfiguration {
            source: "FromClass".into(),
            requests: Some(vec![wanted.name.clone()]),
            opaque: config.opaque.clone(),
        }));
        of_class.insert(class, first..found.len());
    }
    let of_claim = claim.spec.devices.as_ref().and_then(|devices| devices.config.as_ref());
    for config in of_claim.into_iter().flatten() {
        let about = config.requests.as_deref().unwrap_or_default();
        let concerns = |name: &&str| {
            let base = name.split('/').next().unwrap_or_default();
            about.iter().any(|request| request == name || request == base)
        };
        let times = if about.is_empty() { 1 } else { names.iter().filter(|name| concerns(name)).count() };
        for _ in 0..times {
            found.push(DeviceAllocationConfiguration {
                source: "FromClaim".into(),
                requests: config.requests.clone(),
                opaque: config.opaque.clone(),
            });
        }
    }
    found
}

/// Where the devices can be used: on the one node, or where all their selectors hold; `None` everywhere.
fn node_selector(
    claim: &ResourceClaim,
    chosen: &[Chosen<'_>],
    node: &str,
) -> Result<Option<NodeSelector>, String> {
    let mut term = NodeSelectorTerm::default();
    for choice in chosen {
        let reach = match &choice.slice.reach {
            Reach::PerDevice => &choice.device.reach,
            reach => reach,
        };
        if matches!(reach, Reach::Node(_)) || choice.device.binds_to_node {
            let name = NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            };
            let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
            return Ok(Some(NodeSelector { node_selector_terms: vec![term] }));
        }
        let Reach::Nodes(_, selector) = reach else { continue };
        match selector.node_selector_terms.as_slice() {
            [] => {}
            [one] => {
                add(&mut term.match_fields, one.match_fields.as_deref());
                add(&mut term.match_expressions, one.match_expressions.as_deref());
            }
            many => {
                return Err(format!(
                    "create NodeSelector for claim {}: unsupported ResourceSlice.NodeSelector with {} terms",
                    claim.metadata.name.as_deref().unwrap_or_default(),
                    many.len()
                ));
            }
        }
    }
    let any = term.match_fields.is_some() || term.match_expressions.is_some();
    Ok(any.then(|| NodeSelector { node_selector_terms: vec![term] }))
}

/// Adds the requirements that are not there yet.
fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, from: Option<&[NodeSelectorRequirement]>) {
    for requirement in from.into_iter().flatten() {
        let values = |r: &NodeSelectorRequirement| {
            r.values.iter().flatten().cloned().collect::<std::collections::BTreeSet<String>>()
        };
        let same = |r: &NodeSelectorRequirement| {
            r.key == requirement.key && r.operator == requirement.operator && values(r) == values(requirement)
        };
        if !to.iter().flatten().any(same) {
            to.get_or_insert_default().push(requirement.clone());
        }
    }
}
