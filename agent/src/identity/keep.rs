//! What outlives the agent: credentials and roots, in memory that the kernel keeps. Nothing is written to a disk.
//!
//! One blob for each service account. It says itself whose it is, and is checked like an answer of the authority when it is read.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use weft_identity::{Bundle, SpiffeId, key::PrivateKey};
use weft_policy::names::ServiceAccountKey;
use zeroize::Zeroizing;

use crate::{capture, telemetry::Chain};

/// Begins every blob: what it is, and the version of what follows.
const MAGIC: &[u8] = b"weft-id1";
/// Name of the blob with the roots.
const BUNDLE: &str = "identity-roots";
/// Begins the names of credentials.
const PREFIX: &str = "identity/";

/// Where blobs are kept. Errors are for people: what cannot be kept is asked for again after a restart.
pub trait Keep: Send + Sync + 'static {
    /// Keeps a blob in the place of what has the same name.
    ///
    /// # Errors
    /// There is no room, or the system refuses.
    fn put(&self, name: &str, blob: &[u8]) -> Result<(), String>;
    /// A blob.
    fn get(&self, name: &str) -> Option<Vec<u8>>;
    /// Forgets a blob.
    fn remove(&self, name: &str);
    /// The names of all blobs.
    fn names(&self) -> Vec<String>;
}

/// In the kernel's memory.
impl Keep for capture::Keep {
    fn put(&self, name: &str, blob: &[u8]) -> Result<(), String> {
        Self::put(self, name, blob).map_err(|error| Chain(&error).to_string())
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        Self::get(self, name).unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "what an earlier agent kept cannot be read");
            None
        })
    }

    fn remove(&self, name: &str) {
        if let Err(error) = Self::remove(self, name) {
            tracing::warn!(error = %Chain(&error), "what is not needed any more stays kept");
        }
    }

    fn names(&self) -> Vec<String> {
        Self::names(self).unwrap_or_default()
    }
}

/// Keeps nothing.
pub struct Nothing;

impl Keep for Nothing {
    fn put(&self, _: &str, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn get(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn remove(&self, _: &str) {}

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A credential that was kept. Whether it can be used is another question.
pub struct Kept {
    /// Its key.
    pub key: PrivateKey,
    /// Its chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// The authority's epoch at which it was asked for.
    pub epoch: u64,
}

fn name(account: &ServiceAccountKey) -> String {
    format!("{PREFIX}{}/{}", account.namespace, account.name)
}

/// The accounts whose credentials are kept.
#[must_use]
pub fn accounts(keep: &dyn Keep) -> Vec<ServiceAccountKey> {
    let account = |name: &String| {
        let (namespace, name) = name.strip_prefix(PREFIX)?.split_once('/')?;
        Some(ServiceAccountKey::new(namespace, name))
    };
    keep.names().iter().filter_map(account).collect()
}

/// Keeps a credential.
///
/// # Errors
/// See [`Keep::put`].
pub fn put(
    keep: &dyn Keep,
    id: &SpiffeId,
    key: &PrivateKey,
    chain: &[CertificateDer<'_>],
    epoch: u64,
) -> Result<(), String> {
    let mut blob = Zeroizing::new(MAGIC.to_vec());
    blob.extend_from_slice(&epoch.to_be_bytes());
    part(&mut blob, id.to_string().as_bytes());
    part(&mut blob, &key.to_pkcs8());
    for certificate in chain {
        part(&mut blob, certificate);
    }
    keep.put(&name(&id.account), &blob)
}

fn part(blob: &mut Vec<u8>, bytes: &[u8]) {
    blob.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    blob.extend_from_slice(bytes);
}

/// The kept credential of an identity, if there is one that can be read.
#[must_use]
pub fn get(keep: &dyn Keep, id: &SpiffeId) -> Option<Kept> {
    let blob = Zeroizing::new(keep.get(&name(&id.account))?);
    let (epoch, mut rest) = blob.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let mut next = || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (bytes, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        rest = after;
        Some(bytes)
    };
    if next()? != id.to_string().as_bytes() {
        return None;
    }
    let key = PrivateKey::from_pkcs8(next()?).ok()?;
    let mut chain = Vec::new();
    while let Some(certificate) = next() {
        chain.push(certificate.to_vec().into());
    }
    Some(Kept { key, chain, epoch: u64::from_be_bytes(*epoch) })
}

/// Forgets the credential of an account.
pub fn remove(keep: &dyn Keep, account: &ServiceAccountKey) {
    keep.remove(&name(account));
}

/// Keeps the roots.
///
/// # Errors
/// See [`Keep::put`].
pub fn put_bundle(keep: &dyn Keep, bundle: &Bundle) -> Result<(), String> {
    keep.put(BUNDLE, bundle.to_pem().as_bytes())
}

/// The kept roots.
#[must_use]
pub fn bundle(keep: &dyn Keep) -> Option<Arc<Bundle>> {
    Bundle::from_pem(&keep.get(BUNDLE)?).ok().map(Arc::new)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::HashMap, sync::Mutex};

    use proptest::prelude::*;
    use weft_identity::testing::TestAuthority;

    use super::*;

    /// Keeps in a map.
    #[derive(Default)]
    pub(crate) struct Memory(pub(crate) Mutex<HashMap<String, Vec<u8>>>);

    impl Keep for Memory {
        fn put(&self, name: &str, blob: &[u8]) -> Result<(), String> {
            self.0.lock().unwrap().insert(name.to_owned(), blob.to_vec());
            Ok(())
        }

        fn get(&self, name: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().get(name).cloned()
        }

        fn remove(&self, name: &str) {
            self.0.lock().unwrap().remove(name);
        }

        fn names(&self) -> Vec<String> {
            self.0.lock().unwrap().keys().cloned().collect()
        }
    }

    #[test]
    fn a_credential_is_read_as_it_was_kept_and_nothing_else_is() {
        let (keep, authority) = (Memory::default(), TestAuthority::new("cluster.local"));
        let (credential, key) = (authority.credential("shop", "web"), PrivateKey::generate().unwrap());
        put(&keep, credential.id(), &key, credential.chain(), 7).unwrap();
        put_bundle(&keep, &authority.bundle).unwrap();
        let kept = get(&keep, credential.id()).unwrap();
        assert_eq!((kept.key.public(), &kept.chain[..], kept.epoch), (key.public(), credential.chain(), 7));
        assert_eq!(bundle(&keep).unwrap(), authority.bundle);
        assert!(keep.0.lock().unwrap().iter().all(|(name, blob)| name.len() <= 64 && blob.len() < 4096));
        assert!(get(&keep, &authority.id("shop", "other")).is_none());
        // Of another trust domain: the blob says whose it is.
        assert!(get(&keep, &TestAuthority::new("elsewhere").id("shop", "web")).is_none());
        assert_eq!(accounts(&keep), [credential.id().account.clone()]);
        remove(&keep, &credential.id().account);
        assert!(get(&keep, credential.id()).is_none());
    }

    proptest! {
        #[test]
        fn a_blob_that_is_none_is_never_more_than_nothing(blob in proptest::collection::vec(any::<u8>(), 0..64), magic in any::<bool>()) {
            let (keep, id) = (Memory::default(), TestAuthority::new("cluster.local").id("shop", "web"));
            let blob = if magic { [MAGIC, &blob].concat() } else { blob };
            keep.put(&name(&id.account), &blob).unwrap();
            keep.put(BUNDLE, &blob).unwrap();
            prop_assert!(get(&keep, &id).is_none() && bundle(&keep).is_none());
        }
    }
}
