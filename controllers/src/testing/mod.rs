//! What tests run controllers against: a model of an API server, and a harness that drives a
//! controller's real wiring and executor on it with views that lag.

mod harness;
mod http;
mod laws;
mod model;

pub use harness::{Harness, clock, lag};
pub use http::client;
pub use model::{Fault, Model, Shared, merge};

/// A refusal of the next update of a kind.
pub fn refused_update(plural: &'static str) -> Fault {
    Fault { verb: "update", plural, times: 1, code: 500, reason: "InternalError" }
}

/// A pod as caches hold it.
pub fn held(pod: &k8s_openapi::api::core::v1::Pod) -> crate::cache::Pod {
    crate::cache::Pod::of(pod.clone())
}
