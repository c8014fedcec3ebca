//! The Common Expression Language as Kubernetes has it.
//!
//! `parse` (the `cel` crate's parser, with `macros`) → `ast` → `check` (types from `env`, signatures from
//! `functions`) → `cost` (estimates) and `eval` (values over borrowed JSON, costs counted). `lib` holds the functions.
//! `schema` reads declarations from structural schemas, `rules` is `x-kubernetes-validations`, `device` is the selectors
//! of device classes and resource claims.
//!
//! Sources: CEL's language definition and extension libraries; KEP-2876, KEP-3488, KEP-3962; Kubernetes' page "Common
//! Expression Language in Kubernetes".

mod ast;
mod check;
pub mod cost;
pub mod decl;
pub mod device;
mod env;
mod error;
mod eval;
mod functions;
mod lib;
mod literals;
mod macros;
mod parse;
pub mod policy;
pub mod rules;
mod schema;
pub mod typecheck;
mod types;
mod unify;
mod value;

pub use env::{Env, Evaluated, Program, Variables};
pub use error::{EvalError, Issues};
pub use lib::authz::{Answer, Authorize, Check, Question};
pub use types::Type;
pub use value::{Fields, Key, List, Map, Outcome, Str, Value};

#[cfg(test)]
mod tests;
