//! Certificates from the control plane: a request is posted, and the answer awaited.

use super::BootstrapError;
use crate::retry::Retry;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use std::net::IpAddr;
use std::time::Duration;

/// How long the control plane may take to sign.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose<'a> {
    /// To be the node towards the API server.
    Client,
    /// To be the kubelet's server, at these addresses.
    Serving(&'a [IpAddr]),
}

/// A certificate with its key, PEM.
pub(super) struct Issued {
    pub certificate: String,
    pub key: String,
}

/// Asks for a certificate and waits for it.
pub(super) async fn obtain(
    client: &Client,
    node: &str,
    purpose: Purpose<'_>,
) -> Result<Issued, BootstrapError> {
    let key = KeyPair::generate().map_err(|e| BootstrapError::Crypto(e.to_string()))?;
    let request = request(node, purpose, &key)?;
    let (signer, usage) = match purpose {
        Purpose::Client => ("kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
        Purpose::Serving(_) => ("kubernetes.io/kubelet-serving", "server auth"),
    };
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = post(&api, &csr).await?;
    let certificate = tokio::time::timeout(PATIENCE, signed(&api, &name))
        .await
        .map_err(|_| BootstrapError::NotSigned(name.clone(), "nobody signed it in time".into()))??;
    Ok(Issued { certificate, key: key.serialize_pem() })
}

/// The request in PEM: the subject of a node and, for a server, its names.
fn request(node: &str, purpose: Purpose<'_>, key: &KeyPair) -> Result<String, BootstrapError> {
    let crypto = |e: rcgen::Error| BootstrapError::Crypto(e.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    if let Purpose::Serving(ips) = purpose {
        params.subject_alt_names.push(SanType::DnsName(node.try_into().map_err(crypto)?));
        params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    }
    params.serialize_request(key).and_then(|r| r.pem()).map_err(crypto)
}

/// Posts a request; a server that is not there yet is waited for.
async fn post(
    api: &Api<CertificateSigningRequest>,
    csr: &CertificateSigningRequest,
) -> Result<String, BootstrapError> {
    let mut retry = Retry::default();
    loop {
        match api.create(&PostParams::default(), csr).await {
            Ok(made) => return Ok(made.metadata.name.unwrap_or_default()),
            Err(kube::Error::Api(s)) if (400..500).contains(&s.code) && s.code != 429 => {
                return Err(BootstrapError::Refused(s.to_string()));
            }
            Err(e) if is_certificate_error(&e) => return Err(BootstrapError::Server(chain(&e))),
            Err(e) => tracing::warn!("asking for a certificate: {}", chain(&e)),
        }
        tokio::time::sleep(retry.next().unwrap_or(PATIENCE)).await;
    }
}

/// Whether a request failed because the server is not the one it should be: waiting does not help.
fn is_certificate_error(e: &(dyn std::error::Error + 'static)) -> bool {
    if matches!(e.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidCertificate(_))) {
        return true;
    }
    // What an I/O error wraps is not its source, but beside it.
    let wrapped = e.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
    wrapped.is_some_and(|w| is_certificate_error(w)) || e.source().is_some_and(is_certificate_error)
}

/// An error with its causes.
fn chain(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = e.source();
    }
    text
}

/// Waits until a request is signed, denied or failed.
async fn signed(api: &Api<CertificateSigningRequest>, name: &str) -> Result<String, BootstrapError> {
    let stream = watcher::watch_object(api.clone(), name).backoff(Retry::default());
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.next().await {
        let csr = match item {
            Ok(Some(csr)) => csr,
            Ok(None) => return Err(BootstrapError::NotSigned(name.into(), "it is gone".into())),
            Err(e) => {
                tracing::debug!("watching a certificate request: {e}");
                continue;
            }
        };
        let Some(status) = csr.status else { continue };
        let refusal =
            status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
        if let Some(c) = refusal {
            let why = c.message.clone().unwrap_or_else(|| c.type_.clone());
            return Err(BootstrapError::NotSigned(name.into(), why));
        }
        if let Some(ByteString(pem)) = status.certificate.filter(|c| !c.0.is_empty()) {
            return String::from_utf8(pem).map_err(|e| BootstrapError::Crypto(e.to_string()));
        }
    }
    Err(BootstrapError::NotSigned(name.into(), "the watch ended".into()))
}

/// From when to when the first certificate of a PEM text is valid.
pub(super) fn validity(pem: &str) -> Option<(Timestamp, Timestamp)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let v = certificate.validity();
    let read = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    Some((read(v.not_before)?, read(v.not_after)?))
}

/// When to renew: at 80 % of the life, a little earlier or later by chance so that nodes do not come all at once.
/// `chance` is between 0 and 1.
pub(super) fn renew_at((from, to): (Timestamp, Timestamp), chance: f64) -> Timestamp {
    let life = to.duration_since(from).as_secs_f64();
    let wait = jiff::SignedDuration::try_from_secs_f64(life * (0.7 + 0.2 * chance));
    wait.ok().and_then(|w| from.checked_add(w).ok()).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_the_node() {
        let key = KeyPair::generate().unwrap();
        let ips = ["10.0.0.1".parse().unwrap()];
        let pem = request("n1", Purpose::Serving(&ips), &key).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        use x509_parser::prelude::FromDer;
        let (_, csr) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.to_string(), "O=system:nodes, CN=system:node:n1");
        csr.verify_signature().unwrap();
    }

    #[test]
    fn renewal() {
        let t = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(renew_at((t(0), t(1000)), 0.5), t(800));
        assert_eq!(renew_at((t(0), t(1000)), 0.0), t(700));
        assert_eq!(validity("no"), None);
    }
}
