//! What the dataplanes tell the rest of the cluster, and by which names.
//!
//! A node's Lease says up to which revision of the EndpointSlices its dataplane has programmed the kernel's maps. A
//! controller turns that into two conditions of pods: [`PROGRAMMED`], for which a pod's `Ready` waits as for a readiness
//! gate (KEP-580), and [`DRAINED`], for which the signal that ends a deleted pod waits.

/// Label of Services and EndpointSlices that another proxy serves.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Label of those of a Service without an address of its own, which no proxy serves.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// Annotation of a node's Lease: the resourceVersion up to which every EndpointSlice is in the kernel's maps.
pub const PROGRAMMED_REVISION: &str = "hawser.io/programmed-revision";

/// Condition of a pod: every live node's dataplane can reach it. Its message holds the addresses that this is about,
/// separated by commas; a pod that gets others is not reached by them yet.
pub const PROGRAMMED: &str = "hawser.io/Programmed";

/// Condition of a pod that is being deleted: every live node's dataplane sends new connections elsewhere.
pub const DRAINED: &str = "hawser.io/Drained";
