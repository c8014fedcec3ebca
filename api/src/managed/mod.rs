//! Who set which field, and server-side apply: `metadata.managedFields` (KEP-555). Pure.
//!
//! Bottom up: [`path`] and [`set`] are the paths and sets of FieldsV1; [`model`] is what must be known of a schema;
//! [`typed`], [`mod@compare`], [`mod@merge`] and [`mod@remove`] work on one value along one schema; [`managers`] are
//! the entries of managedFields, [`reset`] and [`scale`] what subresources do to them; [`mod@update`] and
//! [`mod@apply`] are the two ways to write.

pub mod apply;
pub mod compare;
pub mod conflict;
pub mod managers;
pub mod merge;
pub mod model;
pub mod path;
pub mod remove;
pub mod reset;
pub mod scale;
pub mod set;
pub mod typed;
pub mod update;

#[cfg(test)]
mod tests;
