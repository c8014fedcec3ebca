//! `hawser bpf …`: what the kernel holds for the dataplane, as tables or as JSON.
//!
//! The verbs talk to the agent's inspection service on `proxy.sock`, which reads the maps themselves.
#![forbid(unsafe_code)]

mod bpf;
mod render;

pub use bpf::{BpfCommand, Error, Output, connect};

/// Messages and client of `proxy/proto/inspect.proto`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("hawser.inspect.v1");
}
