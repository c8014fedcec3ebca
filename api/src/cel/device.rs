//! Selectors of devices (`selectors[].cel` of DeviceClasses and ResourceClaims): one variable, `device`, with `driver`,
//! `attributes`, `capacity` and `allowMultipleAllocations` (KEP-4381).
//!
//! Attributes and capacities are grouped by domain; a name without one is in the driver's. A domain that the device knows
//! nothing of is an empty map, so that asking for one of its attributes is an error and `has` or `in` are not.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::env::{Env, Program, Variables};
use super::types::Type;
use super::value::{Key, Map, Str, Value};
use crate::quantity::Quantity;

/// Most that evaluating a selector may cost.
pub const COST_LIMIT: u64 = 1_000_000;

const DEVICE: &str = "kubernetes.DRADevice";

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let by_domain = |value: Type| Type::map(Type::String, Type::map(Type::String, value));
    let fields: [(Arc<str>, Type); 4] = [
        ("driver".into(), Type::String),
        ("attributes".into(), by_domain(Type::Dyn)),
        ("capacity".into(), by_domain(Type::object("kubernetes.Quantity"))),
        ("allowMultipleAllocations".into(), Type::Bool),
    ];
    Env::new().with("device", Type::object(DEVICE)).with_fields(DEVICE, &fields).with_bind()
});

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    Bool(bool),
    Int(i64),
    String(Arc<str>),
    Version(Arc<semver::Version>),
}

impl Attribute {
    /// A semantic version.
    ///
    /// # Errors
    /// Why the text is none.
    pub fn version(text: &str) -> Result<Self, String> {
        text.parse()
            .map(|version| Attribute::Version(Arc::new(version)))
            .map_err(|e: semver::Error| e.to_string())
    }
}

/// What a selector sees of a device. Names are qualified (`domain/name`) or not.
#[derive(Debug, Clone, Default)]
pub struct Device<'a> {
    pub driver: &'a str,
    pub attributes: Vec<(&'a str, Attribute)>,
    pub capacity: Vec<(&'a str, Quantity)>,
    pub allow_multiple_allocations: bool,
}

/// The one variable.
struct Known(Value<'static>);

impl Variables<'static> for Known {
    fn get(&self, name: &str) -> Option<Value<'static>> {
        (name == "device").then(|| self.0.clone())
    }
}

/// A compiled selector.
#[derive(Debug, Clone)]
pub struct Selector(Program);

impl Selector {
    /// Compiles a selector.
    ///
    /// # Errors
    /// Why it is none, as Kubernetes says it.
    pub fn compile(source: &str) -> Result<Self, String> {
        let program = ENV.compile(source).map_err(|issues| format!("compilation failed: {issues}"))?;
        match program.result_type() {
            Type::Bool | Type::Dyn => Ok(Selector(program)),
            other => Err(format!("must evaluate to bool or the unknown type, not {other}")),
        }
    }

    /// Whether it selects a device.
    ///
    /// # Errors
    /// Why it cannot be said: an attribute that is not there, a cost too high, or a result that is no boolean.
    pub fn matches(&self, device: &Device<'_>) -> Result<bool, String> {
        let text = |s: &str| Value::string(s);
        let domain_of = |name: &str| -> (String, String) {
            let (domain, id) = name.split_once('/').unwrap_or((device.driver, name));
            (domain.to_owned(), id.to_owned())
        };
        let group = |entries: Vec<(String, String, Value<'static>)>| {
            let mut domains: BTreeMap<String, BTreeMap<Key<'static>, Value<'static>>> = BTreeMap::new();
            for (domain, id, value) in entries {
                domains.entry(domain).or_default().insert(Key::String(Str::Shared(id.into())), value);
            }
            let maps =
                domains.into_iter().map(|(d, map)| (Key::String(Str::Shared(d.into())), Value::map(map)));
            Value::Map(Map::Defaulted(Arc::new(maps.collect())))
        };
        let attributes = device.attributes.iter().map(|(name, value)| {
            let (domain, id) = domain_of(name);
            let value = match value {
                Attribute::Bool(b) => Value::Bool(*b),
                Attribute::Int(n) => Value::Int(*n),
                Attribute::String(s) => Value::String(Str::Shared(s.clone())),
                Attribute::Version(v) => Value::Semver(v.clone()),
            };
            (domain, id, value)
        });
        let capacity = device.capacity.iter().map(|(name, amount)| {
            let (domain, id) = domain_of(name);
            (domain, id, Value::Quantity(*amount))
        });
        let fields = [
            ("driver", text(device.driver)),
            ("attributes", group(attributes.collect())),
            ("capacity", group(capacity.collect())),
            ("allowMultipleAllocations", Value::Bool(device.allow_multiple_allocations)),
        ];
        let fields = fields.map(|(name, value)| (Key::String(Str::Shared(name.into())), value));
        let variables = Known(Value::map(BTreeMap::from(fields)));
        match self.0.evaluate(&variables, COST_LIMIT).result {
            Ok(Value::Bool(matches)) => Ok(matches),
            Ok(other) => Err(format!(
                "CEL result of type {} could not be converted to bool: type conversion error from '{}' to 'bool'",
                other.type_of().name(),
                other.type_of().name()
            )),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(source: &str) -> String {
        let device = Device {
            driver: "gpu.example.com",
            attributes: vec![
                ("model", Attribute::String("a100".into())),
                ("cores", Attribute::Int(4)),
                ("other.example.com/fast", Attribute::Bool(true)),
                ("driverVersion", Attribute::Version(Arc::new(semver::Version::new(1, 2, 3)))),
            ],
            capacity: vec![("memory", "40Gi".parse().unwrap())],
            allow_multiple_allocations: false,
        };
        match Selector::compile(source) {
            Err(error) => format!("! {}", error.lines().next().unwrap_or_default()),
            Ok(selector) => selector.matches(&device).map_or_else(|e| format!("!! {e}"), |m| m.to_string()),
        }
    }

    #[test]
    fn selectors_see_the_device() {
        for (source, want) in [
            ("device.driver == 'gpu.example.com'", "true"),
            ("device.attributes['gpu.example.com'].model == 'a100'", "true"),
            ("device.attributes['gpu.example.com'].cores > 4", "false"),
            ("device.attributes['other.example.com'].fast", "true"),
            ("device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('1.0.0'))", "true"),
            ("device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) == 0", "true"),
            ("cel.bind(a, device.attributes['gpu.example.com'], a.cores == 4 && a.model == 'a100')", "true"),
            ("'gpu.example.com' in device.attributes", "true"),
            ("'nobody.example.com' in device.attributes", "false"),
            ("has(device.attributes['gpu.example.com'].model)", "true"),
            ("has(device.attributes['nobody.example.com'].model)", "false"),
            ("device.attributes['nobody.example.com'].model == 'x'", "!! no such key: model"),
            ("device.allowMultipleAllocations", "false"),
            ("1 + 1", "! must evaluate to bool or the unknown type, not int"),
            (
                "device.attributes['gpu.example.com'].cores",
                "!! CEL result of type int could not be converted to bool: \
              type conversion error from 'int' to 'bool'",
            ),
        ] {
            assert_eq!(said(source), want, "{source}");
        }
    }
}
