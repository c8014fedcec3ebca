//! The hawser binary.
#![forbid(unsafe_code)]
fn main() {}
