//! Capacity of devices that several claims share (KEP-5075): what an allocation takes of it, and what is left.

use std::collections::{BTreeMap, HashMap};

use hawser_api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::DeviceId;

/// Amounts by the name of a capacity.
pub type Amounts = BTreeMap<Box<str>, Quantity>;

/// Reads amounts of the API, which has checked them.
pub fn amounts(list: &BTreeMap<String, ApiQuantity>) -> Amounts {
    list.iter().map(|(name, amount)| (name.as_str().into(), quantity(&amount.0))).collect()
}

/// The API server has checked it.
pub fn quantity(text: &str) -> Quantity {
    text.parse().unwrap_or_else(|_| Quantity::from_int(0))
}

/// Which amounts may be taken.
#[derive(Clone, Debug)]
enum Rule {
    Any,
    /// These, in rising order.
    Values(Vec<Quantity>),
    /// `min` and whole steps more, up to `max`.
    Range {
        min: Quantity,
        max: Option<Quantity>,
        step: Option<i64>,
    },
}

/// One capacity of a device.
#[derive(Clone, Debug)]
pub struct Capacity {
    /// All there is.
    pub value: Quantity,
    /// What is taken by who names no amount; without it, all.
    default: Option<Quantity>,
    rule: Rule,
}

impl Capacity {
    /// Reads a capacity.
    pub fn new(capacity: &DeviceCapacity) -> Self {
        let policy = capacity.request_policy.as_ref();
        Capacity {
            value: quantity(&capacity.value.0),
            default: policy.and_then(|policy| policy.default.as_ref()).map(|q| quantity(&q.0)),
            rule: policy.map_or(Rule::Any, Rule::new),
        }
    }

    /// What is taken for a request: what is asked for, rounded up to what the policy knows.
    fn taken(&self, asked: Option<Quantity>) -> Quantity {
        let Some(asked) = asked else { return self.default.unwrap_or(self.value) };
        match &self.rule {
            Rule::Any => asked,
            Rule::Values(values) => values.iter().copied().find(|value| asked <= *value).unwrap_or(asked),
            Rule::Range { min, .. } if asked < *min => *min,
            Rule::Range { min, step: Some(step), .. } => {
                let (min, over) = (min.value(), asked.value().saturating_sub(min.value()));
                let steps = over / step + i64::from(over % step != 0);
                Quantity::from_bytes(min.saturating_add(steps.saturating_mul(*step)))
            }
            Rule::Range { .. } => asked,
        }
    }

    /// Whether so much may be taken.
    fn allows(&self, amount: Quantity) -> bool {
        if self.default == Some(amount) {
            return true;
        }
        match &self.rule {
            Rule::Any => true,
            Rule::Values(values) => values.contains(&amount),
            Rule::Range { min, max, step } => {
                let off = step.is_some_and(|step| (amount.value() - min.value()) % step != 0);
                !off && max.is_none_or(|max| amount <= max)
            }
        }
    }
}

impl Rule {
    fn new(policy: &CapacityRequestPolicy) -> Self {
        if let Some(range) = &policy.valid_range {
            let step = range.step.as_ref().map(|step| quantity(&step.0).value());
            return Rule::Range {
                min: quantity(&range.min.0),
                max: range.max.as_ref().map(|max| quantity(&max.0)),
                step: step.filter(|step| *step > 0),
            };
        }
        match &policy.valid_values {
            Some(values) if !values.is_empty() => {
                Rule::Values(values.iter().map(|v| quantity(&v.0)).collect())
            }
            _ => Rule::Any,
        }
    }
}

/// Capacities of a device by name.
pub type Capacities = BTreeMap<Box<str>, Capacity>;

/// What a request takes of a device, of every capacity that it has.
pub fn taken(of: &Capacities, asked: Option<&Amounts>) -> Amounts {
    let named = |name: &str| asked.and_then(|asked| asked.get(name)).copied();
    of.iter().map(|(name, capacity)| (name.clone(), capacity.taken(named(name)))).collect()
}

/// Whether a device has what is asked for beside what of it is `used`. It must have each capacity that is named. Of a
/// device that is not shared nothing is used; it must be large enough.
pub fn fits(of: &Capacities, asked: Option<&Amounts>, used: &[Option<&Amounts>]) -> bool {
    let known = asked.is_none_or(|asked| asked.keys().all(|name| of.contains_key(name)));
    known
        && of.iter().all(|(name, capacity)| {
            let more = capacity.taken(asked.and_then(|asked| asked.get(name)).copied());
            let used = used.iter().flatten().filter_map(|used| used.get(name));
            capacity.allows(more) && used.fold(more, |sum, amount| sum + *amount) <= capacity.value
        })
}

/// What is taken of each shared device.
#[derive(Clone, Debug, Default)]
pub struct Taken(HashMap<DeviceId, Amounts>);

impl Taken {
    /// What is taken of a device.
    pub fn of(&self, device: &DeviceId) -> Option<&Amounts> {
        self.0.get(device)
    }

    /// More is taken.
    pub fn add(&mut self, device: DeviceId, more: &Amounts) {
        let all = self.0.entry(device).or_default();
        for (name, amount) in more {
            let sum = all.entry(name.clone()).or_insert(Quantity::ZERO);
            *sum = *sum + *amount;
        }
    }

    /// So much is given back. A device of which nothing is taken any more is forgotten.
    pub fn remove(&mut self, device: &DeviceId, less: &Amounts) {
        let Some(all) = self.0.get_mut(device) else { return };
        for (name, amount) in less {
            if let Some(sum) = all.get_mut(name) {
                *sum = *sum - *amount;
            }
        }
        if all.values().all(Quantity::is_zero) {
            self.0.remove(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn capacity(value: Value) -> Capacity {
        Capacity::new(&serde_json::from_value(value).unwrap())
    }

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    /// What is taken, and whether that may be.
    fn said(capacity: &Capacity, asked: &str) -> (String, bool) {
        let taken = capacity.taken(Some(asked).filter(|a| !a.is_empty()).map(q));
        (taken.to_string(), capacity.allows(taken))
    }

    #[test]
    fn without_a_policy_all_is_taken_or_what_is_asked_for() {
        let free = capacity(json!({"value": "10Gi"}));
        assert_eq!(said(&free, ""), ("10Gi".into(), true));
        assert_eq!(said(&free, "3Gi"), ("3Gi".into(), true));
        let default = capacity(json!({"value": "10Gi", "requestPolicy": {"default": "1Gi"}}));
        assert_eq!(said(&default, ""), ("1Gi".into(), true));
    }

    #[test]
    fn the_next_larger_value_is_taken() {
        let values = json!({"default": "2Gi", "validValues": ["1Gi", "2Gi", "8Gi"]});
        let values = capacity(json!({"value": "10Gi", "requestPolicy": values}));
        assert_eq!(said(&values, ""), ("2Gi".into(), true));
        assert_eq!(said(&values, "1"), ("1Gi".into(), true));
        assert_eq!(said(&values, "2Gi"), ("2Gi".into(), true));
        assert_eq!(said(&values, "3Gi"), ("8Gi".into(), true));
        assert_eq!(said(&values, "9Gi"), ("9Gi".into(), false));
    }

    #[test]
    fn steps_begin_at_the_least_and_end_at_the_most() {
        let range = json!({"default": "2Gi", "validRange": {"min": "2Gi", "max": "8Gi", "step": "3Gi"}});
        let range = capacity(json!({"value": "100Gi", "requestPolicy": range}));
        assert_eq!(said(&range, ""), ("2Gi".into(), true));
        assert_eq!(said(&range, "1Gi"), ("2Gi".into(), true));
        assert_eq!(said(&range, "2049Mi"), ("5Gi".into(), true));
        assert_eq!(said(&range, "5Gi"), ("5Gi".into(), true));
        assert_eq!(said(&range, "6Gi"), ("8Gi".into(), true));
        assert_eq!(said(&range, "9Gi"), ("11Gi".into(), false));
        let open = json!({"default": "1", "validRange": {"min": "1", "max": "5"}});
        let open = capacity(json!({"value": "100", "requestPolicy": open}));
        assert_eq!(said(&open, "2500m"), ("2500m".into(), true));
        assert_eq!(said(&open, "6"), ("6".into(), false));
    }

    #[test]
    fn what_is_left_is_what_nobody_took() {
        let of = Capacities::from([
            ("bandwidth".into(), capacity(json!({"value": "10"}))),
            ("memory".into(), capacity(json!({"value": "8Gi", "requestPolicy": {"default": "0"}}))),
        ]);
        let asked = |amount: &str| Amounts::from([("bandwidth".into(), q(amount))]);
        let device = DeviceId { driver: "d".into(), pool: "p".into(), device: "shared".into() };
        let mut used = Taken::default();
        for amount in ["4", "3"] {
            assert!(fits(&of, Some(&asked(amount)), &[used.of(&device)]));
            used.add(device.clone(), &taken(&of, Some(&asked(amount))));
        }
        assert!(!fits(&of, Some(&asked("4")), &[used.of(&device)]));
        assert!(!fits(&of, None, &[used.of(&device)]), "all of it is not there");
        let also = asked("2");
        assert!(!fits(&of, Some(&asked("2")), &[used.of(&device), Some(&also)]));
        assert!(fits(&of, Some(&asked("1")), &[used.of(&device), Some(&also)]));
        assert!(!fits(&of, Some(&Amounts::from([("cores".into(), q("1"))])), &[]), "it has no such thing");
        used.remove(&device, &taken(&of, Some(&asked("4"))));
        assert!(fits(&of, Some(&asked("7")), &[used.of(&device)]));
        used.remove(&device, &taken(&of, Some(&asked("3"))));
        assert!(used.of(&device).is_none());
    }
}
