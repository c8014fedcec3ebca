//! CertificateSigningRequests: approval of those of nodes, signing, and their end.

pub mod approve;
pub mod clean;
mod der;
mod request;
pub mod sign;

pub use request::Request;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

/// Signer of client certificates for the API server.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signer of the client certificates of kubelets.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of the serving certificates of kubelets.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// The group of nodes, and the organization of their certificates.
pub const NODES: &str = "system:nodes";
/// What precedes a node's name in its user name.
pub const NODE_USER: &str = "system:node:";
/// The group of bootstrap tokens.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// A condition of the request that is true.
fn condition<'a>(
    csr: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = csr.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether there is a certificate already.
fn has_certificate(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

/// The usages asked for, sorted.
fn usages(csr: &CertificateSigningRequest) -> Vec<&str> {
    let mut usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    usages
}

#[cfg(test)]
pub(crate) mod tests;
