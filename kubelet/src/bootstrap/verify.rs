//! Trusting a server by the digest of its CA, before the CA itself is known.

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};
use sha2::{Digest, Sha256};
use std::sync::Arc;

use crate::tls::Judge;

/// Accepts a server only if its chain holds a CA with the right digest, and the chain is valid under that CA.
#[derive(Debug)]
pub(super) struct PinnedCa {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl PinnedCa {
    pub fn new(digest: [u8; 32], provider: Arc<CryptoProvider>) -> PinnedCa {
        PinnedCa { digest, provider, found: Mutex::new(None) }
    }

    /// The CA, once a server was accepted.
    pub fn ca(&self) -> Option<CertificateDer<'static>> {
        self.found.lock().clone()
    }
}

impl Judge for PinnedCa {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let pinned =
            intermediates.iter().find(|c| <[u8; 32]>::from(Sha256::digest(c.as_ref())) == self.digest);
        let ca = pinned.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let ca = ca.clone().into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        *self.found.lock() = Some(ca);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    #[test]
    fn accepts_only_a_chain_of_the_pinned_ca() {
        let make_ca = || {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let cert = params.self_signed(&key).unwrap();
            (cert.der().clone(), Issuer::new(params, key))
        };
        let leaf = |issuer: &Issuer<'_, KeyPair>| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["server".to_owned()]).unwrap();
            params.signed_by(&key, issuer).unwrap().der().clone()
        };
        let (ca, issuer) = make_ca();
        let (other_ca, other_issuer) = make_ca();
        let digest: [u8; 32] = Sha256::digest(ca.as_ref()).into();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let check = |leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], name: &str| {
            let pinned = PinnedCa::new(digest, provider.clone());
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let ok = pinned.judge(leaf, chain, &name, &[], UnixTime::now()).is_ok();
            assert_eq!(ok, pinned.ca().is_some());
            ok
        };
        let good = leaf(&issuer);
        assert!(check(&good, std::slice::from_ref(&ca), "server"));
        assert!(!check(&good, std::slice::from_ref(&ca), "another"));
        assert!(!check(&good, &[], "server"));
        assert!(!check(&leaf(&other_issuer), std::slice::from_ref(&other_ca), "server"));
        // The real CA beside a leaf that it did not sign.
        assert!(!check(&leaf(&other_issuer), &[other_ca, ca], "server"));
    }
}
