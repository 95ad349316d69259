//! The authority's keys and what they sign: what is taken from a user, and what is refused before it breaks something.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
    SanType,
};
use weft_identity::{
    Bundle, Credential, SpiffeId, Svid,
    authority::{Issuer, Profile, Root},
    key::PrivateKey,
    request,
    testing::{Flaw, TestAuthority},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::now()
}

#[test]
fn a_signed_certificate_has_our_profile() {
    let authority = TestAuthority::new("cluster.local");
    let (id, key) = (authority.id("shop", "web"), PrivateKey::generate().unwrap());
    let chain = authority.issuer.sign(&id, &key.public(), &Profile::default(), now()).unwrap();
    let svid = Svid::from_der(&chain[0]).unwrap();
    assert_eq!(svid.id, id);
    let (lasts, late) = (svid.not_after.duration_since(now()).unwrap(), now().duration_since(svid.not_before).unwrap());
    assert!(lasts > DAY - Duration::from_secs(10) && lasts <= DAY, "{lasts:?}");
    assert!(late >= Duration::from_secs(299) && late < Duration::from_secs(310), "{late:?}");
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0, "no subject");
    assert!((15..=16).contains(&leaf.raw_serial().len()), "128 bits: {}", svid.serial);
    let critical = |oid| leaf.get_extension_unique(&oid).unwrap().unwrap().critical;
    use x509_parser::oid_registry::{
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    };
    for oid in [OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME] {
        assert!(critical(oid.clone()), "{oid}");
    }
    let again = authority.issuer.sign(&id, &key.public(), &Profile::default(), now()).unwrap();
    assert_ne!(Svid::from_der(&again[0]).unwrap().serial, svid.serial);
}

#[test]
fn a_root_and_its_issuer_survive_a_secret() {
    let root = Root::generate(now()).unwrap();
    let issuer = root.issuer(now()).unwrap();
    let bundle = Bundle::from_pem(root.certificate_pem().as_bytes()).unwrap();
    let profile = Profile::default();
    let root = Root::from_pem(root.certificate_pem().as_bytes(), root.key_pem().as_bytes(), now()).unwrap();
    // As users write them: with the root at the end.
    let chain = issuer.chain_pem() + &root.certificate_pem();
    let issuer = Issuer::from_pem(chain.as_bytes(), issuer.key_pem().as_bytes(), &bundle, &profile, now()).unwrap();
    assert_eq!(issuer.chain_pem().matches("BEGIN").count(), 1, "peers have the root");
    root.issuer(now()).unwrap().check(&bundle, &profile, now()).unwrap();
}

/// A CA of a user's, made as told, below `above` or by itself.
fn ca(
    name: &str,
    above: Option<(&CertificateParams, &KeyPair)>,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateParams, KeyPair, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = ((now() - DAY).into(), (now() + 100 * DAY).into());
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = match above {
        Some((above, above_key)) => params.signed_by(&key, &rcgen::Issuer::from_params(above, above_key)),
        None => params.self_signed(&key),
    };
    let pem = certificate.unwrap().pem();
    (params, key, pem)
}

#[test]
fn an_issuer_that_would_break_later_is_refused_when_it_is_loaded() {
    let (root, root_key, root_pem) = ca("root", None, |_| {});
    let bundle = Bundle::from_pem(root_pem.as_bytes()).unwrap();
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;
    let constraints = |subtree| NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] };
    let uri_constraint = |params: &mut CertificateParams| {
        // rcgen has no words for constraints of URIs: permitted, [6] "cluster.local".
        let content = [&[0x30, 0x13, 0xa0, 0x11, 0x30, 0x0f, 0x86, 0x0d][..], b"cluster.local"].concat();
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], content));
    };
    let cases: Vec<(&str, Change)> = vec![
        ("not_ca", Box::new(|params| params.is_ca = IsCa::ExplicitNoCa)),
        ("not_ca", Box::new(|params| params.is_ca = IsCa::NoCa)),
        ("bad_usage", Box::new(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature])),
        ("bad_usage", Box::new(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth])),
        ("expired", Box::new(|params| params.not_after = (now() - DAY / 2).into())),
        ("not_yet_valid", Box::new(|params| params.not_before = (now() + DAY).into())),
        ("too_short", Box::new(|params| params.not_after = (now() + DAY / 2).into())),
        ("uri_constraints", Box::new(uri_constraint)),
        // A chain with constraints of DNS names alone is fine for URIs.
        (
            "",
            Box::new(move |params| {
                params.name_constraints = Some(constraints(GeneralSubtree::DnsName("svc".to_owned())));
            }),
        ),
        ("", Box::new(|_| {})),
    ];
    for (reason, change) in cases {
        let (_, key, pem) = ca("issuer", Some((&root, &root_key)), change);
        let issuer =
            Issuer::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes(), &bundle, &Profile::default(), now());
        assert_eq!(issuer.err().map_or("", |error| error.reason()), reason);
    }

    let load = |chain: &str, key: &KeyPair, bundle: &Bundle| {
        Issuer::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes(), bundle, &Profile::default(), now())
            .err()
            .map(|error| error.reason())
    };
    let (_, key, pem) = ca("issuer", Some((&root, &root_key)), |_| {});
    let other_root = TestAuthority::new("cluster.local").bundle;
    assert_eq!(load(&pem, &key, &other_root), Some("untrusted"));
    assert_eq!(load(&pem, &KeyPair::generate().unwrap(), &bundle), Some("wrong_key"));
    assert_eq!(load("", &key, &bundle), Some("bad_encoding"));
    assert_eq!(load(&pem.repeat(5), &key, &bundle), Some("too_large"));
    assert_eq!(load(&"x".repeat(70_000), &key, &bundle), Some("too_large"));
    let other_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(load(&pem, &other_key, &bundle), Some("bad_key"));
    // An intermediate that allows no other below it, with one below it.
    let (middle, middle_key, middle_pem) =
        ca("middle", Some((&root, &root_key)), |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let (_, key, pem) = ca("issuer", Some((&middle, &middle_key)), |_| {});
    assert_eq!(load(&(pem + &middle_pem), &key, &bundle), Some("path_length"));
    // And a root that allows none.
    let (root, root_key, root_pem) =
        ca("root", None, |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let (_, key, pem) = ca("issuer", Some((&root, &root_key)), |_| {});
    assert_eq!(load(&pem, &key, &Bundle::from_pem(root_pem.as_bytes()).unwrap()), None, "one issuer is what it allows");
}

#[test]
fn a_bundle_is_checked_and_known_by_its_hash() {
    let (one, two) = (Root::generate(now()).unwrap(), Root::generate(now()).unwrap());
    let (a, b) = (one.certificate_pem(), two.certificate_pem());
    let bundle = |text: String| Bundle::from_pem(text.as_bytes());
    let both = bundle(format!("{a}{b}")).unwrap();
    assert_eq!(both.sha256(), bundle(format!("{b}\n{a}{b}")).unwrap().sha256(), "order and repetition do not matter");
    assert_ne!(both.sha256(), bundle(a.clone()).unwrap().sha256());
    assert_eq!(bundle(both.to_pem()).unwrap(), both);
    let leaf = weft_identity::bundle::to_pem(&TestAuthority::new("a").flawed(Flaw::Expired, &id("a")).chain[..1]);
    for (text, words) in [
        (String::new(), "the bundle has no certificate"),
        ("garbage".to_owned(), "the bundle has no certificate"),
        (
            format!("{a}{leaf}"),
            "certificate 2 of the bundle cannot be a root: it is not a certificate authority's (basic constraints)",
        ),
        ("x".repeat(65_537), "the bundle has 65537 bytes, of at most 65536"),
        (a.repeat(17), "the bundle has 17 roots, of at most 16"),
    ] {
        assert_eq!(bundle(text).unwrap_err().to_string(), words);
    }
}

fn id(domain: &str) -> SpiffeId {
    format!("spiffe://{domain}/ns/shop/sa/web").parse().unwrap()
}

#[test]
fn a_request_is_checked_before_anything_of_it_is_used() {
    let (id, key) = (id("cluster.local"), PrivateKey::generate().unwrap());
    let good = request::create(&id, &key).unwrap();
    assert_eq!(request::check(&good, &id).unwrap().public_key, key.public());

    let pair = || KeyPair::generate().unwrap();
    let with = |change: &dyn Fn(&mut CertificateParams), pair: &KeyPair| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.serialize_request(pair).unwrap().der().to_vec()
    };
    let names = |names: Vec<SanType>| {
        with(&move |params: &mut CertificateParams| params.subject_alt_names.clone_from(&names), &pair())
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    assert!(request::check(&names(vec![]), &id).is_ok(), "no names at all are fine: they are computed here");
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (bytes, reason) in [
        (Vec::new(), "bad_request"),
        (b"garbage".to_vec(), "bad_request"),
        ([&good[..], b"x"].concat(), "bad_request"),
        (vec![0x30; 5000], "too_large"),
        (forged, "bad_signature"),
        (with(&|_| {}, &p384), "bad_key"),
        (names(vec![uri("spiffe://cluster.local/ns/shop/sa/admin")]), "wrong_names"),
        (names(vec![uri(&id.to_string()), uri(&id.to_string())]), "wrong_names"),
        (names(vec![uri(&id.to_string()), SanType::DnsName("api".try_into().unwrap())]), "wrong_names"),
        (names(vec![SanType::DnsName("api".try_into().unwrap())]), "wrong_names"),
        (with(&|params| params.distinguished_name.push(DnType::CommonName, "admin"), &pair()), "wrong_names"),
        (with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), &pair()), "wrong_names"),
        (with(&|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign], &pair()), "wrong_names"),
    ] {
        assert_eq!(request::check(&bytes, &id).map(|_| ()).map_err(|error| error.reason()), Err(reason));
    }
}

#[test]
fn an_answer_that_is_not_ours_is_not_taken() {
    let authority = TestAuthority::new("cluster.local");
    let (id, key) = (authority.id("shop", "web"), PrivateKey::generate().unwrap());
    let take = |chain| {
        Credential::new(&id, &key, chain, authority.bundle.clone(), now()).map(|_| ()).map_err(|error| error.reason())
    };
    let sign = |id: &SpiffeId, key: &PrivateKey, at| {
        authority.issuer.sign(id, &key.public(), &Profile::default(), at).unwrap()
    };
    assert_eq!(take(sign(&id, &key, now())), Ok(()));
    assert_eq!(take(sign(&authority.id("shop", "admin"), &key, now())), Err("wrong_identity"));
    assert_eq!(take(sign(&id, &PrivateKey::generate().unwrap(), now())), Err("wrong_key"));
    assert_eq!(take(sign(&id, &key, now() - 2 * DAY)), Err("expired"));
    assert_eq!(take(sign(&id, &key, now() + DAY)), Err("not_yet_valid"));
    assert_eq!(
        take(sign(&id, &key, now() + Duration::from_secs(345))),
        Ok(()),
        "45 s ahead is what clocks may differ by"
    );
    assert_eq!(take(Vec::new()), Err("no_certificate"));
    assert_eq!(take(vec![b"garbage".to_vec().into()]), Err("bad_encoding"));
    assert_eq!(take(vec![vec![0x30; 10 << 20].into()]), Err("too_large"));
    assert_eq!(take([sign(&id, &key, now()), vec![vec![0x30; 10 << 20].into()]].concat()), Err("too_large"));
    let other = TestAuthority::new("cluster.local");
    assert_eq!(take(other.issuer.sign(&id, &key.public(), &Profile::default(), now()).unwrap()), Err("unknown_issuer"));
    assert_eq!(
        take(sign(&id, &key, now())[..1].to_vec()),
        Err("unknown_issuer"),
        "the issuer's certificate is missing"
    );
}

#[test]
fn only_lives_that_survive_a_restart_can_be_configured() {
    for (seconds, is_fine) in [(0, false), (599, false), (600, true), (86_400, true), (86_401, false)] {
        assert_eq!(Profile::new(Duration::from_secs(seconds)).is_ok(), is_fine, "{seconds}");
    }
}
