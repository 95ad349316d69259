//! Private keys: P-256, made here, kept only in memory. They leave it as PKCS #8 for the one who keeps them over a restart, and for
//! an authority's Secret.

use std::{fmt, sync::Arc};

use rcgen::PublicKeyData as _;
use rustls::{
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    sign::SigningKey,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::limits;

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness, or the library refused.
    #[error("a key could not be made: {0}")]
    Generate(String),
    /// More bytes than a key has.
    #[error("the key has {0} bytes, of at most {max}", max = limits::KEY_MAX)]
    TooLarge(usize),
    /// Not PKCS #8 (or, in PEM, SEC 1) of a P-256 key.
    #[error("it is no private key of P-256")]
    Unusable,
}

/// A private key. It is wiped when it is dropped, and never printed.
pub struct PrivateKey {
    pair: rcgen::KeyPair,
}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate() -> Result<Self, KeyError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| KeyError::Generate(error.to_string()))?;
        Ok(Self { pair })
    }

    /// A key out of PKCS #8.
    ///
    /// # Errors
    /// It is none of P-256.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > limits::KEY_MAX {
            return Err(KeyError::TooLarge(der.len()));
        }
        Self::from_der(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)))
    }

    /// A key out of PEM, as users' Secrets have them (PKCS #8, or `EC PRIVATE KEY`).
    ///
    /// # Errors
    /// It is none of P-256.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        if pem.len() > limits::KEY_MAX {
            return Err(KeyError::TooLarge(pem.len()));
        }
        Self::from_der(&PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::Unusable)?)
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        let pair = rcgen::KeyPair::from_der_and_sign_algo(der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| KeyError::Unusable)?;
        Ok(Self { pair })
    }

    /// As PKCS #8, for who keeps it.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pair.serialize_der())
    }

    /// As PEM, for a Secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// The public half: a SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    pub(crate) fn pair(&self) -> &rcgen::KeyPair {
        &self.pair
    }

    /// For TLS.
    ///
    /// # Errors
    /// [`KeyError::Unusable`]: the library does not take it.
    pub fn signing(&self) -> Result<Arc<dyn SigningKey>, KeyError> {
        let pkcs8 = self.to_pkcs8();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| KeyError::Unusable)
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_being_kept_and_is_never_printed() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(PrivateKey::from_pkcs8(&key.to_pkcs8()).unwrap().public(), key.public());
        assert_eq!(PrivateKey::from_pem(key.to_pem().as_bytes()).unwrap().public(), key.public());
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
    }

    #[test]
    fn what_is_no_p256_key_is_refused() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for bytes in [&b""[..], b"garbage", &other.serialize_der()] {
            assert_eq!(PrivateKey::from_pkcs8(bytes).unwrap_err(), KeyError::Unusable);
            assert_eq!(PrivateKey::from_pem(bytes).unwrap_err(), KeyError::Unusable);
        }
        assert_eq!(PrivateKey::from_pkcs8(&[0; 9000]).unwrap_err(), KeyError::TooLarge(9000));
    }
}
