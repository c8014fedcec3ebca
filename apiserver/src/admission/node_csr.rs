//! What a CertificateSigningRequest asks for: its PKCS#10 body's subject. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::object::ObjectExt;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Signer of client certificates.
pub(super) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Signer of nodes' client certificates.
pub(super) const NODE_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of nodes' serving certificates.
pub(super) const NODE_SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Common name and organizations that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
}

/// The subject of a CSR object's `spec.request`; None when it is no certificate request.
pub(super) fn subject(csr: &Value) -> Option<Subject> {
    let pem = STANDARD.decode(csr.str_at("spec.request")).ok()?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    let subject = &request.certification_request_info.subject;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
    Some(Subject {
        common_name: subject.iter_common_name().last().and_then(text).unwrap_or_default(),
        organizations: subject.iter_organization().filter_map(text).collect(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A CSR object for a subject.
    pub(crate) fn csr(signer: &str, name: &str, organization: &str) -> Value {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let pem = params.serialize_request(&key).expect("request").pem().expect("pem");
        json!({"metadata": {"name": "c"}, "spec": {"signerName": signer, "request": STANDARD.encode(pem)}})
    }

    #[test]
    fn subjects_are_read() {
        let read = subject(&csr(NODE_CLIENT_SIGNER, "system:node:a", "system:nodes")).expect("subject");
        assert_eq!(
            (read.common_name.as_str(), read.organizations.as_slice()),
            ("system:node:a", &["system:nodes".to_owned()][..])
        );
        for request in ["", "YWJj", "!"] {
            assert_eq!(subject(&json!({"spec": {"request": request}})), None);
        }
    }
}
