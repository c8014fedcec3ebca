//! Values of an evaluation. JSON is borrowed and read through its declaration as the expression walks over it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map as JsonMap, Value as Json};

use super::decl::{Decl, ListKind, Shape};
use super::error::EvalError;
use super::lib::authz::Check;
use super::lib::format_names::NamedFormat;
use super::lib::net::{Cidr, Ip};
use super::lib::url::Url;
use super::types::Type;
use crate::quantity::Quantity;

/// A value, or why there is none.
pub type Outcome<'a> = Result<Value<'a>, EvalError>;

/// A text: of the data, or made by the evaluation.
#[derive(Clone)]
pub enum Str<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Str<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(s) => s,
            Self::Shared(s) => s,
        }
    }
}

/// A value.
#[derive(Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Str<'a>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Type),
    Quantity(Quantity),
    Ip(Ip),
    Cidr(Cidr),
    Url(Arc<Url>),
    Semver(Arc<semver::Version>),
    Format(&'static NamedFormat),
    Check(Arc<Check<'a>>),
}

/// A list: JSON as it came, or made by the evaluation.
#[derive(Clone)]
pub enum List<'a> {
    /// With the declaration of the list, not of its items.
    Json(&'a [Json], Option<&'a Decl>),
    Owned(Arc<Vec<Value<'a>>>),
}

/// A map or an object.
#[derive(Clone)]
pub enum Map<'a> {
    Json(&'a JsonMap<String, Json>, Option<&'a Decl>),
    Owned(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// The same; what is not there is an empty map (`device.attributes`).
    Defaulted(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// An object literal: type name and fields.
    Struct(Arc<(Arc<str>, BTreeMap<Key<'a>, Value<'a>>)>),
    /// An object whose fields are computed when they are read.
    Lazy(&'a (dyn Fields<'a> + 'a)),
}

/// Fields that are computed when they are read (`variables` of policies).
pub trait Fields<'a>: Sync {
    /// The field of that name; None when there is none.
    fn field(&'a self, name: &str) -> Option<Outcome<'a>>;
}

/// What maps are keyed by. Integers are equal by value, signed or not.
#[derive(Clone)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Str<'a>),
}

impl Key<'_> {
    fn rank(&self) -> (u8, i128, &str) {
        match self {
            Self::Bool(b) => (0, i128::from(*b), ""),
            Self::Int(n) => (1, i128::from(*n), ""),
            Self::Uint(n) => (1, i128::from(*n), ""),
            Self::String(s) => (2, 0, s),
        }
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}
impl Eq for Key<'_> {}
impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl<'a> Key<'a> {
    /// The key that a value is, if it can be one. Whole doubles find integers.
    pub fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(b) => Self::Bool(*b),
            Value::Int(n) => Self::Int(*n),
            Value::Uint(n) => Self::Uint(*n),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e18 => Self::Int(*d as i64),
            Value::String(s) => Self::String(s.clone()),
            _ => return None,
        })
    }

    /// As a value.
    pub fn value(&self) -> Value<'a> {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(n) => Value::Int(*n),
            Self::Uint(n) => Value::Uint(*n),
            Self::String(s) => Value::String(s.clone()),
        }
    }
}

impl<'a> Value<'a> {
    /// A text made by the evaluation.
    pub fn string(s: impl Into<Arc<str>>) -> Self {
        Self::String(Str::Shared(s.into()))
    }

    /// A list made by the evaluation.
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Self::List(List::Owned(Arc::new(items)))
    }

    /// A map made by the evaluation.
    pub fn map(entries: BTreeMap<Key<'a>, Value<'a>>) -> Self {
        Self::Map(Map::Owned(Arc::new(entries)))
    }

    /// An optional with a value.
    pub fn some(value: Value<'a>) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// JSON without a declaration: whole numbers are ints.
    pub fn dynamic(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match n.as_i64() {
                Some(n) => Self::Int(n),
                None => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Self::String(Str::Borrowed(s)),
            Json::Array(items) => Self::List(List::Json(items, None)),
            Json::Object(fields) => Self::Map(Map::Json(fields, None)),
        }
    }

    /// JSON as its declaration says.
    ///
    /// # Errors
    /// When the data is not what is declared.
    pub fn declared(json: &'a Json, decl: Option<&'a Decl>) -> Outcome<'a> {
        let Some(d) = decl else { return Ok(Self::dynamic(json)) };
        let wrong = |expected: &str| EvalError::Value(format!("invalid data, expected {expected}"));
        if json.is_null() && !matches!(d.shape, Shape::Dyn) {
            return if d.nullable {
                Ok(Self::Null)
            } else {
                Err(EvalError::value("invalid data, got null for schema with nullable=false"))
            };
        }
        Ok(match (&d.shape, json) {
            (Shape::Dyn, json) => Self::dynamic(json),
            (Shape::Bool, Json::Bool(b)) => Self::Bool(*b),
            (Shape::Int, Json::Number(n)) => Self::Int(whole(n).ok_or_else(|| wrong("int"))?),
            (Shape::Double, Json::Number(n)) => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Shape::String, Json::String(s)) => Self::String(Str::Borrowed(s)),
            (Shape::Bytes, Json::String(s)) => {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD.decode(s);
                Self::Bytes(
                    bytes
                        .map_err(|e| EvalError::value(format!("Invalid byte formatted string {s}: {e}")))?
                        .into(),
                )
            }
            (Shape::Duration, Json::String(s)) => {
                Self::Duration(crate::time::parse_go_duration(s).ok_or_else(|| {
                    EvalError::value(format!("Invalid duration {s}: unable to parse {s} as duration"))
                })?)
            }
            (Shape::Date, Json::String(s)) => Self::Timestamp(
                crate::time::parse(&format!("{s}T00:00:00Z"))
                    .ok_or_else(|| EvalError::value(format!("Invalid date formatted string {s}")))?,
            ),
            (Shape::Timestamp, Json::String(s)) => Self::Timestamp(
                crate::time::parse(s)
                    .ok_or_else(|| EvalError::value(format!("Invalid date-time formatted string {s}")))?,
            ),
            (Shape::List { .. }, Json::Array(items)) => Self::List(List::Json(items, decl)),
            (Shape::Map(_) | Shape::Object { .. }, Json::Object(fields)) => {
                Self::Map(Map::Json(fields, decl))
            }
            (shape, _) => return Err(wrong(shape.expected())),
        })
    }

    /// The type by which `type(x)` compares.
    pub fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(map) => map.type_of(),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Type(_) => Type::Type(Arc::new(Type::Dyn)),
            Self::Quantity(_) => Type::object("kubernetes.Quantity"),
            Self::Ip(_) => Type::object("net.IP"),
            Self::Cidr(_) => Type::object("net.CIDR"),
            Self::Url(_) => Type::object("kubernetes.URL"),
            Self::Semver(_) => Type::object("kubernetes.Semver"),
            Self::Format(_) => Type::object("kubernetes.NamedFormat"),
            Self::Check(check) => Type::object(check.type_name()),
        }
    }

    /// What `size()` counts: characters, bytes, items, entries. Addresses have their length in bytes.
    pub fn size(&self) -> Option<u64> {
        Some(match self {
            Self::String(s) => s.chars().count() as u64,
            Self::Bytes(b) => b.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Ip(ip) => ip.size(),
            Self::Cidr(cidr) => cidr.size(),
            _ => return None,
        })
    }

    /// Whether the value is what an absent one would be (`optional.ofNonZeroValue`).
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(b) => !b,
            Self::Int(n) => *n == 0,
            Self::Uint(n) => *n == 0,
            Self::Double(n) => *n == 0.0,
            Self::Duration(n) => *n == 0,
            Self::Optional(o) => o.is_none(),
            other => other.size() == Some(0),
        }
    }

    /// CEL's equality: numbers by value, lists and maps by their parts; false across other types.
    pub fn equals(&self, other: &Value<'a>) -> Result<bool, EvalError> {
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (
                Self::Int(_) | Self::Uint(_) | Self::Double(_),
                Self::Int(_) | Self::Uint(_) | Self::Double(_),
            ) => self.compare(other) == Some(Ordering::Equal),
            (Self::String(a), Self::String(b)) => **a == **b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.equals(b)?,
            (Self::Map(a), Self::Map(b)) => a.equals(b)?,
            (Self::Optional(Some(a)), Self::Optional(Some(b))) => a.equals(b)?,
            (Self::Optional(a), Self::Optional(b)) => a.is_none() && b.is_none(),
            (Self::Type(a), Self::Type(b)) => a.name() == b.name(),
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => a.cmp_precedence(b).is_eq(),
            (Self::Format(a), Self::Format(b)) => a.name == b.name,
            (Self::Check(a), Self::Check(b)) => a == b,
            _ => false,
        })
    }

    /// Order; None for values that have none between them.
    pub fn compare(&self, other: &Value<'a>) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Double(a), Self::Int(b)) => compare_double(*a, i128::from(*b)),
            (Self::Double(a), Self::Uint(b)) => compare_double(*a, i128::from(*b)),
            (Self::Int(_) | Self::Uint(_), Self::Double(_)) => other.compare(self).map(Ordering::reverse),
            (Self::String(a), Self::String(b)) => Some((**a).cmp(&**b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// As JSON, where there is a way to write it: what mutating policies put into objects.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Int(n) => Json::from(*n),
            Self::Uint(n) => Json::from(*n),
            Self::Double(n) => Json::Number(serde_json::Number::from_f64(*n)?),
            Self::String(s) => Json::String(s.to_string()),
            Self::Bytes(b) => {
                use base64::Engine as _;
                Json::String(base64::engine::general_purpose::STANDARD.encode(b))
            }
            Self::Duration(n) => Json::String(super::lib::time::duration_text(*n)),
            Self::Timestamp(t) => Json::String(t.to_string()),
            Self::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Self::List(List::Owned(items)) => {
                Json::Array(items.iter().map(Value::to_json).collect::<Option<_>>()?)
            }
            Self::Map(Map::Json(fields, _)) => Json::Object((*fields).clone()),
            Self::Map(Map::Owned(entries)) => entries_to_json(entries)?,
            Self::Map(Map::Struct(s)) => entries_to_json(&s.1)?,
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Quantity(q) => Json::String(q.to_string()),
            _ => return None,
        })
    }
}

fn entries_to_json(entries: &BTreeMap<Key<'_>, Value<'_>>) -> Option<Json> {
    let entry = |(k, v): (&Key<'_>, &Value<'_>)| {
        let Key::String(name) = k else { return None };
        Some((super::decl::unescape(name).unwrap_or_else(|| name.to_string()), v.to_json()?))
    };
    Some(Json::Object(entries.iter().map(entry).collect::<Option<_>>()?))
}

/// A whole JSON number; `1.0` is one too.
fn whole(n: &serde_json::Number) -> Option<i64> {
    n.as_i64().or_else(|| n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.2e18).map(|f| f as i64))
}

fn compare_double(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Beyond these every 64-bit integer is smaller or greater.
    if a >= 1.9e19 {
        return Some(Ordering::Greater);
    }
    if a <= -1.9e19 {
        return Some(Ordering::Less);
    }
    let whole = a.trunc() as i128;
    Some(whole.cmp(&b).then(a.fract().partial_cmp(&0.0)?))
}

impl<'a> List<'a> {
    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Owned(items) => items.len(),
        }
    }

    /// The item at an index.
    pub fn get(&self, index: usize) -> Option<Outcome<'a>> {
        match self {
            Self::Json(items, decl) => {
                items.get(index).map(|json| Value::declared(json, decl.and_then(Decl::item)))
            }
            Self::Owned(items) => items.get(index).cloned().map(Ok),
        }
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = Outcome<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// All items as a vector.
    pub fn to_vec(&self) -> Result<Vec<Value<'a>>, EvalError> {
        self.iter().collect()
    }

    /// How the list's items are told apart: sets and maps ignore order.
    fn kind(&self) -> &ListKind {
        match self {
            Self::Json(_, Some(Decl { shape: Shape::List { kind, .. }, .. })) => kind,
            _ => &ListKind::Atomic,
        }
    }

    fn equals(&self, other: &List<'a>) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        match self.kind() {
            ListKind::Atomic => {
                for (a, b) in self.iter().zip(other.iter()) {
                    if !a?.equals(&b?)? {
                        return Ok(false);
                    }
                }
            }
            kind => {
                let index = self.keyed(kind)?;
                for item in other.iter() {
                    let item = item?;
                    match index.get(&identity(&item, kind)) {
                        Some((_, mine)) if mine.equals(&item)? => {}
                        _ => return Ok(false),
                    }
                }
            }
        }
        Ok(true)
    }

    /// Position and item by identity.
    fn keyed(&self, kind: &ListKind) -> Result<BTreeMap<String, (usize, Value<'a>)>, EvalError> {
        self.iter().enumerate().map(|(i, v)| v.map(|v| (identity(&v, kind), (i, v)))).collect()
    }

    /// `self + other`. A set keeps its items and takes those that are new; a list of type map replaces items with
    /// equal keys in place.
    pub fn concat(self, other: &List<'a>) -> Outcome<'a> {
        let kind = self.kind().clone();
        if matches!(kind, ListKind::Atomic) {
            return match self {
                // The accumulator of a comprehension: nobody else holds it.
                Self::Owned(mut items) => {
                    Arc::make_mut(&mut items).extend(other.to_vec()?);
                    Ok(Value::List(Self::Owned(items)))
                }
                json => {
                    let mut items = json.to_vec()?;
                    items.extend(other.to_vec()?);
                    Ok(Value::list(items))
                }
            };
        }
        let mut places: BTreeMap<String, usize> =
            self.keyed(&kind)?.into_iter().map(|(key, (at, _))| (key, at)).collect();
        let mut items = self.to_vec()?;
        for item in other.iter() {
            let item = item?;
            match places.get(&identity(&item, &kind)) {
                Some(&at) if matches!(kind, ListKind::Map(_)) => items[at] = item,
                Some(_) => {}
                None => {
                    places.insert(identity(&item, &kind), items.len());
                    items.push(item);
                }
            }
        }
        Ok(Value::list(items))
    }
}

/// What tells an item of a set or of a list of type map apart.
fn identity(item: &Value<'_>, kind: &ListKind) -> String {
    match (kind, item) {
        (ListKind::Map(keys), Value::Map(Map::Json(fields, _))) => {
            let key = |k: &str| fields.get(k).map(Json::to_string).unwrap_or_default();
            keys.iter().map(|k| key(k)).collect::<Vec<_>>().join("\u{0}")
        }
        (ListKind::Map(keys), Value::Map(map)) => {
            let key = |k: &str| map.find(k).and_then(Result::ok).map(|v| v.to_string()).unwrap_or_default();
            keys.iter().map(|k| key(k)).collect::<Vec<_>>().join("\u{0}")
        }
        (_, item) => item.to_string(),
    }
}

impl<'a> Map<'a> {
    fn type_of(&self) -> Type {
        match self {
            Self::Json(_, Some(Decl { shape: Shape::Object { name, .. }, .. })) => {
                Type::Object(Arc::clone(name))
            }
            Self::Struct(s) => Type::Object(Arc::clone(&s.0)),
            _ => Type::map(Type::Dyn, Type::Dyn),
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(fields, Some(Decl { shape: Shape::Object { fields: known, .. }, .. })) => {
                known.iter().filter(|f| fields.contains_key(&*f.property)).count()
            }
            Self::Json(fields, _) => fields.len(),
            Self::Owned(entries) | Self::Defaulted(entries) => entries.len(),
            Self::Struct(s) => s.1.len(),
            Self::Lazy(_) => 0,
        }
    }

    /// The value of a text key or field; None when there is none.
    pub fn find(&self, name: &str) -> Option<Outcome<'a>> {
        match self {
            Self::Json(fields, Some(decl)) => match &decl.shape {
                Shape::Object { .. } => {
                    let field = decl.field(name)?;
                    fields.get(&*field.property).map(|json| Value::declared(json, Some(&field.decl)))
                }
                Shape::Map(item) => fields.get(name).map(|json| Value::declared(json, Some(item))),
                _ => fields.get(name).map(|json| Ok(Value::dynamic(json))),
            },
            Self::Json(fields, None) => fields.get(name).map(|json| Ok(Value::dynamic(json))),
            Self::Owned(entries) => entries.get(&Key::String(Str::Shared(name.into()))).cloned().map(Ok),
            Self::Defaulted(entries) => {
                let found = entries.get(&Key::String(Str::Shared(name.into()))).cloned();
                Some(Ok(found.unwrap_or_else(|| Value::map(BTreeMap::new()))))
            }
            Self::Struct(s) => s.1.get(&Key::String(Str::Shared(name.into()))).cloned().map(Ok),
            Self::Lazy(fields) => fields.field(name),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &Key<'a>) -> Option<Outcome<'a>> {
        match (self, key) {
            (Self::Owned(entries), key) => entries.get(key).cloned().map(Ok),
            (_, Key::String(name)) => self.find(name),
            _ => None,
        }
    }

    /// Whether there is an entry: one that is only a default is none.
    pub fn has_key(&self, key: &Key<'a>) -> bool {
        match self {
            Self::Defaulted(entries) => entries.contains_key(key),
            _ => self.get(key).is_some(),
        }
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<Key<'a>> {
        match self {
            Self::Json(fields, Some(Decl { shape: Shape::Object { fields: known, .. }, .. })) => known
                .iter()
                .filter(|f| fields.contains_key(&*f.property))
                .map(|f| Key::String(Str::Shared(Arc::clone(&f.name))))
                .collect(),
            Self::Json(fields, _) => fields.keys().map(|k| Key::String(Str::Borrowed(k))).collect(),
            Self::Owned(entries) | Self::Defaulted(entries) => entries.keys().cloned().collect(),
            Self::Struct(s) => s.1.keys().cloned().collect(),
            Self::Lazy(_) => Vec::new(),
        }
    }

    /// The entries, copied: values are shared, not copied.
    pub fn to_entries(&self) -> Result<BTreeMap<Key<'a>, Value<'a>>, EvalError> {
        match self {
            Self::Owned(entries) | Self::Defaulted(entries) => Ok((**entries).clone()),
            other => {
                other.keys().into_iter().filter_map(|k| other.get(&k).map(|v| v.map(|v| (k, v)))).collect()
            }
        }
    }

    fn equals(&self, other: &Map<'a>) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for key in self.keys() {
            let (Some(a), Some(b)) = (self.get(&key), other.get(&key)) else { return Ok(false) };
            if !a?.equals(&b?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// For messages and for telling set items apart: as CEL would write it.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Uint(n) => write!(f, "{n}"),
            Self::Double(n) => f.write_str(&super::lib::conversions::double_text(*n)),
            Self::String(s) => f.write_str(s),
            Self::Bytes(b) => f.write_str(&String::from_utf8_lossy(b)),
            Self::Duration(n) => f.write_str(&super::lib::time::duration_text(*n)),
            Self::Timestamp(t) => write!(f, "{t}"),
            Self::List(list) => {
                f.write_str("[")?;
                for (i, item) in list.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    match item {
                        Ok(item) => write!(f, "{comma}{item}")?,
                        Err(e) => write!(f, "{comma}{e}")?,
                    }
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("{")?;
                for (i, key) in map.keys().into_iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    match map.get(&key) {
                        Some(Ok(item)) => write!(f, "{comma}{}: {item}", key.value())?,
                        _ => write!(f, "{comma}{}", key.value())?,
                    }
                }
                f.write_str("}")
            }
            Self::Optional(Some(v)) => write!(f, "optional({v})"),
            Self::Optional(None) => f.write_str("optional.none()"),
            Self::Type(t) => f.write_str(t.name()),
            Self::Quantity(q) => write!(f, "{q}"),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Cidr(cidr) => write!(f, "{cidr}"),
            Self::Url(url) => f.write_str(url.text()),
            Self::Semver(v) => write!(f, "{v}"),
            Self::Format(format) => f.write_str(format.name),
            Self::Check(check) => f.write_str(check.type_name()),
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(s) => write!(f, "{:?}", &**s),
            Self::Uint(n) => write!(f, "{n}u"),
            other => write!(f, "{other}"),
        }
    }
}

/// Texts that are borrowed where they can be.
impl<'a> From<Cow<'a, str>> for Value<'a> {
    fn from(s: Cow<'a, str>) -> Self {
        match s {
            Cow::Borrowed(s) => Self::String(Str::Borrowed(s)),
            Cow::Owned(s) => Self::string(s),
        }
    }
}
