//! For tests: an authority with a root of its own, certificates of every bad kind, and a fixed set of credentials.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::CertificateDer,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::sync::watch;
use weft_policy::names::ServiceAccountKey;

use crate::{
    authority::{Issuer, Profile, Root},
    bundle::Bundle,
    credential::{self, Credential, Credentials},
    key::PrivateKey,
    limits,
    refusal::Reason,
    spiffe::{SpiffeId, TrustDomain},
    tls::Alpn,
};

/// An authority of its own: root, issuer, and the bundle that trusts it.
pub struct TestAuthority {
    /// The root.
    pub root: Root,
    /// What it signs with.
    pub issuer: Issuer,
    /// What trusts it.
    pub bundle: Arc<Bundle>,
    /// Whose names it gives.
    pub trust_domain: TrustDomain,
}

impl TestAuthority {
    /// A new one.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        let root = Root::generate(SystemTime::now()).unwrap();
        let issuer = root.issuer(SystemTime::now()).unwrap();
        let bundle = Arc::new(Bundle::from_der(vec![root.certificate().clone()]).unwrap());
        Self { root, issuer, bundle, trust_domain: TrustDomain::new(trust_domain).unwrap() }
    }

    /// The identity of an account.
    #[must_use]
    pub fn id(&self, namespace: &str, account: &str) -> SpiffeId {
        self.trust_domain.account(&ServiceAccountKey::new(namespace, account)).unwrap()
    }

    /// A good credential of an account, for an hour.
    #[must_use]
    pub fn credential(&self, namespace: &str, account: &str) -> Arc<Credential> {
        self.credential_for(namespace, account, Duration::from_secs(3600))
    }

    /// A good credential of an account, for as long as told.
    #[must_use]
    pub fn credential_for(&self, namespace: &str, account: &str, ttl: Duration) -> Arc<Credential> {
        let (id, key, now) = (self.id(namespace, account), PrivateKey::generate().unwrap(), SystemTime::now());
        let chain = self.issuer.sign(&id, &key.public(), &Profile::unchecked(ttl), now).unwrap();
        Credential::new(&id, &key, chain, self.bundle.clone(), now).unwrap()
    }

    /// A set of good credentials, of accounts written `namespace/name`.
    #[must_use]
    pub fn credentials(&self, accounts: &[&str]) -> Arc<FixedCredentials> {
        let set = FixedCredentials::new(self.trust_domain.clone());
        for account in accounts {
            let (namespace, name) = account.split_once('/').unwrap();
            set.put(&self.credential(namespace, name));
        }
        set
    }

    /// A certificate with a flaw, and a key to show it with.
    #[must_use]
    pub fn flawed(&self, flaw: Flaw, id: &SpiffeId) -> Presented {
        let (key, now) = (PrivateKey::generate().unwrap(), SystemTime::now());
        let day = Duration::from_secs(24 * 3600);
        let profile = Profile::default();
        let far = now + 365 * day;
        let good = || profile.workload(id, now, far).unwrap();
        let with = |names: Vec<SanType>| {
            let mut params = good();
            params.subject_alt_names = names;
            params
        };
        let uri = |text: String| SanType::URI(text.try_into().unwrap());
        let dns = || SanType::DnsName("server.shop.svc".try_into().unwrap());
        let text = id.to_string();
        let params = match flaw {
            Flaw::Expired => profile.workload(id, now - 3 * day, far).unwrap(),
            Flaw::Future => profile.workload(id, now + day, far).unwrap(),
            Flaw::ForeignRoot => {
                let other = Self::new(self.trust_domain.as_str());
                let chain = other.issuer.sign(id, &key.public(), &profile, now).unwrap();
                return Presented { chain, key };
            }
            Flaw::ForeignTrustDomain => with(vec![uri(text.replacen(self.trust_domain.as_str(), "elsewhere.test", 1))]),
            Flaw::WrongIdentity => with(vec![uri(format!("{text}-not"))]),
            Flaw::CaLeaf => {
                let mut params = good();
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages.push(KeyUsagePurpose::KeyCertSign);
                params
            }
            Flaw::WrongUsage => {
                let mut params = good();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
                params
            }
            Flaw::DnsOnly => with(vec![dns()]),
            Flaw::NoNames => with(Vec::new()),
            Flaw::TwoUris => with(vec![uri(text.clone()), uri(format!("{text}-too"))]),
            Flaw::Nul => with(vec![uri(format!("{text}\0.evil"))]),
            Flaw::PercentSlash => with(vec![uri(text.replacen("/sa/", "%2Fsa%2F", 1))]),
            Flaw::Userinfo => with(vec![uri(text.replacen("spiffe://", "spiffe://root@", 1))]),
            Flaw::TooLong => {
                let tail = "a".repeat(limits::SPIFFE_ID_MAX + 1 - text.len());
                with(vec![uri(text + &tail)])
            }
            Flaw::SelfSigned => {
                let leaf = good().self_signed(key.pair()).unwrap();
                return Presented { chain: vec![leaf.der().clone()], key };
            }
            Flaw::Rsa1024 => {
                let mut chain = self.sign(&good(), &Rsa1024);
                chain.extend(self.chain());
                return Presented { chain, key };
            }
            Flaw::BadSignature => {
                let mut leaf = self.sign(&good(), key.pair()).remove(0).to_vec();
                *leaf.last_mut().unwrap() ^= 1;
                return Presented { chain: std::iter::once(leaf.into()).chain(self.chain()).collect(), key };
            }
        };
        let mut chain = self.sign(&params, key.pair());
        chain.extend(self.chain());
        Presented { chain, key }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        use rustls::pki_types::pem::PemObject as _;
        CertificateDer::pem_slice_iter(self.issuer.chain_pem().as_bytes()).map(Result::unwrap).collect()
    }

    fn sign(&self, params: &CertificateParams, public: &impl PublicKeyData) -> Vec<CertificateDer<'static>> {
        let (chain, key) = (self.chain(), PrivateKey::from_pem(self.issuer.key_pem().as_bytes()).unwrap());
        let issuer = rcgen::Issuer::from_ca_cert_der(&chain[0], key.pair()).unwrap();
        vec![params.signed_by(public, &issuer).unwrap().der().clone()]
    }
}

/// What can be wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Flaw {
    Expired,
    Future,
    ForeignRoot,
    ForeignTrustDomain,
    WrongIdentity,
    CaLeaf,
    WrongUsage,
    DnsOnly,
    NoNames,
    TwoUris,
    Nul,
    PercentSlash,
    Userinfo,
    TooLong,
    SelfSigned,
    Rsa1024,
    BadSignature,
}

impl Flaw {
    /// All of them, and the reason for which each is refused. A server takes [`Flaw::WrongIdentity`]: it is for policy to decide.
    pub const ALL: [(Self, Reason); 17] = [
        (Self::Expired, Reason::Expired),
        (Self::Future, Reason::NotYetValid),
        (Self::ForeignRoot, Reason::UnknownIssuer),
        (Self::ForeignTrustDomain, Reason::WrongTrustDomain),
        (Self::WrongIdentity, Reason::WrongIdentity),
        (Self::CaLeaf, Reason::IsCa),
        (Self::WrongUsage, Reason::BadUsage),
        (Self::DnsOnly, Reason::NoUri),
        (Self::NoNames, Reason::NoUri),
        (Self::TwoUris, Reason::TwoUris),
        (Self::Nul, Reason::BadSpiffeId),
        (Self::PercentSlash, Reason::BadSpiffeId),
        (Self::Userinfo, Reason::BadSpiffeId),
        (Self::TooLong, Reason::TooLarge),
        (Self::SelfSigned, Reason::SelfSigned),
        (Self::Rsa1024, Reason::BadKey),
        (Self::BadSignature, Reason::BadSignature),
    ];
}

/// Any certificate with any key, shown without a look at it.
pub struct Presented {
    /// The certificate and what comes with it.
    pub chain: Vec<CertificateDer<'static>>,
    /// What handshakes are signed with.
    pub key: PrivateKey,
}

impl Presented {
    fn certified(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), self.key.signing().unwrap())))
    }

    /// A client that shows it, and itself checks servers as it should.
    #[must_use]
    pub fn client_config(&self, bundle: &Arc<Bundle>, expected: &SpiffeId, alpn: Alpn) -> Arc<ClientConfig> {
        credential::client_config(bundle, expected, alpn, &self.certified())
    }

    /// A server that shows it, and itself checks clients as it should.
    #[must_use]
    pub fn server_config(&self, bundle: &Arc<Bundle>, domain: &TrustDomain) -> Arc<ServerConfig> {
        Arc::new(credential::server_config(bundle, domain, &self.certified()).unwrap())
    }
}

/// A public key of RSA with 1,024 bits; nobody has its private half.
struct Rsa1024;

impl PublicKeyData for Rsa1024 {
    fn der_bytes(&self) -> &[u8] {
        // RSAPublicKey (RFC 8017, A.1.1): a modulus of 128 bytes and the exponent 65,537.
        const DER: [u8; 140] = {
            let mut der = [0xab; 140];
            let head = [0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
            let tail = [0x02, 0x03, 0x01, 0x00, 0x01];
            let mut index = 0;
            while index < head.len() {
                der[index] = head[index];
                index += 1;
            }
            index = 0;
            while index < tail.len() {
                der[135 + index] = tail[index];
                index += 1;
            }
            der
        };
        &DER
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// Credentials that change only when a test says so.
pub struct FixedCredentials {
    trust_domain: TrustDomain,
    set: ArcSwap<HashMap<ServiceAccountKey, Arc<Credential>>>,
    changed: watch::Sender<u64>,
}

impl FixedCredentials {
    /// None yet.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Arc<Self> {
        Arc::new(Self { trust_domain, set: ArcSwap::default(), changed: watch::Sender::new(0) })
    }

    /// Puts a credential in the place of its account's.
    pub fn put(&self, credential: &Arc<Credential>) {
        self.update(|set| {
            set.insert(credential.id().account.clone(), credential.clone());
        });
    }

    /// Takes an account's credential away.
    pub fn remove(&self, account: &ServiceAccountKey) {
        self.update(|set| {
            set.remove(account);
        });
    }

    fn update(&self, change: impl Fn(&mut HashMap<ServiceAccountKey, Arc<Credential>>)) {
        self.set.rcu(|set| {
            let mut set = HashMap::clone(set);
            change(&mut set);
            set
        });
        self.changed.send_modify(|version| *version += 1);
    }
}

impl Credentials for FixedCredentials {
    fn of(&self, account: &ServiceAccountKey) -> Option<Arc<Credential>> {
        self.set.load().get(account).cloned()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}
