//! Signing requests (PKCS #10): made by agents, checked by the authority.

use rcgen::{CertificateParams, DistinguishedName, SanType};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use crate::{
    key::{KeyError, PrivateKey},
    limits,
    spiffe::SpiffeId,
    svid,
};

/// Why a request is refused. The same bytes are refused again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// More bytes than we read.
    #[error("the request has {0} bytes, of at most {max}", max = limits::REQUEST_MAX)]
    TooLarge(usize),
    /// No request at all.
    #[error("it is no PKCS #10 request")]
    Garbage,
    /// It is not signed with the key that it names: nobody has shown to have it.
    #[error("it is not signed with its own key")]
    Signature,
    /// Not a P-256 key.
    #[error("its key is not of P-256")]
    Key,
    /// It asks for names that this pod does not have, or for more than names and usage.
    #[error("it asks for what this pod may not have: {0}")]
    Names(String),
}

impl RequestError {
    /// The reason in one word, for metrics and refusals.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "too_large",
            Self::Garbage => "bad_request",
            Self::Signature => "bad_signature",
            Self::Key => "bad_key",
            Self::Names(_) => "wrong_names",
        }
    }
}

/// Makes a request for an identity: DER, with exactly this URI as its names.
///
/// # Errors
/// The library refused.
pub fn create(id: &SpiffeId, key: &PrivateKey) -> Result<Vec<u8>, KeyError> {
    let refused = |error: rcgen::Error| KeyError::Generate(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(refused)?)];
    Ok(params.serialize_request(key.pair()).map_err(refused)?.der().to_vec())
}

/// Makes a request for the authority's own server: DER, with these names of DNS.
///
/// # Errors
/// One is no name, or the library refused.
pub fn create_server(names: &[String], key: &PrivateKey) -> Result<Vec<u8>, KeyError> {
    let refused = |error: rcgen::Error| KeyError::Generate(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = |name: &String| Ok(SanType::DnsName(name.clone().try_into()?));
    params.subject_alt_names = names.iter().map(name).collect::<Result<_, _>>().map_err(refused)?;
    Ok(params.serialize_request(key.pair()).map_err(refused)?.der().to_vec())
}

/// A request as PEM (RFC 7468), for signers elsewhere.
#[must_use]
pub fn to_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE REQUEST", der), config)
}

/// A request that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedRequest {
    /// The public key, a SubjectPublicKeyInfo in DER. Nothing else of the request goes into the certificate.
    pub public_key: Vec<u8>,
    /// The request itself, for signers that are elsewhere.
    pub der: Vec<u8>,
}

/// Checks a request for an identity: signed with its own P-256 key, and asking for no names, or exactly this one.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check(der: &[u8], expected: &SpiffeId) -> Result<CheckedRequest, RequestError> {
    if der.len() > limits::REQUEST_MAX {
        return Err(RequestError::TooLarge(der.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Garbage)?;
    if !rest.is_empty() {
        return Err(RequestError::Garbage);
    }
    let info = &request.certification_request_info;
    if !svid::is_p256(&info.subject_pki) {
        return Err(RequestError::Key);
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    if info.subject.iter().next().is_some() {
        return Err(RequestError::Names(format!("the subject {}", info.subject)));
    }
    // Signers elsewhere read the request themselves, so nothing may be in it that we have not read.
    for attribute in info.attributes() {
        if !matches!(attribute.parsed_attribute(), x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(_))
        {
            return Err(RequestError::Names(format!("the attribute {}", attribute.oid)));
        }
    }
    if info.attributes().len() > 1 {
        return Err(RequestError::Names("extensions, more than once".to_owned()));
    }
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => check_names(&names.general_names, expected)?,
            ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() && !usage.crl_sign() => {}
            ParsedExtension::ExtendedKeyUsage(_) => {}
            ParsedExtension::BasicConstraints(constraints) if !constraints.ca => {}
            _ => return Err(RequestError::Names("an extension that is not for workloads".to_owned())),
        }
    }
    Ok(CheckedRequest { public_key: info.subject_pki.raw.to_vec(), der: der.to_vec() })
}

fn check_names(names: &[GeneralName<'_>], expected: &SpiffeId) -> Result<(), RequestError> {
    match names {
        [] => Ok(()),
        [GeneralName::URI(uri)] if *uri == expected.to_string() => Ok(()),
        [GeneralName::URI(uri)] => Err(RequestError::Names(format!("{uri:?} where it is {expected}"))),
        names => Err(RequestError::Names(format!("{} names, or one that is no URI", names.len()))),
    }
}
