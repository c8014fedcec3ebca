//! Kubernetes' protobuf encoding of the built-in kinds, to JSON values.
//!
//! Messages are read straight into JSON by two tables: `data/schema.txt` says what a field is, `data/protobuf.txt`
//! which number it has. The envelope is that of apimachinery's runtime serializer: four magic bytes and a message
//! `Unknown` with the type and the object's bytes.

mod decode;
mod table;
mod wire;

pub use decode::{Error, decode};
