//! Signs approved requests with the cluster's CA.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::{
    API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, NODE_USER, NODES, Request, condition, der, has_certificate,
    usages,
};
use crate::cache::Caches;
use crate::config::SigningCa;
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};

/// How far back certificates begin, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// The shortest validity that one may ask for.
const SHORTEST: Duration = Duration::from_secs(600);

/// Usages that need a bit in the key usage extension (RFC 5280, 4.2.1.3).
const KEY_USAGES: [(&str, u8); 3] =
    [("digital signature", 0b1000_0000), ("key encipherment", 0b0010_0000), ("key agreement", 0b0000_1000)];
/// Usages that need an entry in the extended key usage extension (4.2.1.12).
const EXTENDED: [(&str, [u64; 9]); 2] =
    [("server auth", [1, 3, 6, 1, 5, 5, 7, 3, 1]), ("client auth", [1, 3, 6, 1, 5, 5, 7, 3, 2])];

/// The CA could not be used.
#[derive(Debug, thiserror::Error)]
#[error("signing CA: {0}")]
pub struct CaError(String);

/// A CA that signs.
pub struct Ca {
    key: KeyPair,
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    /// AlgorithmIdentifier of its signatures, DER.
    algorithm: Vec<u8>,
}

impl Ca {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When one of them is not what it should be, or when they do not belong together.
    pub fn new(ca: &SigningCa) -> Result<Self, CaError> {
        let bad = |what: String| CaError(what);
        let key = KeyPair::from_pem(&ca.key_pem).map_err(|e| bad(format!("private key: {e}")))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(ca.certificate_pem.as_bytes())
            .map_err(|e| bad(format!("certificate is not PEM: {e}")))?;
        let (_, certificate) =
            X509Certificate::from_der(&pem.contents).map_err(|e| bad(format!("certificate: {e}")))?;
        if certificate.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(bad("certificate and key do not belong together".to_owned()));
        }
        let algorithm = if key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256 {
            der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 2])])
        } else if key.algorithm() == &rcgen::PKCS_ECDSA_P384_SHA384 {
            der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 3])])
        } else if key.algorithm() == &rcgen::PKCS_ED25519 {
            der::sequence(&[der::oid(&[1, 3, 101, 112])])
        } else if key.algorithm() == &rcgen::PKCS_RSA_SHA256 {
            der::sequence(&[der::oid(&[1, 2, 840, 113549, 1, 1, 11]), der::tlv(0x05, &[])])
        } else {
            return Err(bad("the key's algorithm is not supported".to_owned()));
        };
        let key_id = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|e| bad(format!("validity: {e}")))?;
        Ok(Self { key, subject: certificate.subject().as_raw().to_vec(), key_id, not_after, algorithm })
    }

    /// Signs a request that [`check`] has passed. Returns the certificate, PEM.
    ///
    /// # Errors
    /// When the key fails to sign.
    pub fn sign(
        &self,
        csr: &CertificateSigningRequest,
        request: &Request,
        longest: Duration,
        serial: [u8; 16],
        now: Timestamp,
    ) -> Result<String, CaError> {
        let asked = csr.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        let lifetime = asked.map_or(longest, |asked| asked.max(SHORTEST).min(longest));
        let shift = |d: Duration| SignedDuration::try_from(d).unwrap_or(SignedDuration::MAX);
        let not_before = now.checked_sub(shift(BACKDATE)).unwrap_or(now);
        // A certificate that outlives its CA is of no use to anybody.
        let not_after = now.checked_add(shift(lifetime)).unwrap_or(self.not_after).min(self.not_after);

        let wanted = usages(csr);
        let bits = KEY_USAGES.iter().filter(|(u, _)| wanted.contains(u)).fold(0, |bits, (_, bit)| bits | bit);
        let extended: Vec<Vec<u8>> =
            EXTENDED.iter().filter(|(u, _)| wanted.contains(u)).map(|(_, arcs)| der::oid(arcs)).collect();
        let mut extensions = vec![
            der::extension(&[2, 5, 29, 15], true, &der::named_bits(bits)),
            der::extension(&[2, 5, 29, 37], false, &der::sequence(&extended)),
            der::extension(&[2, 5, 29, 19], true, &der::sequence(&[])),
        ];
        if let Some(id) = &self.key_id {
            let id = der::sequence(&[der::tlv(0x80, id)]);
            extensions.push(der::extension(&[2, 5, 29, 35], false, &id));
        }
        if let Some((names, critical)) = &request.alternative_names {
            extensions.push(der::extension(&[2, 5, 29, 17], *critical, names));
        }
        let tbs = der::sequence(&[
            der::tlv(0xa0, &der::unsigned(&[2])),
            der::unsigned(&serial),
            self.algorithm.clone(),
            self.subject.clone(),
            der::sequence(&[der::time(not_before), der::time(not_after)]),
            request.subject.clone(),
            request.public_key.clone(),
            der::tlv(0xa3, &der::sequence(&extensions)),
        ]);
        let signature = self.key.sign(&tbs).map_err(|e| CaError(e.to_string()))?;
        let certificate = der::sequence(&[tbs, self.algorithm.clone(), der::bit_string(&signature)]);
        Ok(pem("CERTIFICATE", &certificate))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        (0..text.len()).step_by(64).filter_map(|i| text.get(i..text.len().min(i + 64))).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Whether the signer that the request names may sign it; the error says why not.
pub fn check(csr: &CertificateSigningRequest, request: &Request) -> Result<(), String> {
    let wanted = usages(csr);
    let only = |allowed: &[&str], needed: &str| -> Result<(), String> {
        match wanted.iter().find(|u| !allowed.contains(u)) {
            Some(usage) => Err(format!("usage \"{usage}\" is not allowed by the signer")),
            None if !wanted.contains(&needed) => Err(format!("usage \"{needed}\" is required by the signer")),
            None => Ok(()),
        }
    };
    let of_node = || {
        if request.organizations != [NODES] {
            return Err(format!("the organization must be {NODES}"));
        }
        if !request.common_name.starts_with(NODE_USER) {
            return Err(format!("the common name must begin with {NODE_USER}"));
        }
        Ok(())
    };
    match csr.spec.signer_name.as_str() {
        API_CLIENT => only(&["digital signature", "key encipherment", "client auth"], "client auth"),
        KUBELET_CLIENT => {
            of_node()?;
            if request.has_names() {
                return Err("alternative names are not allowed by the signer".to_owned());
            }
            only(&["digital signature", "key encipherment", "client auth"], "client auth")
        }
        KUBELET_SERVING => {
            of_node()?;
            if request.other_names || !request.has_names() {
                return Err("DNS names or addresses, and only those, are required by the signer".to_owned());
            }
            only(&["digital signature", "key encipherment", "server auth"], "server auth")
        }
        other => Err(format!("signer {other} is not known here")),
    }
}

/// What a decision about a request rests on.
pub struct View {
    /// The request.
    pub csr: Arc<CertificateSigningRequest>,
    /// The certificate, or why there can be none.
    pub result: Result<String, String>,
}

/// Whether the request waits for this signer.
fn is_due(csr: &CertificateSigningRequest) -> bool {
    let ours = [API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&csr.spec.signer_name.as_str());
    ours && condition(csr, "Approved").is_some()
        && condition(csr, "Denied").is_none()
        && condition(csr, "Failed").is_none()
        && !has_certificate(csr)
}

/// Decides about a request.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let csr = view.csr.as_ref();
    if !is_due(csr) {
        return plan;
    }
    let mut updated = csr.clone();
    let status = updated.status.get_or_insert_default();
    match &view.result {
        Ok(pem) => status.certificate = Some(ByteString(pem.clone().into_bytes())),
        Err(why) => {
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".to_owned(),
                status: "True".to_owned(),
                reason: Some("SignerValidationFailure".to_owned()),
                message: Some(why.clone()),
                last_update_time: Some(object::time(now)),
                last_transition_time: Some(object::time(now)),
            });
        }
    }
    plan.push(Act::update_sub(&updated, "status").may_be_absent());
    plan
}

/// The controller. Keys are requests.
pub struct Signer {
    caches: Arc<Caches>,
    ca: Ca,
    longest: Duration,
    clock: Clock,
}

impl Signer {
    /// A controller on these caches that signs with `ca` for at most `longest`.
    pub fn new(caches: &Arc<Caches>, ca: Ca, longest: Duration, clock: Clock) -> Self {
        Self { caches: caches.clone(), ca, longest, clock }
    }
}

#[async_trait]
impl Controller for Signer {
    type View = View;

    fn name(&self) -> &'static str {
        "certificatesigningrequest-signing"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.csrs.on_change(move |change| {
            if change.new.is_some_and(|csr| is_due(csr)) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(csr) = self.caches.csrs.get(key).filter(|csr| is_due(csr)) else { return Ok(None) };
        let checked = Request::parse(&csr).and_then(|request| check(&csr, &request).map(|()| request));
        let result = match checked {
            Err(why) => Err(why),
            Ok(request) => {
                // Positive, and random enough that no two are the same (CA/B: 64 bits).
                let mut serial: [u8; 16] = rand::random();
                serial[0] = serial[0] & 0x7f | 0x40;
                let signed = self.ca.sign(&csr, &request, self.longest, serial, (self.clock)());
                Ok(signed.map_err(|e| ViewError::NotReady(e.to_string()))?)
            }
        };
        Ok(Some(View { csr, result }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
