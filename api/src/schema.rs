//! The types of the built-in kinds: fields, their types, list and merge semantics (`data/schema.txt`).
//!
//! Parsed once, on first use, into tables that borrow the embedded text: about 0.3 MiB for all types.

use crate::kinds::Kind;
use std::collections::HashMap;
use std::sync::LazyLock;

/// A type with fields.
#[derive(Debug, Clone)]
pub struct Type {
    /// Short name, `core.v1.PodSpec`.
    pub name: &'static str,
    /// `group/version/Kind` (`version/Kind` in the core group) of a kind's own type.
    pub kind: Option<&'static str>,
    /// Server-side apply replaces the object as a whole.
    pub atomic: bool,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Indices of the fields that are written also when empty.
    always: Vec<u16>,
}

/// A field of a type.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: &'static str,
    pub ty: Ty,
    pub required: bool,
    pub presence: Presence,
    pub list: ListType,
    keys: &'static str,
    patch: &'static str,
    /// The merge key of strategic merge; empty without.
    pub merge_key: &'static str,
    /// The schema's own default, as text.
    pub default: Option<&'static str>,
    /// Server-side apply replaces the map or object as a whole.
    pub atomic: bool,
    /// The field's object is merged although its type is atomic.
    granular: bool,
}

/// When a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// When it is set.
    WhenSet,
    /// Never as a zero value: zero and absence are one.
    WhenNotZero,
    /// Always, the zero value (`""`, `0`, `false`, `{}`) standing for absence.
    Always,
    /// Always, `null` standing for absence.
    AlwaysNull,
}

/// What a list means to server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// The type of a value: a base wrapped in any number of lists and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ty {
    /// `[]` and `map:`, outermost first.
    wraps: &'static str,
    base: Base,
}

/// What is inside lists and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Bool,
    Int32,
    Int64,
    Number,
    String,
    /// Base64 text.
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// Any object.
    Raw,
    /// Any value.
    Any,
    /// Index of a type.
    Struct(u16),
}

/// One layer of a type.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    List(Ty),
    Map(Ty),
    Struct(&'static Type),
    Scalar(Base),
}

impl Ty {
    /// The outermost layer.
    pub fn shape(self) -> Shape {
        if let Some(rest) = self.wraps.strip_prefix("[]") {
            Shape::List(Ty { wraps: rest, base: self.base })
        } else if let Some(rest) = self.wraps.strip_prefix("map:") {
            Shape::Map(Ty { wraps: rest, base: self.base })
        } else if let Base::Struct(i) = self.base {
            Shape::Struct(&schema().types[usize::from(i)])
        } else {
            Shape::Scalar(self.base)
        }
    }

    /// The struct type at the core, whatever is around it.
    pub fn inner_struct(self) -> Option<&'static Type> {
        match self.base {
            Base::Struct(i) => Some(&schema().types[usize::from(i)]),
            _ => None,
        }
    }

    /// The name of the Go type, as `encoding/json`'s errors print it.
    pub fn go_name(self) -> String {
        let base = match self.base {
            Base::Bool => "bool".into(),
            Base::Int32 => "int32".into(),
            Base::Int64 => "int64".into(),
            Base::Number => "float64".into(),
            Base::String => "string".into(),
            Base::Bytes => "[]uint8".into(),
            Base::Time => "v1.Time".into(),
            Base::MicroTime => "v1.MicroTime".into(),
            Base::Quantity => "resource.Quantity".into(),
            Base::IntOrString => "intstr.IntOrString".into(),
            Base::Raw => "runtime.RawExtension".into(),
            Base::Any => "interface {}".into(),
            Base::Struct(i) => {
                let name = schema().types[usize::from(i)].name;
                name.split_once('.').map_or(name, |(_, rest)| rest).to_owned()
            }
        };
        format!("{}{base}", self.wraps.replace("map:", "map[string]"))
    }
}

impl Type {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &self.fields[i])
    }

    /// The type's name without its package: `PodSpec`.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The fields that are written also when empty.
    pub fn always(&self) -> impl Iterator<Item = &Field> {
        self.always.iter().map(|i| &self.fields[usize::from(*i)])
    }

    /// The OpenAPI name, `io.k8s.api.core.v1.PodSpec`.
    pub fn openapi_name(&self) -> String {
        for (short, full) in &schema().prefixes {
            if let Some(rest) = self.name.strip_prefix(short) {
                return format!("{full}{rest}");
            }
        }
        if self.name.starts_with("io.k8s.") {
            self.name.to_owned()
        } else {
            format!("io.k8s.api.{}", self.name)
        }
    }
}

impl Field {
    /// The keys of a `list=map`.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.keys.split(',').filter(|k| !k.is_empty())
    }

    /// Whether strategic merge uses the strategy: `merge`, `replace` or `retainKeys`.
    pub fn has_patch_strategy(&self, strategy: &str) -> bool {
        self.patch.split(',').any(|s| s == strategy)
    }
}

struct Schema {
    types: Vec<Type>,
    prefixes: Vec<(&'static str, &'static str)>,
    by_name: HashMap<&'static str, u16>,
    /// By group, version and kind.
    by_kind: HashMap<(&'static str, &'static str, &'static str), u16>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse(include_str!("../data/schema.txt")));

fn schema() -> &'static Schema {
    &SCHEMA
}

/// The type of a short name, `core.v1.PodSpec`.
pub fn find(name: &str) -> Option<&'static Type> {
    schema().by_name.get(name).map(|i| &schema().types[usize::from(*i)])
}

/// The type of an OpenAPI name, `io.k8s.api.core.v1.PodSpec`.
pub fn find_openapi(name: &str) -> Option<&'static Type> {
    for (short, full) in &schema().prefixes {
        if let Some(rest) = name.strip_prefix(full) {
            return find(&format!("{short}{rest}"));
        }
    }
    find(name).or_else(|| find(name.strip_prefix("io.k8s.api.")?))
}

/// The type of a kind, given `apiVersion` and `kind`.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = crate::object::split_api_version(api_version);
    of_group(group, version, kind)
}

fn of_group(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    // Looked up on every request: no string is built for it.
    let index = schema().by_kind.get(&(group, version, kind))?;
    Some(&schema().types[usize::from(*index)])
}

/// The type of a row of the kinds table; `None` for kinds defined at run time.
pub fn of(kind: &Kind) -> Option<&'static Type> {
    if !kind.builtin {
        return None;
    }
    of_group(&kind.group, &kind.version, &kind.kind)
}

/// The type of every object's `metadata`.
pub fn object_meta() -> Option<&'static Type> {
    find("meta.v1.ObjectMeta")
}

/// Every type, by name.
pub fn all() -> &'static [Type] {
    &schema().types[..schema().by_name.len()]
}

/// Reads the table; its format is described at its head. The tests check that every line is understood.
fn parse(text: &'static str) -> Schema {
    let mut by_name: HashMap<&'static str, u16> = HashMap::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("type ")) {
        let name = line.split(' ').next().unwrap_or(line);
        let next = u16::try_from(by_name.len()).unwrap_or(u16::MAX);
        by_name.insert(name, next);
    }
    let mut schema = Schema { types: Vec::new(), prefixes: Vec::new(), by_name, by_kind: HashMap::new() };
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("type ") {
            let mut words = line.split(' ');
            let mut ty = Type {
                name: words.next().unwrap_or(""),
                kind: None,
                atomic: false,
                fields: Vec::new(),
                always: Vec::new(),
            };
            for word in words {
                match word.strip_prefix("kind=") {
                    Some(kind) => {
                        ty.kind = Some(kind);
                        let index = u16::try_from(schema.types.len()).unwrap_or(u16::MAX);
                        let (api_version, name) = kind.rsplit_once('/').unwrap_or(("", kind));
                        let (group, version) = crate::object::split_api_version(api_version);
                        schema.by_kind.insert((group, version, name), index);
                    }
                    None => ty.atomic |= word == "atomic",
                }
            }
            schema.types.push(ty);
        } else if let Some(line) = line.strip_prefix("prefix ") {
            schema.prefixes.extend(line.split_once(' '));
        } else if let Some(line) = line.strip_prefix(' ')
            && let Some(field) = parse_field(line, &schema.by_name)
            && let Some(ty) = schema.types.last_mut()
        {
            ty.fields.push(field);
        }
    }
    make_granular(&mut schema);
    for ty in &mut schema.types {
        ty.fields.sort_unstable_by_key(|f| f.name);
        ty.fields.shrink_to_fit();
        let always = ty
            .fields
            .iter()
            .enumerate()
            .filter(|(_, f)| matches!(f.presence, Presence::Always | Presence::AlwaysNull));
        ty.always = always.filter_map(|(i, _)| u16::try_from(i).ok()).collect();
    }
    schema
}

/// Gives the fields that merge an atomic type a copy of that type which is not atomic.
fn make_granular(schema: &mut Schema) {
    let mut copies: Vec<(usize, usize, u16)> = Vec::new();
    for (t, ty) in schema.types.iter().enumerate() {
        for (f, field) in ty.fields.iter().enumerate() {
            if let (true, Base::Struct(i)) = (field.granular, field.ty.base) {
                copies.push((t, f, i));
            }
        }
    }
    for (t, f, i) in copies {
        let copy = Type { atomic: false, kind: None, ..schema.types[usize::from(i)].clone() };
        let Ok(index) = u16::try_from(schema.types.len()) else { continue };
        schema.types.push(copy);
        schema.types[t].fields[f].ty.base = Base::Struct(index);
    }
}

fn parse_field(line: &'static str, types: &HashMap<&'static str, u16>) -> Option<Field> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let ty = words.next()?;
    let base_at = ty.rfind([']', ':']).map_or(0, |i| i + 1);
    let base = match &ty[base_at..] {
        "bool" => Base::Bool,
        "int32" => Base::Int32,
        "int64" => Base::Int64,
        "number" => Base::Number,
        "string" => Base::String,
        "bytes" => Base::Bytes,
        "time" => Base::Time,
        "microtime" => Base::MicroTime,
        "quantity" => Base::Quantity,
        "intorstring" => Base::IntOrString,
        "raw" => Base::Raw,
        "any" => Base::Any,
        name => Base::Struct(*types.get(name)?),
    };
    let mut field = Field {
        name: name.strip_suffix('!').unwrap_or(name),
        ty: Ty { wraps: &ty[..base_at], base },
        required: name.ends_with('!'),
        presence: Presence::WhenSet,
        list: ListType::Atomic,
        keys: "",
        patch: "",
        merge_key: "",
        default: None,
        atomic: false,
        granular: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("list", "set")) => field.list = ListType::Set,
            Some(("list", "map")) => field.list = ListType::Map,
            Some(("list", "atomic")) => {}
            Some(("keys", v)) => field.keys = v,
            Some(("patch", v)) => field.patch = v,
            Some(("mergekey", v)) => field.merge_key = v,
            Some(("default", v)) => field.default = Some(v),
            Some(("always", _)) => field.presence = Presence::AlwaysNull,
            None if word == "always" => field.presence = Presence::Always,
            None if word == "zero" => field.presence = Presence::WhenNotZero,
            None if word == "atomic" => field.atomic = true,
            // The type is settled when all types are known.
            None if word == "granular" => field.granular = true,
            _ => return None,
        }
    }
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let text = include_str!("../data/schema.txt");
        let lines = text.lines().filter(|l| l.starts_with(' ')).count();
        assert_eq!(all().iter().map(|t| t.fields.len()).sum::<usize>(), lines);
        assert_eq!(all().len(), text.lines().filter(|l| l.starts_with("type ")).count());
    }

    #[test]
    fn every_stored_kind_has_a_type() {
        for kind in crate::kinds::builtin() {
            let ty = of(kind).unwrap_or_else(|| panic!("{} has no type", kind.group_kind()));
            assert!(ty.field("metadata").is_some(), "{}", ty.name);
        }
    }

    #[test]
    fn facts() {
        let spec = find("core.v1.PodSpec").expect("PodSpec");
        let containers = spec.field("containers").expect("containers");
        assert_eq!(
            (containers.merge_key, containers.list, containers.required),
            ("name", ListType::Map, true)
        );
        assert!(containers.has_patch_strategy("merge"));
        assert_eq!(containers.ty.go_name(), "[]v1.Container");
        let ports = find("core.v1.Container").and_then(|t| t.field("ports")).expect("ports");
        assert_eq!(ports.keys().collect::<Vec<_>>(), ["containerPort", "protocol"]);
        let strategy = find("apps.v1.DeploymentSpec").and_then(|t| t.field("strategy")).expect("strategy");
        assert!(strategy.has_patch_strategy("retainKeys") && strategy.presence == Presence::Always);
        let claim = find("core.v1.PersistentVolumeSpec").and_then(|t| t.field("claimRef")).expect("claimRef");
        assert!(claim.ty.inner_struct().is_some_and(|t| !t.atomic && t.name == "core.v1.ObjectReference"));
        assert!(find("core.v1.ObjectReference").is_some_and(|t| t.atomic));
        let extra = find("authentication.v1.UserInfo").and_then(|t| t.field("extra")).expect("extra");
        assert!(matches!(extra.ty.shape(), Shape::Map(inner) if matches!(inner.shape(), Shape::List(_))));
        assert_eq!(spec.openapi_name(), "io.k8s.api.core.v1.PodSpec");
        assert!(
            all().iter().all(|t| find_openapi(&t.openapi_name()).is_some_and(|found| found.name == t.name))
        );
        assert_eq!(
            object_meta().map(Type::openapi_name).as_deref(),
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        );
    }
}
