//! Estimates before an expression runs, from what the schema says of sizes.

use std::sync::Arc;

use super::{
    AUTHORIZATION, FORMAT_REGEX, NEW_LIST, NEW_MAP, NEW_OBJECT, NOMINAL, REGEX, SELECT, TRAVERSAL, scaled,
};
use crate::cel::ast::{ACCU, Call, Expr, Fold, Kind, Literal};
use crate::cel::decl::{Decl, Shape};
use crate::cel::env::Env;
use crate::cel::types::Type;

/// A range of costs or of sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    pub min: u64,
    pub max: u64,
}

impl Estimate {
    const UNKNOWN: Self = Self { min: 0, max: u64::MAX };

    const fn of(min: u64, max: u64) -> Self {
        Self { min, max }
    }
    const fn fixed(n: u64) -> Self {
        Self::of(n, n)
    }
    fn add(self, other: Self) -> Self {
        Self::of(self.min.saturating_add(other.min), self.max.saturating_add(other.max))
    }
    fn times(self, other: Self) -> Self {
        Self::of(self.min.saturating_mul(other.min), self.max.saturating_mul(other.max))
    }
    fn scaled(self, factor: f64) -> Self {
        Self::of(scaled(self.min, factor), scaled(self.max, factor))
    }
    fn union(self, other: Self) -> Self {
        Self::of(self.min.min(other.min), self.max.max(other.max))
    }
}

/// Sizes of a container's keys (or indices) and values.
#[derive(Debug, Clone, Copy)]
struct Entry {
    list: bool,
    key: Estimate,
    value: Estimate,
}

impl Entry {
    fn union(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let (a, b) = (a?, b?);
        Some(Self { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) })
    }
}

/// What is known of a node.
#[derive(Debug, Clone)]
struct Node<'d> {
    cost: Estimate,
    size: Option<Estimate>,
    entry: Option<Entry>,
    /// Where in the declared data it is.
    decl: Option<&'d Decl>,
    ty: Type,
}

impl Node<'_> {
    fn size(&self) -> Estimate {
        self.size.unwrap_or(Estimate::UNKNOWN)
    }
}

/// Keys of maps: texts whose length no schema bounds, which count as empty.
static KEY: Decl = Decl { shape: Shape::String, nullable: false, max_elements: 0, min_size: 2 };

struct Local<'d> {
    name: Arc<str>,
    size: Option<Estimate>,
    entry: Option<Entry>,
    decl: Option<&'d Decl>,
}

/// Estimates a checked expression.
pub fn estimate(env: &Env, expr: &Expr) -> Estimate {
    Estimator { env, locals: Vec::new() }.node(expr).cost
}

struct Estimator<'d> {
    env: &'d Env,
    locals: Vec<Local<'d>>,
}

impl<'d> Estimator<'d> {
    fn node(&mut self, e: &Expr) -> Node<'d> {
        let mut node =
            Node { cost: Estimate::fixed(0), size: None, entry: None, decl: None, ty: e.ty.clone() };
        match &e.kind {
            Kind::Literal(literal) => {
                node.size = Some(Estimate::fixed(match literal {
                    Literal::String(s) => s.chars().count() as u64,
                    Literal::Bytes(b) => b.len() as u64,
                    _ => 1,
                }));
            }
            Kind::TypeName(_) => node.cost = Estimate::fixed(SELECT),
            Kind::Ident(name) => {
                node.cost = Estimate::fixed(SELECT);
                match self.locals.iter().rev().find(|l| l.name == *name) {
                    Some(local) => {
                        node.decl = local.decl.filter(|_| **name != *ACCU);
                        node.entry = local.entry;
                        node.size = declared_size(node.decl).or_else(|| scalar_size(&e.ty)).or(local.size);
                    }
                    None => node.decl = self.env.root(name),
                }
            }
            Kind::Select { operand, field, test } => {
                let operand = self.node(operand);
                node.cost = operand.cost;
                if !test {
                    if matches!(operand.ty, Type::Map(_) | Type::Object(_) | Type::Param(_)) {
                        node.cost = node.cost.add(Estimate::fixed(SELECT));
                    }
                    node.decl = operand.decl.and_then(|d| match &d.shape {
                        Shape::Object { .. } => d.field(field).map(|f| &f.decl),
                        _ => None,
                    });
                }
            }
            Kind::Call(call) => self.call(call, &mut node),
            Kind::List { items, .. } => {
                let mut item_size = Estimate::of(if items.is_empty() { 0 } else { u64::MAX }, 0);
                for item in items {
                    let item = self.node(item);
                    node.cost = node.cost.add(item.cost);
                    item_size = item_size.union(item.size());
                }
                node.cost = node.cost.add(Estimate::fixed(NEW_LIST));
                node.size = Some(Estimate::fixed(items.len() as u64));
                node.entry = Some(Entry { list: true, key: Estimate::fixed(1), value: item_size });
            }
            Kind::Map(entries) => {
                let empty = Estimate::of(if entries.is_empty() { 0 } else { u64::MAX }, 0);
                let (mut key_size, mut value_size) = (empty, empty);
                for entry in entries {
                    let (key, value) = (self.node(&entry.key), self.node(&entry.value));
                    node.cost = node.cost.add(key.cost).add(value.cost);
                    key_size = key_size.union(key.size());
                    value_size = value_size.union(value.size());
                }
                node.cost = node.cost.add(Estimate::fixed(NEW_MAP));
                node.size = Some(Estimate::fixed(entries.len() as u64));
                node.entry = Some(Entry { list: false, key: key_size, value: value_size });
            }
            Kind::Struct { fields, .. } => {
                let parts: Vec<_> = fields.iter().map(|f| self.node(&f.value).cost).collect();
                node.cost = parts.into_iter().fold(Estimate::fixed(NEW_OBJECT), Estimate::add);
            }
            Kind::Fold(fold) => self.fold(fold, &mut node),
        }
        node.size = node.size.or_else(|| declared_size(node.decl)).or_else(|| scalar_size(&e.ty));
        node
    }

    fn push(&mut self, name: &Arc<str>, node: Local<'d>) {
        self.locals.push(Local { name: Arc::clone(name), ..node });
    }

    fn fold(&mut self, fold: &Fold, node: &mut Node<'d>) {
        let range = self.node(&fold.range);
        let init = self.node(&fold.init);
        node.cost = range.cost.add(init.cost);
        let depth = self.locals.len();
        let accu =
            Local { name: Arc::clone(&fold.accu), size: init.size, entry: init.entry, decl: init.decl };
        self.locals.push(accu);
        let is_let = matches!(&fold.range.kind, Kind::List { items, .. } if items.is_empty())
            && matches!(fold.condition.kind, Kind::Literal(Literal::Bool(false)))
            && *fold.accu != *ACCU;
        if is_let {
            let result = self.node(&fold.result);
            self.locals.truncate(depth);
            node.cost = node.cost.add(result.cost);
            node.size = result.size;
            node.entry = result.entry;
            return;
        }
        let list = range.entry.map_or(matches!(range.ty, Type::List(_)), |e| e.list);
        let item = range.decl.and_then(Decl::item);
        let key = range.decl.filter(|d| matches!(d.shape, Shape::Map(_))).map(|_| &KEY);
        let unnamed = |size, decl| Local { name: "".into(), size, entry: None, decl };
        let (key_size, value_size) = (range.entry.map(|e| e.key), range.entry.map(|e| e.value));
        match &fold.var2 {
            Some(var2) => {
                self.push(&fold.var, unnamed(key_size, if list { None } else { key }));
                self.push(var2, unnamed(value_size, item));
            }
            None if list => self.push(&fold.var, unnamed(value_size, item)),
            None => self.push(&fold.var, unnamed(key_size, key)),
        }
        let condition = self.node(&fold.condition);
        let step = self.node(&fold.step);
        self.locals.truncate(depth + 1);
        node.cost = node.cost.add(self.node(&fold.result).cost);
        self.locals.truncate(depth);
        let count = range.size();
        node.cost = node.cost.add(count.times(step.cost.add(condition.cost)));
        match &fold.init.kind {
            Kind::Literal(_) => node.size = init.size,
            Kind::List { .. } | Kind::Map(_) => {
                node.size = Some(count);
                node.entry = step.entry;
            }
            _ => {}
        }
    }

    fn call(&mut self, call: &Call, node: &mut Node<'d>) {
        let args: Vec<Node<'d>> = call.args.iter().map(|a| self.node(a)).collect();
        if &*call.function == "dyn" {
            if let Some(arg) = args.first() {
                node.cost = Estimate::fixed(1).add(arg.cost);
                node.size = arg.size;
                node.entry = arg.entry;
            }
            return;
        }
        let target = call.target.as_ref().map(|t| self.node(t));
        let arg_cost = args.iter().fold(Estimate::fixed(0), |sum, a| sum.add(a.cost));
        let mut cost = Estimate::of(u64::MAX, 0);
        let mut size: Option<Estimate> = None;
        let ids: Vec<&str> =
            if call.overloads.is_empty() { vec![""] } else { call.overloads.iter().map(|o| o.id).collect() };
        for id in ids {
            let (each, result) = match (&*call.function, args.as_slice()) {
                ("_&&_" | "_||_", [a, b]) => (Estimate::of(a.cost.min, a.cost.add(b.cost).max), None),
                ("_?_:_", [condition, yes, no]) => {
                    node.entry = Entry::union(yes.entry, no.entry);
                    (condition.cost.add(yes.cost.union(no.cost)), Some(yes.size().union(no.size())))
                }
                _ => {
                    let (own, result) = function(&call.function, id, target.as_ref(), &args, call);
                    (own.add(arg_cost), result)
                }
            };
            cost = cost.union(each);
            size = match (size, result) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => a.or(b),
            };
        }
        match (&*call.function, args.as_slice()) {
            ("_[_]", [container, _]) => {
                size = container.entry.map(|e| e.value);
                node.decl = container.decl.and_then(Decl::item);
            }
            ("_+_", [a, b]) => node.entry = Entry::union(a.entry, b.entry),
            _ => {}
        }
        node.size = size;
        node.cost = target.map_or(cost, |t| t.cost.add(cost));
    }
}

fn declared_size(decl: Option<&Decl>) -> Option<Estimate> {
    decl.map(|d| Estimate::of(0, d.max_elements))
}

fn scalar_size(ty: &Type) -> Option<Estimate> {
    let scalar = |t: &Type| {
        matches!(t, Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint)
    };
    scalar(ty.unwrap_optional().0).then_some(Estimate::fixed(1))
}

/// A call's own cost and the size of its result, where it has one.
fn function(
    name: &str,
    id: &str,
    target: Option<&Node<'_>>,
    args: &[Node<'_>],
    call: &Call,
) -> (Estimate, Option<Estimate>) {
    let one = Estimate::fixed(1);
    let arg = |i: usize| args.get(i).map_or(Estimate::UNKNOWN, Node::size);
    let this = target.map_or(Estimate::UNKNOWN, Node::size);
    let walk = |size: Estimate| size.scaled(TRAVERSAL);
    match name {
        name if NOMINAL.contains(&name) => (one, None),
        "check" => (Estimate::fixed(AUTHORIZATION), None),
        "fieldSelector" | "labelSelector" => {
            let each = (NEW_LIST + NEW_OBJECT) as f64;
            let requirements = arg(0).scaled(0.5).scaled(each);
            (Estimate::fixed(NEW_LIST).add(walk(arg(0))).add(requirements), None)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => match target {
            Some(Node { ty: Type::List(item), decl, .. }) => {
                let item_size = declared_size(decl.and_then(Decl::item)).unwrap_or(Estimate::UNKNOWN);
                let each = match **item {
                    Type::String | Type::Bytes => one.add(walk(item_size)),
                    _ => one,
                };
                (this.times(each), None)
            }
            _ => (walk(this), None),
        },
        "url" | "jsonpatch.escapeKey" => (walk(arg(0)), Some(arg(0))),
        "lowerAscii" | "upperAscii" | "substring" | "trim" => (walk(this), Some(this)),
        "replace" => (this.scaled(2.0 * TRAVERSAL), Some(replaced(this, arg(0), arg(1)))),
        "split" => {
            let limit = match call.args.get(1).map(|a| &a.kind) {
                Some(Kind::Literal(Literal::Int(n))) => *n as u64,
                _ => this.max,
            };
            (this.scaled(2.0 * TRAVERSAL), Some(Estimate::of(0, limit)))
        }
        "join" => {
            let item = target.and_then(|t| t.decl).and_then(Decl::item);
            let mut size = this.times(declared_size(item).unwrap_or(Estimate::UNKNOWN));
            if !args.is_empty() {
                let separators = Estimate::of(this.min.saturating_sub(1), this.max.saturating_sub(1));
                size = size.add(arg(0).times(separators));
            }
            (walk(size), Some(size))
        }
        "find" | "findAll" => {
            let cost = walk(this.add(one)).times(arg(0).scaled(REGEX));
            (cost, Some(Estimate::of(0, this.max)))
        }
        "matches" => match target {
            Some(_) => (walk(this.add(one)).times(arg(0).scaled(REGEX)), None),
            None => (one, None),
        },
        "contains" => (walk(this).times(walk(arg(0))), None),
        "startsWith" | "endsWith" => (walk(arg(0)), None),
        "format" => (walk(this), None),
        "strings.quote" => {
            let size = arg(0);
            let quoted =
                Estimate::of(size.min.saturating_add(2), size.max.saturating_mul(2).saturating_add(2));
            (walk(size), Some(quoted))
        }
        "ip" if id == "cidr_ip" => (one, None),
        "ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
            (walk(arg(0)), None)
        }
        "ip.isCanonical" => (arg(0).scaled(2.0 * TRAVERSAL), None),
        "containsIP" | "containsCIDR" => {
            let address = Estimate::of(4, 16);
            let mut cost = walk(address.add(address));
            if name == "containsCIDR" {
                cost = cost.add(walk(address)).add(one);
            }
            if id.ends_with("string") {
                cost = cost.add(walk(arg(0)));
            }
            (cost, None)
        }
        "validate" => (walk(arg(0)).scaled(FORMAT_REGEX as f64 * REGEX), None),
        "bytes" if id == "string_to_bytes" => {
            let size = arg(0);
            (walk(size), Some(Estimate::of(size.min, size.max.saturating_mul(4))))
        }
        "string" if id == "bytes_to_string" => {
            let size = arg(0);
            (walk(size), Some(Estimate::of(size.min / 4, size.max)))
        }
        "@in" if id == "in_list" => (arg(1), None),
        "_+_" if matches!(id, "add_string" | "add_bytes") => {
            let size = arg(0).add(arg(1));
            (walk(size), Some(size))
        }
        "_+_" if id == "add_list" => (one, Some(arg(0).add(arg(1)))),
        "_==_" | "_!=_" => match args {
            [a, b] if name == "_==_" && a.ty == b.ty && is_library_type(&a.ty) => (one, None),
            _ => (compared(arg(0), arg(1)), None),
        },
        "_<_" | "_<=_" | "_>_" | "_>=_" if id.ends_with("_string") || id.ends_with("_bytes") => {
            (compared(arg(0), arg(1)), None)
        }
        _ => (one, None),
    }
}

fn is_library_type(ty: &Type) -> bool {
    matches!(ty, Type::Object(name) if name.starts_with("kubernetes.") || name.starts_with("net."))
}

/// Comparing two texts or containers.
fn compared(a: Estimate, b: Estimate) -> Estimate {
    let max = a.max.min(b.max);
    Estimate::of(u64::from(max > 0), max).scaled(TRAVERSAL)
}

/// Length of a text in which `from` was replaced by `to`.
fn replaced(text: Estimate, from: Estimate, to: Estimate) -> Estimate {
    let (mut count, mut kept) = (Estimate::fixed(0), Estimate::fixed(0));
    if from.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / from.min as f64).ceil() as u64;
    }
    if from.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / from.max as f64).ceil() as u64;
    }
    count.times(to).add(kept)
}
