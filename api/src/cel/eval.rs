//! The evaluator: walks the checked tree, counts costs, and stops beyond the limit.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Call, Expr, Fold, Kind, Literal};
use super::cost::{self, Meter};
use super::env::{Evaluated, Variables};
use super::error::EvalError;
use super::functions;
use super::value::{Key, List, Map, Outcome, Str, Value};

/// Evaluates a checked expression.
pub fn evaluate<'a>(expr: &Expr, variables: &dyn Variables<'a>, limit: u64) -> Evaluated<'a> {
    let mut evaluator = Evaluator { variables, locals: Vec::new(), meter: Meter::new(limit) };
    let result = evaluator.eval(expr);
    Evaluated { result, cost: evaluator.meter.spent() }
}

/// Functions that do not evaluate all their arguments first: they have no code in `lib`.
#[cfg(test)]
pub fn is_special(name: &str) -> bool {
    matches!(name, "_&&_" | "_||_" | "_?_:_" | "@not_strictly_false" | "_[_]" | "_[?_]" | "or" | "orValue")
}

struct Evaluator<'p, 'v, 'a> {
    variables: &'v dyn Variables<'a>,
    /// Variables of the comprehensions around.
    locals: Vec<(&'p str, Option<Value<'a>>)>,
    meter: Meter,
}

impl<'p, 'a> Evaluator<'p, '_, 'a> {
    fn eval(&mut self, e: &'p Expr) -> Outcome<'a> {
        match &e.kind {
            Kind::Literal(literal) => Ok(match literal {
                Literal::Null => Value::Null,
                Literal::Bool(b) => Value::Bool(*b),
                Literal::Int(n) => Value::Int(*n),
                Literal::Uint(n) => Value::Uint(*n),
                Literal::Double(n) => Value::Double(*n),
                Literal::String(s) => Value::String(Str::Shared(Arc::clone(s))),
                Literal::Bytes(b) => Value::Bytes(Arc::clone(b)),
            }),
            Kind::TypeName(ty) => {
                self.meter.select()?;
                Ok(Value::Type(ty.clone()))
            }
            Kind::Ident(name) => {
                self.meter.select()?;
                self.variable(name)
            }
            Kind::Select { operand, field, test } => {
                let operand = self.eval(operand)?;
                if *test {
                    return has(&operand, field);
                }
                self.meter.select()?;
                select(&operand, field)
            }
            Kind::Call(call) => self.call(call),
            Kind::List { items, optional } => self.list(items, optional),
            Kind::Map(_) => self.map(e),
            Kind::Struct { .. } => self.object(e),
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn variable(&self, name: &str) -> Outcome<'a> {
        let name = name.trim_start_matches('.');
        match self.locals.iter().rev().find(|(n, _)| *n == name) {
            Some((_, Some(value))) => Ok(value.clone()),
            Some((_, None)) => Err(EvalError::value(format!("no such attribute(s): {name}"))),
            None => self
                .variables
                .get(name)
                .ok_or_else(|| EvalError::value(format!("no such attribute(s): {name}"))),
        }
    }

    fn list(&mut self, items: &'p [Expr], optional: &[bool]) -> Outcome<'a> {
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items.iter().zip(optional) {
            match self.eval(item)? {
                Value::Optional(value) if *optional => values.extend(value.map(|v| (*v).clone())),
                value if *optional => {
                    let message =
                        format!("cannot initialize optional list element from non-optional value {value}");
                    return Err(EvalError::Value(message));
                }
                value => values.push(value),
            }
        }
        self.meter.new_list()?;
        Ok(Value::list(values))
    }

    fn map(&mut self, e: &'p Expr) -> Outcome<'a> {
        let Kind::Map(entries) = &e.kind else { return Err(EvalError::NoSuchOverload) };
        let mut values = BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key)?;
            let key = Key::of(&key).ok_or_else(|| EvalError::value("unsupported key type"))?;
            let Some(value) = self.entry(&entry.value, entry.optional, &key.value().to_string())? else {
                continue;
            };
            let shown = key.value().to_string();
            if values.insert(key, value).is_some() {
                return Err(EvalError::value(format!("Failed with repeated key: {shown}")));
            }
        }
        self.meter.new_map()?;
        Ok(Value::map(values))
    }

    /// The value of an entry or field; None where it is written with `?` and there is none.
    fn entry(&mut self, e: &'p Expr, optional: bool, name: &str) -> Result<Option<Value<'a>>, EvalError> {
        match self.eval(e)? {
            Value::Optional(value) if optional => Ok(value.map(|v| (*v).clone())),
            value if optional => Err(EvalError::value(format!(
                "cannot initialize optional entry '{name}' from non-optional value {value}"
            ))),
            value => Ok(Some(value)),
        }
    }

    fn object(&mut self, e: &'p Expr) -> Outcome<'a> {
        let Kind::Struct { name, fields } = &e.kind else { return Err(EvalError::NoSuchOverload) };
        let mut values = BTreeMap::new();
        for field in fields {
            if let Some(value) = self.entry(&field.value, field.optional, &field.name)? {
                values.insert(Key::String(Str::Shared(Arc::clone(&field.name))), value);
            }
        }
        self.meter.new_object()?;
        Ok(Value::Map(Map::Struct(Arc::new((Arc::clone(name), values)))))
    }

    fn call(&mut self, call: &'p Call) -> Outcome<'a> {
        match (&*call.function, call.args.as_slice()) {
            ("_&&_", [a, b]) => self.logic(a, b, false),
            ("_||_", [a, b]) => self.logic(a, b, true),
            ("_?_:_", [condition, yes, no]) => match self.eval(condition)? {
                Value::Bool(true) => self.eval(yes),
                Value::Bool(false) => self.eval(no),
                _ => Err(EvalError::NoSuchOverload),
            },
            ("@not_strictly_false", [arg]) => {
                let value = self.eval(arg);
                self.meter.spend(1)?;
                match value {
                    Ok(Value::Bool(b)) => Ok(Value::Bool(b)),
                    Err(EvalError::CostLimit) => Err(EvalError::CostLimit),
                    _ => Ok(Value::Bool(true)),
                }
            }
            ("_[_]", [container, key]) => {
                let (container, key) = (self.eval(container)?, self.eval(key)?);
                self.meter.select()?;
                index(&container, &key)
            }
            ("_[?_]", [container, key]) => {
                let (container, key) = (self.eval(container)?, self.eval(key)?);
                self.meter.select()?;
                optional_index(&container, &key)
            }
            ("_?._", [operand, field]) => {
                let operand = self.eval(operand)?;
                self.meter.select()?;
                let Kind::Literal(Literal::String(name)) = &field.kind else {
                    return Err(EvalError::NoSuchOverload);
                };
                optional_index(&operand, &Value::String(Str::Shared(Arc::clone(name))))
            }
            ("or" | "orValue", [other]) => {
                let Some(target) = &call.target else { return Err(EvalError::NoSuchOverload) };
                let value = self.eval(target)?;
                self.meter.spend(1)?;
                match (&*call.function, value) {
                    ("or", Value::Optional(Some(v))) => Ok(Value::Optional(Some(v))),
                    ("orValue", Value::Optional(Some(v))) => Ok((*v).clone()),
                    (_, Value::Optional(None)) => self.eval(other),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            _ => self.plain_call(call),
        }
    }

    /// All arguments first, then the function.
    fn plain_call(&mut self, call: &'p Call) -> Outcome<'a> {
        let code = functions::find(&call.function).and_then(|f| f.code).ok_or(EvalError::NoSuchOverload)?;
        let mut args = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.iter().chain(&call.args) {
            args.push(self.eval(arg)?);
        }
        // What depends on the arguments alone is spent before the work is done.
        let before =
            if &*call.function == "join" { 0 } else { cost::runtime_call(&call.function, &args, None) };
        self.meter.spend(before)?;
        let result = code(&args);
        if &*call.function == "join" {
            self.meter.spend(cost::runtime_call(&call.function, &args, result.as_ref().ok()))?;
        }
        result
    }

    /// `&&` and `||`: the side that decides wins over an error of the other.
    fn logic(&mut self, a: &'p Expr, b: &'p Expr, decisive: bool) -> Outcome<'a> {
        let left = self.eval(a);
        match left {
            Ok(Value::Bool(v)) if v == decisive => return Ok(Value::Bool(decisive)),
            Err(EvalError::CostLimit) => return left,
            _ => {}
        }
        let right = self.eval(b);
        match (left, right) {
            (_, Ok(Value::Bool(v))) if v == decisive => Ok(Value::Bool(decisive)),
            (_, Err(EvalError::CostLimit)) => Err(EvalError::CostLimit),
            (Err(e), _) | (Ok(Value::Bool(_)), Err(e)) => Err(e),
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decisive)),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn fold(&mut self, fold: &'p Fold) -> Outcome<'a> {
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init);
        let depth = self.locals.len();
        self.locals.push((&fold.accu, Some(init?)));
        let done = self.iterate(fold, &range, depth);
        let result = match done {
            Ok(()) => self.eval(&fold.result),
            Err(e) => Err(e),
        };
        self.locals.truncate(depth);
        result
    }

    fn iterate(&mut self, fold: &'p Fold, range: &Value<'a>, depth: usize) -> Result<(), EvalError> {
        let keys = match range {
            Value::Map(map) => Some(map.keys()),
            Value::List(_) => None,
            _ => return Err(EvalError::NoSuchOverload),
        };
        let count = match (range, &keys) {
            (Value::List(list), _) => list.len(),
            (_, Some(keys)) => keys.len(),
            _ => 0,
        };
        // The step's error is the accumulator's: only the condition or the result may care.
        let mut accu: Result<(), EvalError> = Ok(());
        for i in 0..count {
            let (first, second) = match (range, &keys) {
                (Value::List(list), _) => {
                    let item = list.get(i).unwrap_or(Err(EvalError::NoSuchOverload))?;
                    if fold.var2.is_some() { (Value::Int(i as i64), Some(item)) } else { (item, None) }
                }
                (Value::Map(map), Some(keys)) => {
                    let Some(key) = keys.get(i) else { break };
                    let value = match &fold.var2 {
                        Some(_) => map.get(key).transpose()?,
                        None => None,
                    };
                    (key.value(), value)
                }
                _ => break,
            };
            self.locals.push((&fold.var, Some(first)));
            if let Some(var2) = &fold.var2 {
                self.locals.push((var2, second));
            }
            let step = self.step(fold, depth, &accu);
            self.locals.truncate(depth + 1);
            match step {
                Ok(Some(value)) => {
                    self.locals[depth].1 = Some(value);
                    accu = Ok(());
                }
                Ok(None) => break,
                Err(EvalError::CostLimit) => return Err(EvalError::CostLimit),
                Err(e) => {
                    // `all` and `exists` go on: another item may decide.
                    if !is_logic(&fold.step) {
                        return Err(e);
                    }
                    accu = Err(e);
                }
            }
        }
        accu
    }

    /// The accumulator's next value; None when the loop ends.
    fn step(
        &mut self,
        fold: &'p Fold,
        depth: usize,
        accu: &Result<(), EvalError>,
    ) -> Result<Option<Value<'a>>, EvalError> {
        if accu.is_ok() && !matches!(self.eval(&fold.condition)?, Value::Bool(true)) {
            return Ok(None);
        }
        if let (Err(error), Kind::Call(call)) = (accu, &fold.step.kind) {
            // The accumulator is an error: the item alone may still decide.
            let decisive = &*call.function == "_||_";
            let [_, item] = call.args.as_slice() else { return Err(error.clone()) };
            return match self.eval(item)? {
                Value::Bool(v) if v == decisive => Ok(Some(Value::Bool(decisive))),
                _ => Err(error.clone()),
            };
        }
        match &fold.step.kind {
            Kind::Call(call) => self.growing(fold, call, depth).map(Some),
            _ => self.eval(&fold.step).map(Some),
        }
    }

    /// A step `accu + [item]`, `condition ? accu + [item] : accu` or `insert(accu, …)`: the accumulator is taken out
    /// of its variable, so that it grows in place.
    fn growing(&mut self, fold: &'p Fold, call: &'p Call, depth: usize) -> Outcome<'a> {
        let is_accu = |e: &Expr| matches!(&e.kind, Kind::Ident(name) if *name == fold.accu);
        match (&*call.function, call.args.as_slice()) {
            ("_?_:_", [condition, grown, same]) if is_accu(same) => {
                match (self.eval(condition)?, &grown.kind) {
                    (Value::Bool(true), Kind::Call(grown)) => self.growing(fold, grown, depth),
                    (Value::Bool(true), _) => self.eval(grown),
                    (Value::Bool(false), _) => self.take(depth),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            ("_+_", [accu, item]) if is_accu(accu) && matches!(item.kind, Kind::List { .. }) => {
                let item = self.eval(item)?;
                self.meter.spend(2)?;
                match (self.take(depth)?, item) {
                    (Value::List(accu), Value::List(item)) => accu.concat(&item),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            ("cel.@mapInsert", [accu, rest @ ..]) if is_accu(accu) => {
                let mut values = Vec::with_capacity(2);
                for e in rest {
                    values.push(self.eval(e)?);
                }
                self.meter.spend(2)?;
                let accu = self.take(depth)?;
                super::lib::lists::map_insert(accu, &values)
            }
            _ => self.call(call),
        }
    }

    /// The accumulator's value, which its variable no longer holds.
    fn take(&mut self, depth: usize) -> Outcome<'a> {
        self.locals.get_mut(depth).and_then(|(_, v)| v.take()).ok_or(EvalError::NoSuchOverload)
    }
}

fn is_logic(e: &Expr) -> bool {
    matches!(&e.kind, Kind::Call(call) if matches!(&*call.function, "_&&_" | "_||_"))
}

fn no_such_key(key: &Value<'_>) -> EvalError {
    EvalError::value(format!("no such key: {key}"))
}

fn select<'a>(operand: &Value<'a>, field: &str) -> Outcome<'a> {
    match operand {
        Value::Map(map) => {
            map.find(field).unwrap_or_else(|| Err(EvalError::value(format!("no such key: {field}"))))
        }
        Value::Optional(Some(inner)) => select_present(inner, field),
        Value::Optional(None) => Ok(Value::Optional(None)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// Selection within an optional: what is absent is none.
fn select_present<'a>(operand: &Value<'a>, field: &str) -> Outcome<'a> {
    match operand {
        Value::Map(map) => Ok(map.find(field).transpose()?.map_or(Value::Optional(None), Value::some)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn has<'a>(operand: &Value<'a>, field: &str) -> Outcome<'a> {
    match operand {
        // A value that is there but broken is there.
        Value::Map(map) => Ok(Value::Bool(map.find(field).is_some())),
        Value::Optional(Some(inner)) => has(inner, field),
        Value::Optional(None) => Ok(Value::Bool(false)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A list index from a number; whole doubles are numbers too.
fn position(key: &Value<'_>) -> Option<i64> {
    match key {
        Value::Int(n) => Some(*n),
        Value::Uint(n) => i64::try_from(*n).ok(),
        Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e18 => Some(*d as i64),
        _ => None,
    }
}

fn item<'a>(list: &List<'a>, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    let at = position(key).ok_or(EvalError::NoSuchOverload)?;
    usize::try_from(at).ok().and_then(|at| list.get(at)).transpose()
}

fn entry<'a>(map: &Map<'a>, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    Key::of(key).and_then(|key| map.get(&key)).transpose()
}

fn index<'a>(container: &Value<'a>, key: &Value<'a>) -> Outcome<'a> {
    match container {
        Value::List(list) => {
            item(list, key)?.ok_or_else(|| EvalError::value(format!("index out of bounds: {key}")))
        }
        Value::Map(map) => entry(map, key)?.ok_or_else(|| no_such_key(key)),
        Value::Optional(Some(inner)) => optional_index(inner, key),
        Value::Optional(None) => Ok(Value::Optional(None)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn optional_index<'a>(container: &Value<'a>, key: &Value<'a>) -> Outcome<'a> {
    let found = match container {
        Value::List(list) => item(list, key)?,
        Value::Map(map) => entry(map, key)?,
        Value::Optional(Some(inner)) => return optional_index(inner, key),
        Value::Optional(None) => None,
        _ => return Err(EvalError::NoSuchOverload),
    };
    Ok(found.map_or(Value::Optional(None), Value::some))
}
