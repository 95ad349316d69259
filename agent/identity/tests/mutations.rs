//! Bytes of others, changed anywhere: they are read or refused, and never anything else.

#![allow(clippy::unwrap_used)]

use std::{sync::OnceLock, time::SystemTime};

use proptest::{prelude::*, sample::Index};
use weft_identity::{
    Bundle, Credential, SpiffeId, Svid,
    authority::{Issuer, Profile, Rotation},
    key::PrivateKey,
    request,
    testing::TestAuthority,
};

struct Made {
    authority: TestAuthority,
    id: SpiffeId,
    key: PrivateKey,
    leaf: Vec<u8>,
    request: Vec<u8>,
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let authority = TestAuthority::new("cluster.local");
        let (id, key) = (authority.id("shop", "web"), PrivateKey::generate().unwrap());
        let chain = authority.issuer.sign(&id, &key.public(), &Profile::default(), SystemTime::now()).unwrap();
        let request = request::create(&id, &key).unwrap();
        Made { authority, id, key, leaf: chain[0].to_vec(), request }
    })
}

/// Some bytes changed, and perhaps the end cut off.
fn change(bytes: &[u8], changes: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, by) in changes {
        let at = at.index(bytes.len());
        bytes[at] ^= by;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

fn changes() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (proptest::collection::vec((any::<Index>(), 1_u8..), 1..4), proptest::option::weighted(0.2, any::<Index>()))
}

proptest! {
    #[test]
    fn a_changed_certificate_is_never_taken((changes, cut) in changes()) {
        let made = made();
        let leaf = change(&made.leaf, &changes, cut);
        prop_assume!(leaf != made.leaf);
        // What can still be read says an identity of ours, and its signature is wrong.
        if let Ok(svid) = Svid::from_der(&leaf) {
            prop_assert!(svid.id.to_string().parse() == Ok(svid.id));
        }
        let chain = vec![leaf.into()];
        prop_assert!(Credential::new(&made.id, &made.key, chain, made.authority.bundle.clone(), SystemTime::now()).is_err());
    }

    #[test]
    fn a_changed_request_is_never_signed((changes, cut) in changes()) {
        let made = made();
        let bytes = change(&made.request, &changes, cut);
        prop_assume!(bytes != made.request);
        // A signature of ECDSA has a second form that is as valid; what was asked for is the same then.
        if let Ok(checked) = request::check(&bytes, &made.id) {
            prop_assert_eq!(checked.public_key, made.key.public());
        }
    }

    #[test]
    fn changed_roots_and_issuers_are_read_or_refused((changes, cut) in changes()) {
        let made = made();
        let roots = change(made.authority.bundle.to_pem().as_bytes(), &changes, cut);
        let _ = Bundle::from_pem(&roots);
        let chain = change(made.authority.issuer.chain_pem().as_bytes(), &changes, cut);
        let (key, profile) = (made.authority.issuer.key_pem(), Profile::default());
        let _ = Issuer::from_pem(&chain, key.as_bytes(), &made.authority.bundle, &profile, SystemTime::now());
        let _ = PrivateKey::from_pem(&change(key.as_bytes(), &changes, cut));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let made = made();
        let _ = Svid::from_der(&bytes);
        let _ = request::check(&bytes, &made.id);
        let _ = Bundle::from_pem(&bytes);
        let _ = Bundle::from_der(vec![bytes.clone().into()]);
        let _ = PrivateKey::from_pkcs8(&bytes);
        let _ = String::from_utf8_lossy(&bytes).parse::<Rotation>();
    }
}
