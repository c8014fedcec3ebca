//! From source to [`Expr`]: the `cel` crate's parser, guarded and positioned.
//!
//! That parser is generated from CEL's published grammar, so that its syntax errors read as everywhere. It recurses as
//! deep as the source nests, so it gets a stack of its own, and what nests too deeply is refused before and after.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{self as theirs, EntryExpr, Expr as Theirs, IdedExpr, LiteralValue, SourceInfo};
use cel::parser::ParseErrors;

use super::ast::{Call, Expr, Fold, Kind, Literal, MapEntry, StructField};
use super::error::{Issue, Issues};
use super::macros;

/// Longest source, in characters.
const MAX_SOURCE: usize = 100_000;
/// Deepest nesting of brackets, as in cel-go.
const MAX_NESTING: usize = 250;
/// Deepest tree: long chains of operators and selections nest too.
const MAX_DEPTH: usize = 250;
/// Most operators and dots, which bounds how deep the generated parser's own walk goes.
const MAX_TOKENS: usize = 20_000;
/// Stack for the generated parser: 0.4 MB for each level of brackets in builds without optimisation.
const STACK: usize = 256 << 20;

/// Parses one expression.
///
/// # Errors
/// Syntax errors with positions; a source that is too long or nests too deeply.
pub fn parse(source: &str) -> Result<Expr, Issues> {
    parse_with(source, &STANDARD)
}

/// The same, with `cel.bind`.
///
/// # Errors
/// As [`parse`].
pub fn parse_with_bind(source: &str) -> Result<Expr, Issues> {
    parse_with(source, &BINDING)
}

fn parse_with(source: &str, settings: &cel::Env) -> Result<Expr, Issues> {
    let one = |message: String| Issues::new(source, vec![Issue { at: 0, message }]);
    let length = source.chars().count();
    if length > MAX_SOURCE {
        let message = format!("expression code point size exceeds limit: size: {length}, limit {MAX_SOURCE}");
        return Err(one(message));
    }
    let (nesting, tokens) = measure(source);
    if nesting > MAX_NESTING || tokens > MAX_TOKENS {
        return Err(one(format!("expression recursion limit exceeded: {MAX_NESTING}")));
    }
    // Flat sources, which are nearly all, need little; the rest is never touched and so never committed.
    let stack = (4 << 20) + (STACK / MAX_NESTING) * nesting + tokens * 4096;
    std::thread::scope(|scope| {
        let work =
            || match settings.parser().max_recursion_depth(MAX_NESTING as u16).parse_with_source_info(source)
            {
                Ok((tree, info)) => convert(source, &tree, &info),
                Err(errors) => Err(to_issues(source, &errors)),
            };
        let thread = std::thread::Builder::new().name("cel-parse".into()).stack_size(stack);
        match thread.spawn_scoped(scope, work).map(|handle| handle.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(one("internal error in the parser".into())),
            Err(error) => Err(one(format!("internal error: {error}"))),
        }
    })
}

/// The parser's settings with all macros.
static STANDARD: LazyLock<cel::Env> = LazyLock::new(|| macros::add(cel::Env::stdlib()));
static BINDING: LazyLock<cel::Env> = LazyLock::new(|| macros::add_bind(macros::add(cel::Env::stdlib())));

/// How deep brackets (and `?:`) nest at most, and how many operators, dots and commas there are, strings left out.
fn measure(source: &str) -> (usize, usize) {
    let (mut depth, mut deepest, mut tokens) = (0_usize, 0_usize, 0_usize);
    let bytes = source.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'?' => depth += 1,
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' | b'&' | b'|' | b','
            | b':' => {
                tokens += 1;
            }
            // `in`, and identifiers side by side in broken sources.
            b' ' | b'\n' | b'\t' => {
                tokens += usize::from(bytes.get(at + 1).is_some_and(|b| b.is_ascii_alphabetic()))
            }
            b'"' | b'\'' => at = skip_string(bytes, at),
            _ => {}
        }
        deepest = deepest.max(depth);
        at += 1;
    }
    (deepest, tokens)
}

/// The index of the last byte of the string literal that begins at `at`; a string without end counts as one byte.
fn skip_string(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let raw = at > 0 && matches!(bytes[at - 1], b'r' | b'R');
    let long = bytes.get(at..at + 3) == Some(&[quote; 3]);
    let mut i = at + if long { 3 } else { 1 };
    while let Some(&byte) = bytes.get(i) {
        match byte {
            b'\\' if !raw => i += 1,
            b if b == quote && !long => return i,
            b if b == quote && bytes.get(i..i + 3) == Some(&[quote; 3]) => return i + 2,
            b'\n' if !long => return at,
            _ => {}
        }
        i += 1;
    }
    at
}

fn to_issues(source: &str, errors: &ParseErrors) -> Issues {
    let starts = line_starts(source);
    let issue = |e: &cel::parser::ParseError| {
        let line = usize::try_from(e.pos.0 - 1).unwrap_or(0);
        let column = u32::try_from(e.pos.1 - 1).unwrap_or(0);
        let message = if e.msg.contains("Recursion limit") {
            format!("expression recursion limit exceeded: {MAX_NESTING}")
        } else {
            expected(&e.msg)
        };
        Issue { at: starts.get(line).copied().unwrap_or(0) + column, message }
    };
    // What is missing after a syntax error was told by that.
    let told = errors.errors.iter().any(|e| e.msg.starts_with(SYNTAX));
    let counts = |e: &&cel::parser::ParseError| !(told && e.msg.starts_with("Incomplete `"));
    Issues::new(source, errors.errors.iter().filter(counts).map(issue).collect())
}

const SYNTAX: &str = "Syntax error: ";

/// Tokens that go on with an expression that could also end.
const OPERATORS: &str = "'==' '!=' 'in' '<' '<=' '>=' '>' '&&' '||' '[' '.' ',' '-' '?' '+' '*' '/' '%'";

/// A message of the parser that names only what is demanded where an expression could also go on, as cel-go's does.
fn expected(message: &str) -> String {
    let Some((head, set)) = message.strip_suffix('}').and_then(|m| m.split_once("expecting {")) else {
        return message.to_owned();
    };
    let known: Vec<&str> = OPERATORS.split(' ').collect();
    let all: Vec<&str> = set.split(", ").collect();
    let demanded: Vec<&str> = all.iter().filter(|t| !known.contains(t)).copied().collect();
    match demanded.as_slice() {
        [one] if all.contains(&"'=='") => format!("{head}expecting {one}"),
        _ => message.to_owned(),
    }
}

/// Character offset of the start of each line.
fn line_starts(source: &str) -> Vec<u32> {
    let after_newline =
        |(i, c): (usize, char)| (c == '\n').then_some(u32::try_from(i + 1).unwrap_or(u32::MAX));
    std::iter::once(0).chain(source.chars().enumerate().filter_map(after_newline)).collect()
}

fn convert(source: &str, tree: &IdedExpr, info: &SourceInfo) -> Result<Expr, Issues> {
    Converter { info }.expr(tree, MAX_DEPTH).map_err(|issue| Issues::new(source, vec![issue]))
}

struct Converter<'a> {
    info: &'a SourceInfo,
}

impl Converter<'_> {
    fn at(&self, id: u64) -> u32 {
        self.info.offset_for(id).map_or(0, |(start, _)| start)
    }

    fn expr(&self, e: &IdedExpr, depth: usize) -> Result<Expr, Issue> {
        let at = self.at(e.id);
        let Some(depth) = depth.checked_sub(1) else {
            return Err(Issue { at, message: format!("expression recursion limit exceeded: {MAX_DEPTH}") });
        };
        let all = |list: &[IdedExpr]| list.iter().map(|e| self.expr(e, depth)).collect::<Result<Vec<_>, _>>();
        let kind = match &e.expr {
            Theirs::Unspecified => {
                return Err(Issue { at, message: "unsupported expression".into() });
            }
            Theirs::Literal(value) => Kind::Literal(literal(value)),
            Theirs::Ident(name) => Kind::Ident(name.as_str().into()),
            Theirs::Select(s) => Kind::Select {
                operand: Box::new(self.expr(&s.operand, depth)?),
                field: s.field.as_str().into(),
                test: s.test,
            },
            Theirs::Call(c) => Kind::Call(Box::new(Call {
                function: c.func_name.as_str().into(),
                target: c.target.as_ref().map(|t| self.expr(t, depth)).transpose()?,
                args: all(&c.args)?,
                overloads: Vec::new(),
            })),
            Theirs::List(l) => Kind::List {
                items: all(&l.elements)?,
                optional: (0..l.elements.len()).map(|i| l.optional_indices.contains(&i)).collect(),
            },
            Theirs::Map(m) => {
                let entry = |e: &theirs::IdedEntryExpr| match &e.expr {
                    EntryExpr::MapEntry(e) => Ok(MapEntry {
                        key: self.expr(&e.key, depth)?,
                        value: self.expr(&e.value, depth)?,
                        optional: e.optional,
                    }),
                    EntryExpr::StructField(_) => {
                        Err(Issue { at: self.at(e.id), message: "unsupported map entry".into() })
                    }
                };
                Kind::Map(m.entries.iter().map(entry).collect::<Result<_, _>>()?)
            }
            Theirs::Struct(s) => {
                let field = |e: &theirs::IdedEntryExpr| match &e.expr {
                    EntryExpr::StructField(f) => Ok(StructField {
                        at: self.at(e.id),
                        name: f.field.as_str().into(),
                        value: self.expr(&f.value, depth)?,
                        optional: f.optional,
                    }),
                    EntryExpr::MapEntry(_) => {
                        Err(Issue { at: self.at(e.id), message: "unsupported field".into() })
                    }
                };
                Kind::Struct {
                    name: s.type_name.as_str().into(),
                    fields: s.entries.iter().map(field).collect::<Result<_, _>>()?,
                }
            }
            Theirs::Comprehension(c) => Kind::Fold(Box::new(Fold {
                range: self.expr(&c.iter_range, depth)?,
                var: c.iter_var.as_str().into(),
                var2: c.iter_var2.as_deref().map(Arc::from),
                accu: c.accu_var.as_str().into(),
                init: self.expr(&c.accu_init, depth)?,
                condition: self.expr(&c.loop_cond, depth)?,
                step: self.expr(&c.loop_step, depth)?,
                result: self.expr(&c.result, depth)?,
            })),
        };
        Ok(Expr::new(at, kind))
    }
}

fn literal(value: &LiteralValue) -> Literal {
    match value {
        LiteralValue::Null => Literal::Null,
        LiteralValue::Boolean(b) => Literal::Bool(*b.inner()),
        LiteralValue::Int(n) => Literal::Int(*n.inner()),
        LiteralValue::UInt(n) => Literal::Uint(*n.inner()),
        LiteralValue::Double(n) => Literal::Double(*n.inner()),
        LiteralValue::String(s) => Literal::String(s.inner().into()),
        LiteralValue::Bytes(b) => Literal::Bytes(b.inner().into()),
    }
}
