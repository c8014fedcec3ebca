//! A ResourceSlice, read once for all pods that look at it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::cel::device::{self, Attribute};
use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{Device as ApiDevice, DeviceAttribute, DeviceTaint, ResourceSlice};

use super::DeviceId;
use super::capacity::{Capacities, Capacity, quantity};
use crate::selector::NodeTerms;
use crate::snapshot::NodeInfo;

/// Amounts by counter, by counter set.
pub type Counters = BTreeMap<Box<str>, BTreeMap<Box<str>, Quantity>>;

/// Where a slice, or a device, can be used.
#[derive(Clone, Debug)]
pub enum Reach {
    Node(Box<str>),
    All,
    Nodes(NodeTerms, Box<NodeSelector>),
    /// Every device says it for itself.
    PerDevice,
    /// Nothing is said that is known.
    Nowhere,
}

impl Reach {
    fn new(node: Option<&str>, all: Option<bool>, selector: Option<&NodeSelector>) -> Self {
        match (node.filter(|n| !n.is_empty()), selector) {
            (Some(node), _) => Reach::Node(node.into()),
            (None, _) if all == Some(true) => Reach::All,
            (None, Some(selector)) => Reach::Nodes(NodeTerms::new(selector), Box::new(selector.clone())),
            (None, None) => Reach::Nowhere,
        }
    }

    /// Whether a node is there.
    pub fn has(&self, node: &NodeInfo) -> bool {
        match self {
            Reach::Node(name) => *node.name == **name,
            Reach::All => true,
            Reach::Nodes(terms, _) => terms.matches(&node.name, &node.labels),
            Reach::PerDevice | Reach::Nowhere => false,
        }
    }
}

/// A device of a slice.
#[derive(Clone, Debug)]
pub struct Device {
    pub id: DeviceId,
    pub attributes: BTreeMap<Box<str>, Attribute>,
    /// The first attribute that cannot be read, and why.
    pub unreadable: Option<String>,
    pub capacity: Capacities,
    pub taints: Vec<DeviceTaint>,
    pub consumes: Counters,
    /// Where it can be used, if its slice leaves that to it.
    pub reach: Reach,
    pub binds_to_node: bool,
    /// Several claims can have it at once, each a share of its capacity.
    pub shared: bool,
    /// What must come true of it before a pod that uses it is bound, and what says that it will not (KEP-5007).
    pub binding_conditions: Option<Vec<String>>,
    pub failure_conditions: Option<Vec<String>>,
}

/// A slice.
#[derive(Clone, Debug)]
pub struct Slice {
    pub name: Box<str>,
    pub driver: Arc<str>,
    pub pool: Arc<str>,
    pub generation: i64,
    /// How many slices make up the pool.
    pub slices_of_pool: i64,
    pub reach: Reach,
    pub devices: Vec<Device>,
    pub counters: Counters,
    /// A counter set that is there twice.
    pub twice: Option<Box<str>>,
}

impl Slice {
    /// Reads a slice.
    pub fn new(slice: &ResourceSlice) -> Self {
        let spec = &slice.spec;
        let (driver, pool): (Arc<str>, Arc<str>) =
            (spec.driver.as_str().into(), spec.pool.name.as_str().into());
        let reach = match spec.per_device_node_selection {
            Some(true) => Reach::PerDevice,
            _ => Reach::new(spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref()),
        };
        let (mut counters, mut twice) = (Counters::new(), None);
        for set in spec.shared_counters.iter().flatten() {
            let amounts = set.counters.iter().map(|(name, c)| (name.as_str().into(), quantity(&c.value.0)));
            if counters.insert(set.name.as_str().into(), amounts.collect()).is_some() {
                twice.get_or_insert_with(|| set.name.as_str().into());
            }
        }
        let id = |device: &ApiDevice| DeviceId {
            driver: driver.clone(),
            pool: pool.clone(),
            device: device.name.as_str().into(),
        };
        Slice {
            name: slice.metadata.name.as_deref().unwrap_or_default().into(),
            generation: spec.pool.generation,
            slices_of_pool: spec.pool.resource_slice_count,
            reach,
            devices: spec.devices.iter().flatten().map(|d| Device::new(id(d), d)).collect(),
            counters,
            twice,
            driver,
            pool,
        }
    }

    /// The node that alone can use it.
    pub fn node(&self) -> Option<&str> {
        match &self.reach {
            Reach::Node(name) if self.counters.is_empty() => Some(name),
            _ => None,
        }
    }

    /// Whether a node can use one of its devices.
    pub fn offers(&self, device: &Device, node: &NodeInfo) -> bool {
        match &self.reach {
            Reach::PerDevice => device.reach.has(node),
            reach => reach.has(node),
        }
    }

    /// Whether a node needs it to use the pool.
    pub fn concerns(&self, node: &NodeInfo) -> bool {
        match &self.reach {
            _ if !self.counters.is_empty() => true,
            Reach::PerDevice => self.devices.iter().any(|device| device.reach.has(node)),
            reach => reach.has(node),
        }
    }
}

impl Device {
    fn new(id: DeviceId, device: &ApiDevice) -> Self {
        let (mut attributes, mut unreadable) = (BTreeMap::new(), None);
        for (name, value) in device.attributes.iter().flatten() {
            match attribute(value) {
                Ok(value) => {
                    attributes.insert(name.as_str().into(), value);
                }
                Err(why) => unreadable = unreadable.or(Some(format!("attribute {name}: {why}"))),
            }
        }
        let capacity = device.capacity.iter().flatten();
        let mut consumes = Counters::new();
        for consumed in device.consumes_counters.iter().flatten() {
            let amounts =
                consumed.counters.iter().map(|(name, c)| (name.as_str().into(), quantity(&c.value.0)));
            consumes.entry(consumed.counter_set.as_str().into()).or_default().extend(amounts);
        }
        Device {
            id,
            attributes,
            unreadable,
            capacity: capacity.map(|(name, c)| (name.as_str().into(), Capacity::new(c))).collect(),
            taints: device.taints.clone().unwrap_or_default(),
            consumes,
            reach: Reach::new(device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref()),
            binds_to_node: device.binds_to_node == Some(true),
            shared: device.allow_multiple_allocations == Some(true),
            binding_conditions: device.binding_conditions.clone().filter(|list| !list.is_empty()),
            failure_conditions: device.binding_failure_conditions.clone().filter(|list| !list.is_empty()),
        }
    }

    /// An attribute by its qualified name; one in the driver's domain may be named without it.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name).or_else(|| {
            let (domain, id) = name.split_once('/')?;
            self.attributes.get(id).filter(|_| *domain == *self.id.driver)
        })
    }

    /// As selectors see it.
    pub fn as_seen(&self) -> device::Device<'_> {
        device::Device {
            driver: &self.id.driver,
            attributes: self.attributes.iter().map(|(name, value)| (&**name, value.clone())).collect(),
            capacity: self.capacity.iter().map(|(name, amount)| (&**name, amount.value)).collect(),
            allow_multiple_allocations: self.shared,
        }
    }
}

fn attribute(value: &DeviceAttribute) -> Result<Attribute, String> {
    if let Some(n) = value.int {
        return Ok(Attribute::Int(n));
    }
    if let Some(b) = value.bool {
        return Ok(Attribute::Bool(b));
    }
    if let Some(text) = &value.string {
        return Ok(Attribute::String(text.as_str().into()));
    }
    let Some(text) = &value.version else { return Err("unsupported attribute value".into()) };
    Attribute::version(text).map_err(|error| format!("parse semantic version: {error}"))
}
