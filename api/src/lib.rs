//! The pure core of Hawser's API: the kinds table, the object model, selectors, patches, schema,
//! defaulting, validation and printer columns.
//!
//! Nothing here reads a clock, draws randomness or does input or output; such values are arguments.
#![forbid(unsafe_code)]

pub mod cel;
pub mod convert;
pub mod crd;
pub mod dataplane;
pub mod decode;
pub mod defaults;
pub mod difference;
pub mod exposition;
pub mod internal;
pub mod kinds;
pub mod limits;
pub mod managed;
pub mod names;
pub mod object;
pub mod patch;
pub mod podsecurity;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod references;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod text;
pub mod time;
pub mod validation;
