//! `x-kubernetes-validations`: compiled and called by the CEL engine.

pub use crate::cel::rules::{Rules, validate_definition};
