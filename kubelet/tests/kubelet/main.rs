//! The real kubelet between a fake API and a fake runtime.

mod joining;
mod node;
mod serving;
mod support;
