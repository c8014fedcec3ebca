//! Who set which field, and server-side apply: `metadata.managedFields` (KEP-555). Pure.
//!
//! Bottom up: [`path`] and [`set`] are the paths and sets of FieldsV1; [`model`] is what must be known of a schema;
//! [`typed`], [`compare`], [`merge`] and [`remove`] work on one value along one schema.

pub mod compare;
pub mod merge;
pub mod model;
pub mod path;
pub mod remove;
pub mod set;
pub mod typed;
