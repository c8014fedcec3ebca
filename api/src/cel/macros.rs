//! Macros besides those of the `cel` crate: over two variables, `sortBy`, and where they are asked for `cel.bind`.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr};
use cel::parser::{Macro, MacroExprHelper, ParseError};

use super::ast::ACCU;

/// Adds the macros to an environment that has the standard ones.
pub fn add(mut env: cel::Env) -> cel::Env {
    let two: [(&str, usize, TwoVar); 10] = [
        ("all", 3, TwoVar::All),
        ("exists", 3, TwoVar::Exists),
        ("existsOne", 3, TwoVar::ExistsOne),
        ("exists_one", 3, TwoVar::ExistsOne),
        ("transformList", 3, TwoVar::List),
        ("transformList", 4, TwoVar::List),
        ("transformMap", 3, TwoVar::Map),
        ("transformMap", 4, TwoVar::Map),
        ("transformMapEntry", 3, TwoVar::MapEntry),
        ("transformMapEntry", 4, TwoVar::MapEntry),
    ];
    let mut macros: Vec<Macro> = two
        .into_iter()
        .map(|(name, count, what)| {
            Macro::receiver(name, count, move |h, target, args| two_variables(what, h, target, args))
        })
        .collect();
    macros.push(Macro::receiver("sortBy", 2, sort_by));
    for m in macros {
        // Refused only when it is there already: then it is the crate's own of the same meaning.
        if let Err(error) = env.add_macro(m) {
            debug_assert!(false, "{error}");
        }
    }
    env
}

/// Adds `cel.bind(name, value, body)`.
pub fn add_bind(mut env: cel::Env) -> cel::Env {
    let expand = |h: &mut Helper<'_>, target: &mut Option<IdedExpr>, args: &mut Vec<IdedExpr>| {
        if !matches!(target.as_ref().map(|t| &t.expr), Some(Expr::Ident(name)) if name == "cel") {
            return Ok(None);
        }
        let Expr::Ident(name) = args[0].expr.clone() else {
            return Err(h.new_error(args[0].id, "cel.bind() variable names must be simple identifiers"));
        };
        let (Some(body), Some(value)) = (args.pop(), args.pop()) else { return Ok(None) };
        Ok(Some(bind(h, name, value, body)))
    };
    if let Err(error) = env.add_macro(Macro::receiver("bind", 3, expand)) {
        debug_assert!(false, "{error}");
    }
    env
}

#[derive(Clone, Copy)]
enum TwoVar {
    All,
    Exists,
    ExistsOne,
    List,
    Map,
    MapEntry,
}

type Expansion = Result<Option<IdedExpr>, ParseError>;
type Helper<'a> = MacroExprHelper<'a>;

fn two_variables(
    what: TwoVar,
    h: &mut Helper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
) -> Expansion {
    let name = |h: &mut Helper<'_>, arg: &IdedExpr| match &arg.expr {
        Expr::Ident(name) if name == ACCU || name == "__result__" => {
            Err(h.new_error(arg.id, "iteration variable overwrites accumulator variable"))
        }
        Expr::Ident(name) => Ok(name.clone()),
        _ => Err(h.new_error(arg.id, "argument must be a simple name")),
    };
    let (first, second) = (name(h, &args[0])?, name(h, &args[1])?);
    if first == second {
        return Err(h.new_error(args[1].id, format!("duplicate variable name: {first}")));
    }
    let Some(range) = target.take() else { return Ok(None) };
    let mut rest = args.drain(2..).collect::<Vec<_>>().into_iter();
    let (filter, body) = match (rest.next(), rest.next()) {
        (Some(filter), Some(body)) => (Some(filter), body),
        (Some(body), None) => (None, body),
        (None, _) => return Err(h.new_error(range.id, "argument is missing")),
    };
    let accu = |h: &mut Helper<'_>| h.next_expr(Expr::Ident(ACCU.into()));
    let yes = |h: &mut Helper<'_>| h.next_expr(Expr::Literal(LiteralValue::Boolean(true.into())));
    let int = |h: &mut Helper<'_>, n: i64| h.next_expr(Expr::Literal(LiteralValue::Int(n.into())));
    let (init, condition, step, result);
    match what {
        TwoVar::All => {
            init = yes(h);
            let a = accu(h);
            condition = call(h, "@not_strictly_false", vec![a]);
            let a = accu(h);
            step = call(h, "_&&_", vec![a, body]);
            result = accu(h);
        }
        TwoVar::Exists => {
            init = h.next_expr(Expr::Literal(LiteralValue::Boolean(false.into())));
            let a = accu(h);
            let not = call(h, "!_", vec![a]);
            condition = call(h, "@not_strictly_false", vec![not]);
            let a = accu(h);
            step = call(h, "_||_", vec![a, body]);
            result = accu(h);
        }
        TwoVar::ExistsOne => {
            init = int(h, 0);
            condition = yes(h);
            let (a, one) = (accu(h), int(h, 1));
            let more = call(h, "_+_", vec![a, one]);
            let same = accu(h);
            step = call(h, "_?_:_", vec![body, more, same]);
            let (a, one) = (accu(h), int(h, 1));
            result = call(h, "_==_", vec![a, one]);
        }
        TwoVar::List | TwoVar::Map | TwoVar::MapEntry => {
            let a = accu(h);
            let grown = match what {
                TwoVar::List => {
                    init = h.next_expr(Expr::List(ListExpr::new(Vec::new())));
                    let item = h.next_expr(Expr::List(ListExpr::new(vec![body])));
                    call(h, "_+_", vec![a, item])
                }
                TwoVar::Map => {
                    init = h.next_expr(Expr::Map(MapExpr { entries: Vec::new() }));
                    let key = h.next_expr(Expr::Ident(first.clone()));
                    call(h, "cel.@mapInsert", vec![a, key, body])
                }
                _ => {
                    init = h.next_expr(Expr::Map(MapExpr { entries: Vec::new() }));
                    call(h, "cel.@mapInsert", vec![a, body])
                }
            };
            condition = yes(h);
            let same = accu(h);
            step = match filter {
                Some(filter) => call(h, "_?_:_", vec![filter, grown, same]),
                None => grown,
            };
            result = accu(h);
        }
    }
    Ok(Some(h.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: first,
        iter_var2: Some(second),
        accu_var: ACCU.into(),
        accu_init: init,
        loop_cond: condition,
        loop_step: step,
        result,
    })))))
}

/// `list.sortBy(var, key)`: the list in the order of its keys.
fn sort_by(h: &mut Helper<'_>, target: &mut Option<IdedExpr>, args: &mut Vec<IdedExpr>) -> Expansion {
    const INPUT: &str = "@__sortBy_input__";
    let Expr::Ident(var) = args[0].expr.clone() else {
        return Err(h.new_error(args[0].id, "argument must be a simple name"));
    };
    let (Some(list), Some(key)) = (target.take(), args.pop()) else { return Ok(None) };
    if !matches!(
        list.expr,
        Expr::List(_) | Expr::Select(_) | Expr::Ident(_) | Expr::Comprehension(_) | Expr::Call(_)
    ) {
        let message =
            "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
        return Err(h.new_error(list.id, message));
    }
    let input = |h: &mut Helper<'_>| h.next_expr(Expr::Ident(INPUT.into()));
    let range = input(h);
    let init = h.next_expr(Expr::List(ListExpr::new(Vec::new())));
    let condition = h.next_expr(Expr::Literal(LiteralValue::Boolean(true.into())));
    let item = h.next_expr(Expr::List(ListExpr::new(vec![key])));
    let accu = h.next_expr(Expr::Ident(ACCU.into()));
    let step = call(h, "_+_", vec![accu, item]);
    let result = h.next_expr(Expr::Ident(ACCU.into()));
    let keys = h.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: var,
        iter_var2: None,
        accu_var: ACCU.into(),
        accu_init: init,
        loop_cond: condition,
        loop_step: step,
        result,
    })));
    let sorted = input(h);
    let sorted = member(h, sorted, "@sortByAssociatedKeys", vec![keys]);
    Ok(Some(bind(h, INPUT.into(), list, sorted)))
}

/// `let var = value in body`, as a comprehension over nothing.
fn bind(h: &mut Helper<'_>, var: String, value: IdedExpr, body: IdedExpr) -> IdedExpr {
    let range = h.next_expr(Expr::List(ListExpr::new(Vec::new())));
    let never = h.next_expr(Expr::Literal(LiteralValue::Boolean(false.into())));
    let step = h.next_expr(Expr::Ident(var.clone()));
    h.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: "#unused".into(),
        iter_var2: None,
        accu_var: var,
        accu_init: value,
        loop_cond: never,
        loop_step: step,
        result: body,
    })))
}

fn call(h: &mut Helper<'_>, function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    h.next_expr(Expr::Call(CallExpr { func_name: function.into(), target: None, args }))
}

fn member(h: &mut Helper<'_>, target: IdedExpr, function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    h.next_expr(Expr::Call(CallExpr { func_name: function.into(), target: Some(Box::new(target)), args }))
}
