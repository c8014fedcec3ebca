//! Images: names, metadata, registry pulls, archives, and layers unpacked for overlayfs.

pub mod archive;
pub mod digest;
pub mod manifest;
pub mod pull;
pub mod reference;
pub mod store;
pub mod unpack;
