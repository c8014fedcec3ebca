//! The table of expressions, and laws that hold for all.

use proptest::prelude::*;
use serde_json::json;

use super::cost::PER_CALL_LIMIT;
use super::value::Value;
use super::{Env, Type, Variables};

struct Vars<'a>(Vec<(&'static str, Value<'a>)>);

impl<'a> Variables<'a> for Vars<'a> {
    fn get(&self, name: &str) -> Option<Value<'a>> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone())
    }
}

fn env() -> Env {
    Env::new().with("x", Type::Dyn).with("s", Type::String).with("l", Type::list(Type::Int))
}

/// The result as CEL writes it, or the error.
fn run(source: &str) -> String {
    let data = json!({"a": 1, "b": {"c": [1, 2, 3]}, "d": 1.5, "t": "text", "n": null, "if": true, "u.v": 2});
    let program = match env().compile(source) {
        Ok(program) => program,
        Err(issues) => {
            let text = issues.to_string();
            return format!(
                "! {}",
                text.lines().next().unwrap_or_default().trim_start_matches("ERROR: <input>:")
            );
        }
    };
    let list = json!([3, 1, 2]);
    let vars =
        Vars(vec![("x", Value::dynamic(&data)), ("s", Value::string("héllo")), ("l", Value::dynamic(&list))]);
    match program.evaluate(&vars, PER_CALL_LIMIT).result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("!! {error}"),
    }
}

/// `expression => result`; `!` begins a compile error's message, `!!` an evaluation's.
#[test]
fn table() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("table.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (source, want) = line.split_once(" => ").unwrap_or((line, "?"));
        count += 1;
        let got = run(source.trim());
        if got != want.trim() {
            wrong.push(format!("{}\n     want {want}\n     got  {got}", source.trim()));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 300, "only {count} expressions");
}

/// Pieces of which random sources are made.
const PIECES: [&str; 60] = [
    "x",
    "s",
    "l",
    "1",
    "-1",
    "2u",
    "1.5",
    "'a'",
    "b'a'",
    "true",
    "false",
    "null",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ".",
    ".a",
    ".b",
    ".?a",
    "[?0]",
    ":",
    ",",
    "?",
    "+",
    "-",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    "&&",
    "||",
    "!",
    " in ",
    "has(x.a)",
    "l.all(i, ",
    "l.map(i, ",
    "x.exists(k, ",
    "l.filter(v, ",
    "i",
    "k",
    "size(",
    ".size()",
    "string(",
    "duration('1h')",
    "timestamp('2024-01-01T00:00:00Z')",
    "quantity('1Gi')",
    "ip('10.0.0.1')",
    ".matches('a+')",
    ".split('')",
    ".join(',')",
    "optional.of(",
    ".orValue(",
    "dyn(",
    "l.sortBy(v, ",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_panics(picks in proptest::collection::vec(0..PIECES.len(), 1..14), limit in 0u64..2000) {
        let source: String = picks.iter().map(|i| PIECES[*i]).collect();
        if let Ok(program) = env().compile(&source) {
            let data = json!({"a": [1, {"b": "c"}], "b": null});
            let vars = Vars(vec![("x", Value::dynamic(&data)), ("s", Value::string("é")), ("l", Value::list(vec![Value::Int(1), Value::Int(i64::MAX)]))]);
            let run = program.evaluate(&vars, limit);
            let free = program.evaluate(&vars, PER_CALL_LIMIT);
            // A limit cuts off; it changes nothing else.
            if run.cost <= limit {
                prop_assert_eq!(run.cost, free.cost);
                prop_assert_eq!(format!("{:?}", run.result), format!("{:?}", free.result));
            } else {
                prop_assert!(run.result.is_err());
            }
        }
    }

    #[test]
    fn any_text_is_refused_or_compiled(source in "\\PC{0,40}") {
        let _ = env().compile(&source);
    }

    #[test]
    fn cost_grows_with_the_data(n in 0usize..40, more in 0usize..40) {
        let program = env().compile("l.all(i, i >= 0) && l.map(i, i * 2).size() >= 0").expect("compiles");
        let cost = |n: usize| {
            let vars = Vars(vec![("l", Value::list((0..n as i64).map(Value::Int).collect()))]);
            program.evaluate(&vars, PER_CALL_LIMIT).cost
        };
        prop_assert!(cost(n) <= cost(n + more));
    }
}

#[test]
fn deep_and_long_sources_are_refused() {
    for source in [
        "(".repeat(1000),
        "[".repeat(100_000),
        "-".repeat(30_000),
        "a.".repeat(40_000),
        "1+".repeat(5000) + "1",
        "!".repeat(99_999) + "true",
    ] {
        let _ = env().compile(&source);
    }
    let nested = format!("{}1{}", "(".repeat(100), ")".repeat(100));
    assert_eq!(run(&nested), "1");
    let error = env().compile(&format!("{}1{}", "(".repeat(300), ")".repeat(300))).unwrap_err().to_string();
    assert!(error.contains("expression recursion limit exceeded: 250"), "{error}");
}

#[test]
fn endless_work_is_cut_off() {
    let source = "lists.range(100000).all(a, lists.range(1000).all(b, a + b >= 0))";
    assert_eq!(run(source), "!! operation cancelled: actual cost limit exceeded");
}
