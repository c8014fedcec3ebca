//! Kubernetes' protobuf encoding of the built-in kinds, from and to JSON.
//!
//! Messages are read straight into JSON, and written straight from it, by two tables: `data/schema.txt` says what a field is, `data/protobuf.txt`
//! which number it has. The envelope is that of apimachinery's runtime serializer: four magic bytes and a message
//! `Unknown` with the type and the object's bytes.

mod decode;
mod encode;
mod table;
mod wire;

pub use decode::{Error, decode};
pub use encode::{
    EncodeError, encode, envelope, envelope_head, item_head, knows, list_meta, message_of_json,
    metadata_only, watch_frame,
};
pub(crate) use table::in_go_order;
pub use wire::{nested, put_bytes, put_fixed64, put_varint_field};
