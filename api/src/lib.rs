//! The pure core of Hawser's API: the kinds table, the object model, selectors, patches, schema,
//! defaulting, validation and printer columns.
//!
//! Nothing here reads a clock, draws randomness or does input or output; such values are arguments.
#![forbid(unsafe_code)]

pub mod convert;
pub mod crd;
pub mod decode;
pub mod defaults;
pub mod kinds;
pub mod names;
pub mod object;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod text;
pub mod time;
pub mod validation;
