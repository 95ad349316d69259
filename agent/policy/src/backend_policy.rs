//! What holds for all requests and connections to one Service port, wherever they were routed from. It is kept beside the port's endpoints, so
//! that a change of it recompiles nothing.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderName, header};
use serde::{Serialize, Serializer};

use crate::{hash::StableHash, matcher::RequestHead, names::ObjectRef, query};

/// How the endpoints of one Service port are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackendPolicy {
    /// The BackendPolicy that says so; `None` where only the Service's annotation, or nothing, does.
    pub origin: Option<ObjectRef>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// What a balancer that hashes goes by: the first of these that a request has; the client's address if there are none at all.
    pub hash_on: Vec<HashKey>,
    /// How long an endpoint that has come takes until it gets as much as the others.
    pub slow_start: Option<Duration>,
}

/// How an endpoint is chosen within a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The less loaded of two random endpoints (Mitzenmacher 2001, "The Power of Two Choices").
    #[default]
    LeastRequest,
    /// Each in turn, per worker.
    RoundRobin,
    /// Any.
    Random,
    /// The one of two random endpoints that answers sooner, by a moving average that follows peaks at once (Finagle).
    PeakEwma,
    /// By hash, on a ring on which every endpoint has many points (Karger 1997).
    RingHash,
    /// By hash, in a table that endpoints fill in turns (Eisenbud 2016, "Maglev").
    Maglev,
}

/// What a request is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum HashKey {
    /// A field's values.
    Header(#[serde(serialize_with = "name")] HeaderName),
    /// The value of a cookie (RFC 6265).
    Cookie(Arc<str>),
    /// The first value of a parameter of the query, decoded.
    Query(Arc<str>),
    /// The client's address.
    SourceAddress,
}

impl Balance {
    /// Every way.
    pub const ALL: [Self; 6] =
        [Self::LeastRequest, Self::RoundRobin, Self::Random, Self::PeakEwma, Self::RingHash, Self::Maglev];

    /// The word for people: `least-request`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::PeakEwma => "peak-ewma",
            Self::RingHash => "ring-hash",
            Self::Maglev => "maglev",
        }
    }

    /// Whether one key leads to one endpoint.
    #[must_use]
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

impl BackendPolicy {
    /// One that says nothing but how an endpoint is chosen.
    #[must_use]
    pub fn balanced(balance: Balance) -> Self {
        Self { balance, ..Self::default() }
    }

    /// The same, shared: most Service ports have no more to say, and there may be a hundred thousand.
    #[must_use]
    pub fn shared(balance: Balance) -> Arc<Self> {
        static SHARED: LazyLock<[Arc<BackendPolicy>; Balance::ALL.len()]> =
            LazyLock::new(|| Balance::ALL.map(|balance| Arc::new(BackendPolicy::balanced(balance))));
        let place = Balance::ALL.iter().position(|one| *one == balance).unwrap_or_default();
        Arc::clone(&SHARED[place])
    }

    /// The hash of what a request is known by; `None` if it has nothing of what was asked for. A connection that is not looked into has
    /// no request. Takes no lock, allocates nothing.
    #[must_use]
    pub fn hash(&self, head: Option<&RequestHead<'_>>, source: IpAddr) -> Option<u64> {
        if self.hash_on.is_empty() {
            return HashKey::SourceAddress.hash(head, source);
        }
        self.hash_on.iter().find_map(|key| key.hash(head, source))
    }

    /// Whether a request may lead elsewhere than the connection that it came on would.
    #[must_use]
    pub fn looks_at_requests(&self) -> bool {
        self.balance.hashes() && self.hash_on.iter().any(|key| !matches!(key, HashKey::SourceAddress))
    }
}

impl HashKey {
    fn hash(&self, head: Option<&RequestHead<'_>>, source: IpAddr) -> Option<u64> {
        let mut hash = StableHash::new(0);
        match self {
            Self::SourceAddress => match source.to_canonical() {
                IpAddr::V4(ip) => hash.bytes(ip.octets()),
                IpAddr::V6(ip) => hash.bytes(ip.octets()),
            },
            Self::Header(name) => {
                let mut values = head?.headers.get_all(name).iter();
                hash.bytes(values.next()?.as_bytes().iter().copied());
                for value in values {
                    // As a recipient may join them (RFC 9110 5.3).
                    hash.bytes(*b", ");
                    hash.bytes(value.as_bytes().iter().copied());
                }
            }
            Self::Cookie(name) => {
                // HTTP/2 may have one field for each (RFC 9113 8.2.3).
                let fields = head?.headers.get_all(header::COOKIE).iter();
                let mut pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
                let value = pairs.find_map(|pair| {
                    let pair = pair.trim_ascii();
                    let (key, value) = pair.split_at_checked(name.len())?;
                    (key == name.as_bytes()).then(|| value.strip_prefix(b"="))?
                })?;
                hash.bytes(value.iter().copied());
            }
            Self::Query(name) => hash.bytes(query::decoded(query::first(head?.query?, name)?)),
        }
        Some(hash.finish())
    }
}

fn name<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn keyed(hash_on: &[HashKey]) -> BackendPolicy {
        BackendPolicy { hash_on: hash_on.to_vec(), ..BackendPolicy::balanced(Balance::Maglev) }
    }

    fn hash(policy: &BackendPolicy, fields: &[(&'static str, &str)], query: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        policy.hash(Some(&RequestHead { method: &Method::GET, path: "/", query, headers: &headers }), HERE)
    }

    #[test]
    fn a_request_is_known_by_the_first_key_that_it_has() {
        let user = HashKey::Header(HeaderName::from_static("x-user"));
        let policy = keyed(&[user, HashKey::Cookie("sid".into()), HashKey::Query("u".into())]);
        let ann = hash(&policy, &[("x-user", "ann")], None);
        assert!(ann.is_some());
        assert_eq!(hash(&policy, &[("x-user", "ann"), ("cookie", "sid=7")], Some("u=1")), ann);
        assert_ne!(hash(&policy, &[("x-user", "bob")], None), ann);
        // The same value says the same, wherever it stands.
        for (fields, query) in [
            (&[("cookie", "a=b; sid=ann")][..], None),
            (&[("cookie", "sid=ann;sid=other")], None),
            (&[("cookie", "asid=x"), ("cookie", "sid=ann")], None),
            (&[("cookie", "sidx=1")], Some("x=1&u=%61nn&u=z")),
        ] {
            assert_eq!(hash(&policy, fields, query), ann, "{fields:?} {query:?}");
        }
        for (fields, query) in [(&[][..], None), (&[("cookie", "sid")], Some("v=1")), (&[("cookie", "xsid=1;")], None)]
        {
            assert_eq!(hash(&policy, fields, query), None, "{fields:?} {query:?}");
        }
        assert_eq!(policy.hash(None, HERE), None);
    }

    #[test]
    fn values_of_one_field_count_as_if_they_were_joined() {
        let policy = keyed(&[HashKey::Header(HeaderName::from_static("x"))]);
        let two = hash(&policy, &[("x", "a"), ("x", "b")], None);
        assert_eq!(hash(&policy, &[("x", "a, b")], None), two);
        assert_ne!(hash(&policy, &[("x", "a")], None), two);
    }

    #[test]
    fn without_keys_the_clients_address_counts_and_both_forms_of_it_are_one() {
        let (policy, last) = (keyed(&[]), keyed(&[HashKey::Query("u".into()), HashKey::SourceAddress]));
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(policy.hash(None, HERE), policy.hash(None, mapped));
        assert_eq!(policy.hash(None, HERE), hash(&last, &[], Some("v=1")));
        assert_ne!(policy.hash(None, HERE), policy.hash(None, "10.0.0.2".parse().unwrap()));
        assert!(!policy.looks_at_requests() && last.looks_at_requests());
        assert!(!BackendPolicy { balance: Balance::Random, ..last }.looks_at_requests());
    }
}
