//! Nodes: their health, the eviction of pods from them, their ranges of addresses, and what is left of
//! pods when they are gone.

pub mod eviction;
pub mod ipam;
pub mod lifecycle;
pub mod podgc;
pub mod taints;
pub mod ttl;
pub mod zones;
