//! Functions of lists, sets and maps.

use std::cmp::Ordering;
use std::sync::Arc;

use super::operators;
use crate::cel::error::EvalError;
use crate::cel::value::{Key, List, Map, Outcome, Value};

const NO: EvalError = EvalError::NoSuchOverload;

fn list<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v List<'a>, EvalError> {
    match args {
        [Value::List(list), ..] => Ok(list),
        _ => Err(NO),
    }
}

pub fn insert<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [map, rest @ ..] => map_insert(map.clone(), rest),
        [] => Err(NO),
    }
}

/// A map with one more entry (`[key, value]`), or with those of another map (`[map]`). No key may be there already.
pub fn map_insert<'a>(map: Value<'a>, rest: &[Value<'a>]) -> Outcome<'a> {
    let Value::Map(map) = map else { return Err(NO) };
    let mut entries = match map {
        Map::Owned(entries) => entries,
        other => Arc::new(other.to_entries()?),
    };
    let new = match rest {
        [key, value] => {
            vec![(Key::of(key).ok_or_else(|| EvalError::value("unsupported key type"))?, value.clone())]
        }
        [Value::Map(more)] => more.to_entries()?.into_iter().collect(),
        _ => return Err(NO),
    };
    let target = Arc::make_mut(&mut entries);
    for (key, value) in new {
        let shown = key.value().to_string();
        if target.insert(key, value).is_some() {
            return Err(EvalError::value(format!("insert failed: key {shown} already exists")));
        }
    }
    Ok(Value::Map(Map::Owned(entries)))
}

pub fn index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list), wanted] = args else { return Err(NO) };
    for (i, item) in list.iter().enumerate() {
        if item?.equals(wanted)? {
            return Ok(Value::Int(i as i64));
        }
    }
    Ok(Value::Int(-1))
}

pub fn last_index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list), wanted] = args else { return Err(NO) };
    for i in (0..list.len()).rev() {
        if list.get(i).unwrap_or(Err(NO))?.equals(wanted)? {
            return Ok(Value::Int(i as i64));
        }
    }
    Ok(Value::Int(-1))
}

pub fn slice<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list), Value::Int(from), Value::Int(to)] = args else { return Err(NO) };
    let fail = |message: String| Err(EvalError::Value(message));
    if *from < 0 || *to < 0 {
        return fail(format!("cannot slice({from}, {to}), negative indexes not supported"));
    }
    if from > to {
        return fail(format!(
            "cannot slice({from}, {to}), start index must be less than or equal to end index"
        ));
    }
    let (Ok(start), Ok(end)) = (usize::try_from(*from), usize::try_from(*to)) else { return Err(NO) };
    if end > list.len() {
        return fail(format!("cannot slice({from}, {to}), list is length {}", list.len()));
    }
    (start..end).filter_map(|i| list.get(i)).collect::<Result<_, _>>().map(Value::list)
}

pub fn flatten<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return Err(NO),
    };
    if depth < 0 {
        return Err(EvalError::value("level must be non-negative"));
    }
    let mut out = Vec::new();
    flatten_into(list, depth, &mut out)?;
    Ok(Value::list(out))
}

fn flatten_into<'a>(list: &List<'a>, depth: i64, out: &mut Vec<Value<'a>>) -> Result<(), EvalError> {
    for item in list.iter() {
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, out)?,
            other => out.push(other),
        }
    }
    Ok(())
}

/// Sorts items by keys, which must be of one ordered type.
fn sorted<'a>(items: Vec<Value<'a>>, keys: &[Value<'a>]) -> Outcome<'a> {
    let ordered = |v: &Value<'_>| v.compare(v).is_some() || matches!(v, Value::Double(_));
    let of_one_type = keys.windows(2).all(|w| w[0].type_of() == w[1].type_of());
    if !of_one_type {
        return Err(EvalError::value("list elements must have the same type"));
    }
    if !keys.iter().all(ordered) {
        return Err(EvalError::value("list elements must be comparable"));
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|a, b| match (keys.get(*a), keys.get(*b)) {
        (Some(a), Some(b)) => a.compare(b).unwrap_or(Ordering::Equal),
        _ => Ordering::Equal,
    });
    Ok(Value::list(order.into_iter().filter_map(|i| items.get(i).cloned()).collect()))
}

pub fn sort<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let items = list(args)?.to_vec()?;
    sorted(items.clone(), &items)
}

pub fn sort_by_keys<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list), Value::List(keys)] = args else { return Err(NO) };
    if list.len() != keys.len() {
        return Err(EvalError::value("sortBy needs one key for each item"));
    }
    sorted(list.to_vec()?, &keys.to_vec()?)
}

pub fn range<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    /// Longer ones would cost memory that no cost limit knows of.
    const MAX: i64 = 1_000_000;
    match args {
        [Value::Int(n)] if *n > MAX => Err(EvalError::value(format!("lists.range: {n} is more than {MAX}"))),
        [Value::Int(n)] => Ok(Value::list((0..*n).map(Value::Int).collect())),
        _ => Err(NO),
    }
}

pub fn reverse<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let mut items = list(args)?.to_vec()?;
    items.reverse();
    Ok(Value::list(items))
}

pub fn distinct<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let mut kept: Vec<Value<'a>> = Vec::new();
    'items: for item in list(args)?.iter() {
        let item = item?;
        for other in &kept {
            if item.equals(other)? {
                continue 'items;
            }
        }
        kept.push(item);
    }
    Ok(Value::list(kept))
}

/// Whether every item of the second list is in the first.
fn contains_all<'a>(args: &[Value<'a>]) -> Result<bool, EvalError> {
    let [Value::List(list), Value::List(wanted)] = args else { return Err(NO) };
    for item in wanted.iter() {
        let found = operators::contained(&[item?, Value::List(list.clone())])?;
        if !matches!(found, Value::Bool(true)) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub fn set_contains<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    contains_all(args).map(Value::Bool)
}

pub fn set_equivalent<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [a, b] = args else { return Err(NO) };
    Ok(Value::Bool(contains_all(args)? && contains_all(&[b.clone(), a.clone()])?))
}

pub fn set_intersects<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list), other] = args else { return Err(NO) };
    for item in list.iter() {
        if matches!(operators::contained(&[item?, other.clone()])?, Value::Bool(true)) {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

pub fn is_sorted<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let items = list(args)?.to_vec()?;
    for pair in items.windows(2) {
        match pair[0].compare(&pair[1]) {
            Some(Ordering::Greater) => return Ok(Value::Bool(false)),
            Some(_) => {}
            None => return Err(NO),
        }
    }
    Ok(Value::Bool(true))
}

/// The sum; that of no items is zero, an int.
pub fn sum<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let mut items = list(args)?.iter();
    let Some(first) = items.next() else { return Ok(Value::Int(0)) };
    items.try_fold(first?, |sum, item| operators::add(&[sum, item?]))
}

pub fn max<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    extreme(args, Ordering::Greater, "max")
}

pub fn min<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    extreme(args, Ordering::Less, "min")
}

fn extreme<'a>(args: &[Value<'a>], wins: Ordering, name: &str) -> Outcome<'a> {
    let mut items = list(args)?.iter();
    let Some(first) = items.next() else {
        return Err(EvalError::value(format!("{name} called on empty list")));
    };
    items.try_fold(first?, |best, item| {
        let item = item?;
        let order = item.compare(&best).ok_or(NO)?;
        Ok(if order == wins { item } else { best })
    })
}
