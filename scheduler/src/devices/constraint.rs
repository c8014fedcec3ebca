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
    /// How many devices were chosen.
    devices: usize,
    /// The value of the first one.
    first: Option<Attribute>,
    /// The value of the last one of each request: kube-scheduler, too, compares with these alone.
    last: Vec<(String, Attribute)>,
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
        let attribute = attribute.clone();
        Some(Constraint { requests, attribute, same, devices: 0, first: None, last: Vec::new() })
    }

    /// `request` is `request` or `request/alternative`.
    fn concerns(&self, request: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|name| name == request || name == base(request))
    }

    /// Chooses a device for a request, if that may be.
    pub fn add(&mut self, request: &str, device: &Device) -> bool {
        if !self.concerns(request) {
            return true;
        }
        let Some(value) = device.attribute(&self.attribute) else { return false };
        let fits = match self.same {
            _ if self.devices == 0 => true,
            true => self.first.as_ref() == Some(value),
            false => self.last.iter().all(|(_, other)| other != value),
        };
        if !fits {
            return false;
        }
        if self.devices == 0 {
            self.first = Some(value.clone());
        }
        self.devices += 1;
        self.forget(request);
        self.last.push((base(request).to_owned(), value.clone()));
        true
    }

    /// Takes back the choice of a device.
    pub fn remove(&mut self, request: &str) {
        if self.concerns(request) {
            self.devices -= 1;
            self.forget(request);
        }
    }

    fn forget(&mut self, request: &str) {
        self.last.retain(|(name, _)| name != base(request));
    }
}

/// The request without its alternative.
fn base(request: &str) -> &str {
    request.split('/').next().unwrap_or_default()
}
