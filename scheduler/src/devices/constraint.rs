//! What devices of a claim must have in common, or must not.

use hawser_api::cel::device::Attribute;
use k8s_openapi::api::resource::v1::DeviceConstraint;

use super::slice::Device;

/// A constraint, with the values of the devices that were chosen under it.
pub struct Constraint {
    /// Requests that it is about; none: all.
    requests: Vec<String>,
    attribute: String,
    /// All values are the same, or else all differ.
    same: bool,
    values: Vec<Attribute>,
}

impl Constraint {
    /// `None`: of a sort that is not known.
    pub fn new(constraint: &DeviceConstraint) -> Option<Self> {
        let (attribute, same) = match (&constraint.match_attribute, &constraint.distinct_attribute) {
            (Some(name), _) => (name, true),
            (None, Some(name)) => (name, false),
            (None, None) => return None,
        };
        let requests = constraint.requests.clone().unwrap_or_default();
        Some(Constraint { requests, attribute: attribute.clone(), same, values: Vec::new() })
    }

    /// `request` is `request` or `request/alternative`.
    fn concerns(&self, request: &str) -> bool {
        let base = request.split('/').next().unwrap_or_default();
        self.requests.is_empty() || self.requests.iter().any(|name| name == request || name == base)
    }

    /// Chooses a device for a request, if that may be.
    pub fn add(&mut self, request: &str, device: &Device) -> bool {
        if !self.concerns(request) {
            return true;
        }
        let Some(value) = device.attribute(&self.attribute) else { return false };
        let fits = match self.same {
            true => self.values.first().is_none_or(|first| first == value),
            false => !self.values.contains(value),
        };
        if fits {
            self.values.push(value.clone());
        }
        fits
    }

    /// Takes back the choice of a device, the last one that was added.
    pub fn remove(&mut self, request: &str) {
        if self.concerns(request) {
            self.values.pop();
        }
    }
}
