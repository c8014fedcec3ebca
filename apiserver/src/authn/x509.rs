//! Users from client certificates. The chain was verified by rustls; here only the subject is read.

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::access::UserInfo;
use crate::tokens::claims::EXTRA_CREDENTIAL;

/// A certificate that names no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum X509Error {
    /// Not a certificate, or a name that is no text.
    #[error("the certificate cannot be read")]
    Malformed,
    /// No common name.
    #[error("the certificate's subject has no common name")]
    NoName,
}

/// The subject as Kubernetes reads it: CN is the user, each O a group.
///
/// # Errors
/// When the certificate cannot be read or has no common name.
pub fn user_of(der: &CertificateDer<'_>) -> Result<UserInfo, X509Error> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| X509Error::Malformed)?;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).map_err(|_| X509Error::Malformed)
    };
    // Of several common names the last counts, as in Go's pkix.Name.
    let name = cert.subject().iter_common_name().last().ok_or(X509Error::NoName).and_then(text)?;
    if name.is_empty() {
        return Err(X509Error::NoName);
    }
    let groups = cert.subject().iter_organization().map(text).collect::<Result<Vec<_>, _>>()?;
    let mut user = UserInfo::new(name, groups);
    let digest = format!("X509SHA256={}", hex::encode(Sha256::digest(der)));
    user.extra.insert(EXTRA_CREDENTIAL.to_owned(), vec![digest]);
    Ok(user)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::pki::{Pki, PkiConfig};

    #[test]
    fn subjects_are_users_and_groups() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pki = Pki::load_or_create(&PkiConfig::new(dir.path()), SystemTime::now()).expect("pki");
        let user = user_of(&pki.admin.cert_der().expect("der")).expect("user");
        assert_eq!(user.username, "kubernetes-admin");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        assert!(user.extra[EXTRA_CREDENTIAL][0].starts_with("X509SHA256="));
        assert_eq!(user_of(&CertificateDer::from(vec![1, 2, 3])), Err(X509Error::Malformed));
    }

    #[test]
    fn a_certificate_without_a_name_is_no_user() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let cert = params.self_signed(&key).expect("cert");
        assert_eq!(user_of(cert.der()), Err(X509Error::NoName));
    }
}
