//! What the certificates look like that we sign.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::{limits, spiffe::SpiffeId};

/// Why a life of certificates cannot be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "certificates cannot live for {} s: at least {} s, at most {} s",
    .0.as_secs(), limits::TTL_MIN.as_secs(), limits::TTL_MAX.as_secs()
)]
pub struct ProfileError(Duration);

/// What a workload's certificate looks like: no CA, for signing handshakes, for servers and clients, one critical URI, no subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    ttl: Duration,
}

impl Default for Profile {
    fn default() -> Self {
        Self { ttl: limits::TTL_DEFAULT }
    }
}

impl Profile {
    /// A profile with a life of its own.
    ///
    /// # Errors
    /// It is too short to survive a restart of the authority, or too long to go without revocation.
    pub fn new(ttl: Duration) -> Result<Self, ProfileError> {
        if (limits::TTL_MIN..=limits::TTL_MAX).contains(&ttl) { Ok(Self { ttl }) } else { Err(ProfileError(ttl)) }
    }

    /// Any life from a second on: for tests that watch certificates being renewed.
    #[doc(hidden)]
    #[must_use]
    pub fn unchecked(ttl: Duration) -> Self {
        Self { ttl: ttl.max(Duration::from_secs(1)) }
    }

    /// How long a certificate lives.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A workload's certificate. It ends no later than its issuer.
    pub(crate) fn workload(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        issuer_ends: SystemTime,
    ) -> Result<CertificateParams, rcgen::Error> {
        let mut params = self.leaf(now, issuer_ends)?;
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }

    /// The certificate of the authority's own server, by names of DNS.
    pub(crate) fn server(
        &self,
        names: &[String],
        now: SystemTime,
        issuer_ends: SystemTime,
    ) -> Result<CertificateParams, rcgen::Error> {
        let mut params = self.leaf(now, issuer_ends)?;
        let name = |name: &String| Ok(SanType::DnsName(name.clone().try_into()?));
        params.subject_alt_names = names.iter().map(name).collect::<Result<_, rcgen::Error>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params)
    }

    fn leaf(&self, now: SystemTime, issuer_ends: SystemTime) -> Result<CertificateParams, rcgen::Error> {
        let backdate = limits::BACKDATE_MAX.min(self.ttl / 10);
        let mut params = blank(now - backdate, issuer_ends.min(now + self.ttl))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// A certificate that signs others.
pub(crate) fn authority(
    name: &str,
    constraints: BasicConstraints,
    now: SystemTime,
    ends: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = blank(now - limits::BACKDATE_MAX, ends)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn blank(begins: SystemTime, ends: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial()?);
    params.not_before = date(begins);
    params.not_after = date(ends);
    Ok(params)
}

/// 127 random bits: unique without a register of what was signed.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; limits::SERIAL_LENGTH];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A moment as X.509 has it: whole seconds. Those before 1970 are 1970.
fn date(moment: SystemTime) -> OffsetDateTime {
    let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
