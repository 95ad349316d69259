//! What a signer elsewhere answers, checked before anybody gets it: our own issuer makes what is ordered, another one may make anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::{
    authority::signer::{Order, SignError},
    bundle::{self, Bundle},
    credential, limits, svid, verify,
};

fn bad(error: impl std::fmt::Display) -> SignError {
    SignError::BadAnswer(error.to_string())
}

/// Takes the roots off a chain's end: peers have them already.
pub fn without_roots(chain: &mut Vec<CertificateDer<'static>>, bundle: &Bundle) {
    while chain.len() > 1 && chain.last().is_some_and(|last| bundle.roots().contains(last)) {
        chain.pop();
    }
}

/// Checks a workload's certificate as the agent will: identity, key, usage, and a chain to a root of the bundle for both roles. And its
/// life: what lives longer than was ordered is of use for longer when it is stolen, and what ends sooner could not be renewed in time.
///
/// # Errors
/// [`SignError::BadAnswer`], with what speaks against it.
pub fn workload(
    order: &Order,
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    life: Duration,
    now: SystemTime,
) -> Result<(), SignError> {
    let svid = credential::check(&order.id, &order.request.public_key, chain, bundle, now).map_err(bad)?;
    check_life(svid.not_after, life, now)
}

/// Checks the certificate of the authority's own server, all but whether its chain is trusted ([`trusted`]): names, key, life, and that
/// everything above it may sign workloads. When it ends.
///
/// # Errors
/// [`SignError::BadAnswer`], with what speaks against it.
pub fn server(
    names: &[String],
    public_key: &[u8],
    chain: &[CertificateDer<'_>],
    life: Duration,
    now: SystemTime,
) -> Result<SystemTime, SignError> {
    let (leaf, above) = credential::split(chain).map_err(bad)?;
    if leaf.len() > limits::CERTIFICATE_MAX {
        return Err(bad(format_args!("it has {} bytes, of at most {}", leaf.len(), limits::CERTIFICATE_MAX)));
    }
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| bad("it is no X.509 certificate"))?;
    let has: Vec<&str> = match parsed.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().filter_map(dns).collect(),
        _ => Vec::new(),
    };
    if let Some(missing) = names.iter().find(|name| !has.contains(&name.as_str())) {
        return Err(bad(format_args!("it is not for {missing}, for which it was ordered")));
    }
    if !credential::is_for(leaf, public_key) {
        return Err(bad("it is for another key than the one that it was ordered with"));
    }
    for (number, certificate) in above.iter().enumerate() {
        bundle::check_ca(certificate).map_err(|error| {
            bad(format_args!("certificate {} of its chain cannot sign workloads: {error}", number + 2))
        })?;
    }
    let ends = svid::when(parsed.validity().not_after.timestamp());
    check_life(ends, life, now)?;
    Ok(ends)
}

fn dns<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    if let GeneralName::DNSName(name) = name { Some(name) } else { None }
}

/// Whether everybody who has these roots trusts a server with this chain.
///
/// # Errors
/// [`SignError::BadAnswer`]: not.
pub fn trusted(chain: &[CertificateDer<'_>], bundle: &Bundle, now: SystemTime) -> Result<(), SignError> {
    let (leaf, above) = credential::split(chain).map_err(bad)?;
    // A clock that is a little behind is no reason.
    let at = now + limits::CLOCK_AHEAD_MAX;
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    verify::server_chain(bundle, leaf, above, at)
        .map_err(|error| bad(format_args!("its chain does not lead to the roots: {error}")))
}

fn check_life(ends: SystemTime, ordered: Duration, now: SystemTime) -> Result<(), SignError> {
    let left = ends.duration_since(now).unwrap_or_default();
    if left > ordered + limits::BACKDATE_MAX {
        return Err(bad(format_args!("it lives for {} s, and {} were ordered", left.as_secs(), ordered.as_secs())));
    }
    if left < ordered.min(limits::TTL_MIN) / 2 {
        return Err(bad(format_args!("it ends in {} s, sooner than it could be renewed", left.as_secs())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signs, KeyPair,
        KeyUsagePurpose, SanType,
    };

    use super::*;
    use crate::{key::PrivateKey, request, spiffe::SpiffeId};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Pki {
        root: CertificateDer<'static>,
        params: CertificateParams,
        key: KeyPair,
    }

    impl Pki {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let key = KeyPair::generate().unwrap();
            Self { root: params.self_signed(&key).unwrap().der().clone(), params, key }
        }

        fn bundle(&self) -> Bundle {
            Bundle::from_der(vec![self.root.clone()]).unwrap()
        }

        fn sign(
            &self,
            key: &PrivateKey,
            name: SanType,
            change: impl Fn(&mut CertificateParams),
        ) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![name];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.not_before = SystemTime::now().into();
            params.not_after = (SystemTime::now() + DAY).into();
            change(&mut params);
            params.signed_by(key.pair(), &Signs::from_params(&self.params, &self.key)).unwrap().der().clone()
        }
    }

    fn ends(params: &mut CertificateParams, after: Duration) {
        params.not_after = (SystemTime::now() + after).into();
    }

    #[test]
    fn only_what_was_ordered_is_taken_for_a_workload() {
        let (pki, other, key) = (Pki::new("one"), Pki::new("two"), PrivateKey::generate().unwrap());
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let mine = || uri(&id.to_string());
        let checked = request::check(&request::create(&id, &key).unwrap(), &id).unwrap();
        let order = Order { id: id.clone(), request: checked };
        let check =
            |chain: &[CertificateDer<'static>], life| workload(&order, chain, &pki.bundle(), life, SystemTime::now());
        let good = pki.sign(&key, mine(), |_| {});
        assert_eq!(check(std::slice::from_ref(&good), DAY), Ok(()));
        let mut with_root = vec![good.clone(), pki.root.clone()];
        without_roots(&mut with_root, &pki.bundle());
        assert_eq!(with_root, std::slice::from_ref(&good));
        let foreign_key = PrivateKey::generate().unwrap();
        let cases = [
            ("chain is empty", vec![]),
            ("no X.509", vec![CertificateDer::from(vec![1, 2, 3])]),
            ("where spiffe", vec![pki.sign(&key, uri("spiffe://cluster.local/ns/shop/sa/admin"), |_| {})]),
            ("where spiffe", vec![pki.sign(&key, uri("spiffe://other/ns/shop/sa/web"), |_| {})]),
            ("no URI", vec![pki.sign(&key, SanType::DnsName("web".try_into().unwrap()), |_| {})]),
            ("another key", vec![pki.sign(&foreign_key, mine(), |_| {})]),
            ("not trusted", vec![other.sign(&key, mine(), |_| {})]),
            (
                "authority",
                vec![pki.sign(&key, mine(), |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))],
            ),
            ("both", vec![pki.sign(&key, mine(), |params| drop(params.extended_key_usages.pop()))]),
            ("were ordered", vec![pki.sign(&key, mine(), |params| ends(params, 2 * DAY))]),
            ("sooner", vec![pki.sign(&key, mine(), |params| ends(params, Duration::from_secs(60)))]),
            ("certificates, of at most", vec![good.clone(); 7]),
        ];
        for (words, chain) in cases {
            let error = check(&chain, DAY).unwrap_err();
            assert_eq!(error.reason(), "signer_bad_answer");
            assert!(error.to_string().contains(words), "{error}, not {words}");
        }
    }

    #[test]
    fn only_what_was_ordered_is_taken_for_the_server() {
        let (pki, other, key) = (Pki::new("one"), Pki::new("two"), PrivateKey::generate().unwrap());
        let names = ["weft-ca.weft-system.svc".to_owned()];
        let name = |text: &str| SanType::DnsName(text.try_into().unwrap());
        let check = |leaf: CertificateDer<'static>| server(&names, &key.public(), &[leaf], DAY, SystemTime::now());
        let good = pki.sign(&key, name(&names[0]), |_| {});
        assert!(check(good.clone()).unwrap() > SystemTime::now() + DAY - Duration::from_secs(5));
        let foreign_key = PrivateKey::generate().unwrap();
        for (words, leaf) in [
            ("is not for", pki.sign(&key, name("weft-ca"), |_| {})),
            ("another key", pki.sign(&foreign_key, name(&names[0]), |_| {})),
            ("were ordered", pki.sign(&key, name(&names[0]), |params| ends(params, 2 * DAY))),
        ] {
            let error = check(leaf).unwrap_err().to_string();
            assert!(error.contains(words), "{error}, not {words}");
        }
        let error = server(&names, &key.public(), &[good.clone(), good.clone()], DAY, SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("certificate 2 of its chain"), "{error}");
        assert_eq!(trusted(std::slice::from_ref(&good), &pki.bundle(), SystemTime::now()), Ok(()));
        assert!(trusted(&[good], &other.bundle(), SystemTime::now()).is_err());
    }

    #[test]
    fn the_servers_request_has_its_names_and_nothing_else() {
        let key = PrivateKey::generate().unwrap();
        let der = request::create_server(&["weft-ca.weft-system.svc".to_owned()], &key).unwrap();
        let pem = request::to_pem(&der);
        assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"), "{pem}");
        let read = rcgen::CertificateSigningRequestParams::from_pem(&pem).unwrap();
        let name = SanType::DnsName("weft-ca.weft-system.svc".try_into().unwrap());
        assert_eq!(read.params.subject_alt_names, [name]);
        assert!(request::create_server(&["no name\u{e9}".to_owned()], &key).is_err());
    }
}
