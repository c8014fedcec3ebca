//! The table of functions: names, signatures, and the code behind each name.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::lib;
use super::types::Type;
use super::value::{Outcome, Value};

/// One signature.
#[derive(Debug)]
pub struct Overload {
    /// Id as in CEL's specification, by which costs are told apart.
    pub id: &'static str,
    /// Whether the first argument is a receiver.
    pub member: bool,
    /// Argument types, the receiver first.
    pub args: Vec<Type>,
    pub result: Type,
    /// How many type parameters there are.
    pub params: u32,
}

/// Code behind a name: gets the receiver (if any) and the arguments, and tells signatures apart by the values.
pub type Code = for<'a> fn(&[Value<'a>]) -> Outcome<'a>;

/// A function or operator.
pub struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    /// None for operators that the evaluator itself knows.
    pub code: Option<Code>,
}

static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(read);

/// The function of that name.
pub fn find(name: &str) -> Option<&'static Function> {
    TABLE.get(name)
}

fn read() -> HashMap<&'static str, Function> {
    let mut table: HashMap<&'static str, Function> = HashMap::new();
    for line in include_str!("../../data/cel-functions.txt").lines() {
        let words: Vec<&'static str> = line.split_whitespace().collect();
        let [id, style @ ("g" | "m"), name, signature @ ..] = words.as_slice() else { continue };
        let Some((&result, [args @ .., "->"])) = signature.split_last() else { continue };
        let (Some(result), Some(args)) =
            (Type::parse(result), args.iter().map(|a| Type::parse(a)).collect::<Option<Vec<_>>>())
        else {
            continue;
        };
        let mut params = 0;
        for ty in args.iter().chain([&result]) {
            ty.map_params(&mut |n| {
                params = params.max(n + 1);
                Type::Param(n)
            });
        }
        let overload = Overload { id, member: *style == "m", args, result, params };
        let function = || Function { name, overloads: Vec::new(), code: lib::code(name) };
        table.entry(name).or_insert_with(function).overloads.push(overload);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_and_has_code() {
        let lines = include_str!("../../data/cel-functions.txt").lines();
        let wanted = lines.filter(|l| !l.is_empty() && !l.starts_with('#')).count();
        let read: usize = TABLE.values().map(|f| f.overloads.len()).sum();
        assert_eq!(read, wanted);
        for function in TABLE.values() {
            let known = super::super::eval::is_special(function.name);
            assert!(known != function.code.is_some(), "{}", function.name);
        }
    }
}
