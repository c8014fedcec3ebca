//! Making certificates and judging those found on disk.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PkiError;

/// Certificates are valid from a little before they were made, for peers whose clock lags.
const BACKDATE: Duration = Duration::from_secs(3600);

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// Its key, PKCS#8.
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// What a leaf certificate must say.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    common_name: String,
    /// At most one: rcgen keeps one value per attribute of a name.
    organization: Option<String>,
    sans: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
}

impl LeafSpec {
    /// A client certificate: user name and group as Kubernetes reads them from the subject.
    pub fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            sans: Vec::new(),
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        }
    }

    /// A serving certificate for DNS names and addresses.
    pub fn server(common_name: &str, sans: Vec<String>) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organization: None,
            sans,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

impl Identity {
    /// The certificate's DER.
    ///
    /// # Errors
    /// When the PEM is malformed.
    pub fn cert_der(&self) -> Result<CertificateDer<'static>, PkiError> {
        CertificateDer::from_pem_slice(self.cert_pem.as_bytes())
            .map_err(|e| malformed("certificate", &e.to_string()))
    }

    /// The private key's DER.
    ///
    /// # Errors
    /// When the PEM is malformed.
    pub fn key_der(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| malformed("private key", &e.to_string()))
    }

    /// Whether the key belongs to the certificate.
    pub(super) fn key_matches(&self) -> bool {
        let (Ok(der), Ok(key)) = (self.cert_der(), KeyPair::from_pem(&self.key_pem)) else { return false };
        let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
        cert.public_key().subject_public_key.data.as_ref() == key.der_bytes()
    }

    /// Whether this certificate still does what `spec` asks, was signed by `ca`, and lasts until `until`.
    pub(super) fn serves(&self, spec: &LeafSpec, ca: &Identity, until: SystemTime) -> bool {
        let (Ok(der), Ok(ca_der)) = (self.cert_der(), ca.cert_der()) else { return false };
        let (Ok((_, cert)), Ok((_, ca_cert))) =
            (X509Certificate::from_der(&der), X509Certificate::from_der(&ca_der))
        else {
            return false;
        };
        let until = until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        self.key_matches()
            && cert.verify_signature(Some(ca_cert.public_key())).is_ok()
            && cert.validity().not_after.timestamp() > until
            && subject_matches(&cert, spec)
            && spec.sans.iter().all(|san| has_san(&cert, san))
    }
}

fn malformed(path: &str, what: &str) -> PkiError {
    PkiError::Malformed { path: PathBuf::from(path), what: what.to_owned() }
}

fn subject_matches(cert: &X509Certificate<'_>, spec: &LeafSpec) -> bool {
    let subject = cert.subject();
    let name = subject.iter_common_name().next().and_then(|a| a.as_str().ok());
    let organizations = subject.iter_organization().filter_map(|a| a.as_str().ok());
    name == Some(spec.common_name.as_str()) && organizations.eq(spec.organization.as_deref())
}

fn has_san(cert: &X509Certificate<'_>, san: &str) -> bool {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return false };
    let address: Option<IpAddr> = san.parse().ok();
    extension.value.general_names.iter().any(|name| match (name, address) {
        (GeneralName::IPAddress(bytes), Some(IpAddr::V4(v4))) => *bytes == v4.octets().as_slice(),
        (GeneralName::IPAddress(bytes), Some(IpAddr::V6(v6))) => *bytes == v6.octets().as_slice(),
        (GeneralName::DNSName(dns), None) => dns.eq_ignore_ascii_case(san),
        _ => false,
    })
}

fn base_params(now: SystemTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params.use_authority_key_identifier_extension = true;
    params
}

/// A self-signed CA over an existing key.
pub(super) fn self_signed_ca(
    name: &str,
    key_pem: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<Identity, PkiError> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = base_params(now, lifetime);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let cert = params.self_signed(&key)?;
    Ok(Identity { cert_pem: cert.pem(), key_pem: key_pem.to_owned() })
}

/// A leaf certificate over an existing key.
pub(super) fn signed_leaf(
    spec: &LeafSpec,
    key_pem: &str,
    ca: &Identity,
    now: SystemTime,
    lifetime: Duration,
) -> Result<Identity, PkiError> {
    let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, KeyPair::from_pem(&ca.key_pem)?)?;
    let key = KeyPair::from_pem(key_pem)?;
    let sans = CertificateParams::new(spec.sans.clone())?.subject_alt_names;
    let mut params = base_params(now, lifetime);
    params.subject_alt_names = sans;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = &spec.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, spec.common_name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![spec.usage.clone()];
    let cert = params.signed_by(&key, &issuer)?;
    Ok(Identity { cert_pem: cert.pem(), key_pem: key_pem.to_owned() })
}
