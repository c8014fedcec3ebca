//! The API server: request pipeline, registry, watch cache, and access control.
#![forbid(unsafe_code)]

pub mod access;
pub mod authz;
pub mod body;
pub mod encryption;
pub mod pki;
pub mod request_info;
