//! Custom resources: schemas, what they do to objects, and the rules of the definitions themselves.
//!
//! A definition becomes rows of the kinds table ([`rows`]); each row carries its [`Custom`], which the steps of a
//! request ask for defaults, pruning and validation just as they ask the tables for built-in kinds.

pub mod conditions;
pub mod conversion;
pub mod custom;
pub mod defaulting;
pub mod defaults;
pub mod definition;
pub mod embedded;
pub mod field_path;
pub mod formats;
pub mod lists;
pub mod pattern;
pub mod prune;
pub mod publish;
pub mod rows;
pub mod rules;
pub mod schema;
pub mod structural;
pub mod values;

pub use custom::Custom;
pub use schema::{MAX_DEPTH, Schema};

/// The finalizer that holds a definition until its instances are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
