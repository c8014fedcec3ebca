//! What a PKCS#10 request asks for.

use std::net::IpAddr;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

/// A request that is well formed and signed with the key that it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether there are alternative names of other kinds.
    pub other_names: bool,
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// The public key with its algorithm, DER.
    pub public_key: Vec<u8>,
    /// The alternative names as the extension's value, DER, and whether they are critical.
    pub alternative_names: Option<(Vec<u8>, bool)>,
}

impl Request {
    /// Parses and checks the request of a CertificateSigningRequest.
    ///
    /// # Errors
    /// A text that says what is wrong with the request.
    pub fn parse(csr: &CertificateSigningRequest) -> Result<Self, String> {
        let (_, pem) = parse_x509_pem(&csr.spec.request.0).map_err(|e| format!("request is not PEM: {e}"))?;
        if pem.label != "CERTIFICATE REQUEST" && pem.label != "NEW CERTIFICATE REQUEST" {
            return Err(format!("PEM block type must be CERTIFICATE REQUEST, not {}", pem.label));
        }
        let (rest, parsed) = X509CertificationRequest::from_der(&pem.contents)
            .map_err(|e| format!("request is not PKCS#10: {e}"))?;
        if !rest.is_empty() {
            return Err("request has bytes after its end".to_owned());
        }
        parsed.verify_signature().map_err(|e| format!("request is not signed with its key: {e}"))?;
        let info = &parsed.certification_request_info;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            a.as_str().map(str::to_owned).map_err(|e| format!("subject: {e}"))
        };
        let common_names: Vec<String> =
            info.subject.iter_common_name().map(text).collect::<Result<_, _>>()?;
        let mut request = Self {
            common_name: common_names.last().cloned().unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            dns_names: Vec::new(),
            addresses: Vec::new(),
            other_names: false,
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            alternative_names: None,
        };
        let extensions = info.iter_attributes().filter_map(|a| match a.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
            _ => None,
        });
        for extension in extensions.flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                if request.alternative_names.is_some() {
                    return Err("request has two sets of alternative names".to_owned());
                }
                request.alternative_names = Some((extension.value.to_vec(), extension.critical));
                for name in &names.general_names {
                    request.take(name)?;
                }
            }
        }
        Ok(request)
    }

    fn take(&mut self, name: &GeneralName<'_>) -> Result<(), String> {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                    .map_err(|_| "an address is of no known length".to_owned())?;
                self.addresses.push(address);
            }
            _ => self.other_names = true,
        }
        Ok(())
    }

    /// Whether there are alternative names at all.
    pub fn has_names(&self) -> bool {
        !self.dns_names.is_empty() || !self.addresses.is_empty() || self.other_names
    }
}
