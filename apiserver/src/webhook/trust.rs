//! Whose certificates of webhooks are believed.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// TLS configurations by CA bundle. There are as many as there are bundles in webhook configurations; the table is
/// emptied when it holds more than [`MAX_BUNDLES`].
#[derive(Default)]
pub struct Trust(Mutex<HashMap<Vec<u8>, Arc<ClientConfig>>>);

const MAX_BUNDLES: usize = 256;

impl Trust {
    /// The configuration for a bundle of PEM certificates.
    ///
    /// # Errors
    /// When the bundle holds no certificate.
    pub fn config(&self, bundle: &[u8]) -> Result<Arc<ClientConfig>, String> {
        if let Some(known) = self.0.lock().get(bundle) {
            return Ok(known.clone());
        }
        let config = Arc::new(make(bundle)?);
        let mut known = self.0.lock();
        if known.len() >= MAX_BUNDLES {
            known.clear();
        }
        known.insert(bundle.to_vec(), config.clone());
        Ok(config)
    }
}

fn make(bundle: &[u8]) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let mut given = Vec::new();
    if bundle.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
    }
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|e| format!("unable to load root certificates: {e}"))?;
        given.push(certificate.clone());
        roots.add(certificate).map_err(|e| format!("unable to load root certificates: {e}"))?;
    }
    if roots.is_empty() {
        return Err("unable to load root certificates: no certificate found".into());
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let inner = inner.build().map_err(|e| e.to_string())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, given }))
        .with_no_client_auth();
    Ok(config)
}

/// As webpki verifies, and besides it believes a certificate that the bundle itself holds: many webhooks serve the
/// self-signed certificate that is their bundle, which Go's verifier takes.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let answer = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        let Err(Error::InvalidCertificate(why)) = &answer else { return answer };
        // What a validity says holds for such a certificate too; webpki looks at it before the kind.
        let other = matches!(why, CertificateError::Other(_) | CertificateError::UnknownIssuer);
        if other && self.given.iter().any(|c| c.as_ref() == end_entity.as_ref()) && is_valid(end_entity, now)
        {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        answer
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether now is between a certificate's dates.
fn is_valid(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let Ok((_, parsed)) = X509Certificate::from_der(certificate.as_ref()) else { return false };
    let Ok(now) = i64::try_from(now.as_secs()) else { return false };
    let validity = parsed.validity();
    validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
}

/// The text of a failed handshake, in the words of Go where it has any.
pub fn text(error: &Error) -> String {
    let why = match error {
        // Another certificate of the same name does not vouch for it either.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "x509: certificate has expired or is not yet valid".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "x509: certificate is not valid for the name of the webhook".to_owned(),
        other => return format!("remote error: tls: {other}"),
    };
    format!("tls: failed to verify certificate: {why}")
}
