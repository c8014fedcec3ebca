//! Custom resources: schemas, what they do to objects, and the rules of the definitions themselves.

pub mod pattern;
pub mod schema;

pub use schema::Schema;
