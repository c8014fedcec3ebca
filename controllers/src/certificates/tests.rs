//! Cases and properties of approval, signing and cleaning.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, IsCa, KeyPair, SanType};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::approve::Approver;
use super::clean::Cleaner;
use super::sign::{Ca, Signer};
use super::*;
use crate::config::SigningCa;
use crate::object::Key;
use crate::runner::Controller;
use crate::testing::Harness;

/// A CA of the tests' own.
pub fn ca() -> SigningCa {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let certificate = params.self_signed(&key).unwrap();
    SigningCa { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
}

struct Ask {
    common_name: &'static str,
    organization: &'static str,
    names: Vec<SanType>,
    signer: &'static str,
    user: &'static str,
    groups: Vec<&'static str>,
    usages: Vec<&'static str>,
}

fn client() -> Ask {
    Ask {
        common_name: "system:node:n1",
        organization: NODES,
        names: vec![],
        signer: KUBELET_CLIENT,
        user: "system:bootstrap:abcdef",
        groups: vec![BOOTSTRAPPERS],
        usages: vec!["digital signature", "client auth"],
    }
}

fn serving() -> Ask {
    Ask {
        names: vec![
            SanType::DnsName("n1".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
        ],
        signer: KUBELET_SERVING,
        user: "system:node:n1",
        groups: vec![NODES, "system:authenticated"],
        usages: vec!["digital signature", "server auth"],
        ..client()
    }
}

fn csr(ask: Ask) -> CertificateSigningRequest {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ask.organization);
    params.distinguished_name.push(DnType::CommonName, ask.common_name);
    params.subject_alt_names = ask.names;
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let mut csr = CertificateSigningRequest::default();
    csr.metadata.name = Some("csr".into());
    csr.spec.request = ByteString(pem.into_bytes());
    csr.spec.signer_name = ask.signer.into();
    csr.spec.username = Some(ask.user.into());
    csr.spec.groups = Some(ask.groups.into_iter().map(str::to_owned).collect());
    csr.spec.usages = Some(ask.usages.into_iter().map(str::to_owned).collect());
    csr
}

/// The first request of a kubelet, as JSON.
pub fn of_a_kubelet() -> serde_json::Value {
    serde_json::to_value(csr(client())).unwrap()
}

fn node() -> Node {
    let mut node = Node::default();
    node.metadata.name = Some("n1".into());
    node.status = Some(NodeStatus {
        addresses: Some(vec![NodeAddress { address: "10.0.0.1".into(), type_: "InternalIP".into() }]),
        ..Default::default()
    });
    node
}

fn stored<C: Controller>(h: &Harness<C>) -> CertificateSigningRequest {
    h.model.lock().get("", "csr").unwrap()
}

#[tokio::test(start_paused = true)]
async fn nodes_get_their_own_certificates_and_no_others() {
    let cases: Vec<(&str, Ask, bool)> = vec![
        ("first client certificate", client(), true),
        ("renewal", Ask { user: "system:node:n1", groups: vec![NODES], ..client() }, true),
        ("another node's renewal", Ask { user: "system:node:n2", groups: vec![NODES], ..client() }, false),
        ("a user", Ask { user: "eve", groups: vec!["system:authenticated"], ..client() }, false),
        ("an administrator's name", Ask { common_name: "admin", ..client() }, false),
        ("the group of administrators", Ask { organization: "system:masters", ..client() }, false),
        ("names in a client certificate", Ask { names: serving().names, ..client() }, false),
        ("server usage", Ask { usages: vec!["digital signature", "server auth"], ..client() }, false),
        ("any client", Ask { signer: API_CLIENT, ..client() }, false),
        ("serving certificate", serving(), true),
        ("of another node", Ask { user: "system:node:n2", ..serving() }, false),
        ("by a bootstrap token", Ask { groups: vec![BOOTSTRAPPERS], ..serving() }, false),
        (
            "with a foreign address",
            Ask { names: vec![SanType::IpAddress("10.0.0.2".parse().unwrap())], ..serving() },
            false,
        ),
        (
            "with a foreign name",
            Ask { names: vec![SanType::DnsName("kubernetes.default".try_into().unwrap())], ..serving() },
            false,
        ),
        ("without names", Ask { names: vec![], ..serving() }, false),
    ];
    for (what, ask, approved) in cases {
        let mut h = Harness::new(Approver::new);
        h.model.lock().put(&node());
        h.model.lock().put(&csr(ask));
        h.settle(20).await;
        assert_eq!(condition(&stored(&h), "Approved").is_some(), approved, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_serving_request_waits_for_the_nodes_addresses() {
    let mut h = Harness::new(Approver::new);
    h.model.lock().put(&csr(serving()));
    h.settle(20).await;
    assert!(condition(&stored(&h), "Approved").is_none());
    h.model.lock().put(&node());
    h.settle(20).await;
    assert!(condition(&stored(&h), "Approved").is_some());
    assert!(h.plan(&Key::cluster("csr")).await.is_empty());
}

fn approved(mut csr: CertificateSigningRequest) -> CertificateSigningRequest {
    csr.status.get_or_insert_default().conditions = Some(vec![CertificateSigningRequestCondition {
        type_: "Approved".into(),
        status: "True".into(),
        last_update_time: Some(crate::object::time(jiff::Timestamp::from_second(1_700_000_000).unwrap())),
        ..Default::default()
    }]);
    csr
}

fn signer(ca: &SigningCa) -> Harness<Signer> {
    let clock = crate::testing::clock();
    let ca = Ca::new(ca).unwrap();
    Harness::new(|caches, _| Signer::new(caches, ca, Duration::from_secs(365 * 86400), clock))
}

#[tokio::test(start_paused = true)]
async fn a_signed_certificate_is_what_was_asked_for() {
    let authority = ca();
    let mut h = signer(&authority);
    let mut ask = csr(serving());
    ask.spec.expiration_seconds = Some(3600);
    ask.spec.usages = Some(vec!["key encipherment".into(), "digital signature".into(), "server auth".into()]);
    h.model.lock().put(&approved(ask));
    h.settle(20).await;
    let pem = stored(&h).status.unwrap().certificate.unwrap().0;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let (rest, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    assert!(rest.is_empty());
    let (_, ca_pem) = x509_parser::pem::parse_x509_pem(authority.certificate_pem.as_bytes()).unwrap();
    let (_, ca) = X509Certificate::from_der(&ca_pem.contents).unwrap();
    certificate.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(certificate.issuer(), ca.subject());
    assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:n1");
    let validity = certificate.validity();
    assert_eq!(validity.not_after.timestamp() - 1_700_000_000, 3600);
    assert_eq!(1_700_000_000 - validity.not_before.timestamp(), 300);
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && !extended.client_auth);
    assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
    let names = certificate.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 2);
    assert!(h.controller.view(&Key::cluster("csr"), None).await.unwrap().is_none(), "done");
}

#[tokio::test(start_paused = true)]
async fn what_the_signer_refuses_fails() {
    let authority = ca();
    let cases = [
        ("organization", Ask { organization: "system:masters", ..client() }, "organization"),
        ("usage", Ask { usages: vec!["client auth", "cert sign"], ..client() }, "usage \"cert sign\""),
        ("names", Ask { names: serving().names, ..client() }, "alternative names"),
    ];
    for (what, ask, why) in cases {
        let mut h = signer(&authority);
        h.model.lock().put(&approved(csr(ask)));
        h.settle(20).await;
        let csr = stored(&h);
        let failed = condition(&csr, "Failed").unwrap_or_else(|| panic!("{what}"));
        assert_eq!(failed.reason.as_deref(), Some("SignerValidationFailure"));
        assert!(failed.message.as_ref().unwrap().contains(why), "{what}: {failed:?}");
        assert!(!has_certificate(&csr));
    }
    // Not approved, or another's signer: none of our business.
    for ask in [csr(client()), approved(csr(Ask { signer: "example.com/own", ..client() }))] {
        let mut h = signer(&authority);
        h.model.lock().put(&ask);
        h.settle(20).await;
        let csr = stored(&h);
        assert!(!has_certificate(&csr) && condition(&csr, "Failed").is_none());
    }
}

#[test]
fn a_ca_must_fit_its_key() {
    let (a, b) = (ca(), ca());
    let mixed = SigningCa { certificate_pem: a.certificate_pem, key_pem: b.key_pem };
    assert!(Ca::new(&mixed).is_err());
}

/// What was approved and could not be signed goes as what was refused does, and no sooner than decided.
#[tokio::test(start_paused = true)]
async fn a_failed_request_stays_as_long_as_a_denied_one() {
    let mut h = Harness::new(|caches, _| Cleaner::new(caches));
    let mut failed = approved(csr(client()));
    let conditions = failed.status.as_mut().unwrap().conditions.as_mut().unwrap();
    let failure = CertificateSigningRequestCondition { type_: "Failed".into(), ..conditions[0].clone() };
    conditions.push(failure);
    h.model.lock().put(&failed);
    h.settle(20).await;
    tokio::time::advance(Duration::from_secs(59 * 60)).await;
    h.settle(20).await;
    assert_eq!(h.model.lock().list::<CertificateSigningRequest>().len(), 1);
    tokio::time::advance(Duration::from_secs(60)).await;
    h.settle(20).await;
    assert!(h.model.lock().list::<CertificateSigningRequest>().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Requests go when their time has come and not before.
    #[test]
    fn requests_end_in_time(decided in any::<bool>(), has_cert in any::<bool>(), minutes in 1..2000u64) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = Harness::new(|caches, _| Cleaner::new(caches));
            let mut request = csr(client());
            if decided {
                request = approved(request);
                if has_cert {
                    request.status.as_mut().unwrap().certificate = Some(ByteString(b"x".to_vec()));
                }
            }
            h.model.lock().put(&request);
            h.settle(20).await;
            tokio::time::advance(Duration::from_secs(minutes * 60)).await;
            h.settle(20).await;
            let limit = if decided && has_cert { 60 } else { 24 * 60 };
            let left = h.model.lock().list::<CertificateSigningRequest>().len();
            prop_assert_eq!(left, usize::from(minutes < limit));
            Ok(())
        })?;
    }

    /// Bytes that are no request are refused, never a panic.
    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in any::<usize>(), flip in any::<usize>()) {
        let mut broken = csr(client());
        broken.spec.request = ByteString(bytes);
        prop_assert!(Request::parse(&broken).is_err());
        let good = csr(client());
        let mut pem = good.spec.request.0.clone();
        let at = flip % pem.len();
        pem[at] ^= 1;
        // Cut in the first half: without only the last line's end it would still be a request.
        pem.truncate(cut % (pem.len() / 2));
        let mut broken = good;
        broken.spec.request = ByteString(pem);
        let _ = Request::parse(&broken);
        let view = approve::View { csr: Arc::new(broken), node: None, reviewed: true };
        prop_assert!(approve::reconcile(&view, jiff::Timestamp::UNIX_EPOCH).is_empty());
    }
}
