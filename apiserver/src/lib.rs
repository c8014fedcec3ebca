//! Hawser's API server: one generic registry over the kinds table, served from watch caches.
//!
//! A request's way: [`request_info`] → authentication, authorization and admission (behind the traits of
//! [`access`]) → [`registry`], one file per verb → [`cache`] for reads, storage for writes → bytes.
#![forbid(unsafe_code)]

pub mod access;
pub mod admission;
pub mod authn;
pub mod authz;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod encode;
pub mod encryption;
pub mod kinds;
pub mod negotiate;
pub mod pki;
pub mod request_info;
pub mod streaming;
pub mod tokens;
