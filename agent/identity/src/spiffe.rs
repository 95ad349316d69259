//! Names of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. The grammar is SPIFFE's strict one, and of its
//! paths only ours: whatever else a certificate says is no identity here.

use std::{fmt, str::FromStr, sync::Arc};

use weft_policy::names::ServiceAccountKey;

use crate::limits;

/// Why a text is no SPIFFE ID of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Longer than [`limits::SPIFFE_ID_MAX`].
    #[error("it has {0} bytes, of at most {max}", max = limits::SPIFFE_ID_MAX)]
    TooLong(usize),
    /// Not `spiffe://`, in lower case.
    #[error("it does not begin with spiffe://")]
    Scheme,
    /// The trust domain breaks the grammar.
    #[error("the trust domain {0}")]
    TrustDomain(&'static str),
    /// Not `/ns/<namespace>/sa/<service account>`.
    #[error("the path is not /ns/<namespace>/sa/<service account>")]
    Path,
    /// The namespace is none.
    #[error("the namespace is not a name of Kubernetes: lower case letters, digits and -, at most {max} bytes", max = limits::NAMESPACE_MAX)]
    Namespace,
    /// The service account is none.
    #[error(
        "the service account is not a name of Kubernetes: lower case letters, digits, - and ., at most {max} bytes",
        max = limits::SERVICE_ACCOUNT_MAX
    )]
    ServiceAccount,
}

/// Whose names they are: the authority of a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// A trust domain: lower case letters, digits, `.`, `-` and `_`, 1 to 255 bytes (SPIFFE ID 2.1).
    ///
    /// # Errors
    /// [`SpiffeError::TrustDomain`], with what is wrong.
    pub fn new(name: &str) -> Result<Self, SpiffeError> {
        if name.is_empty() {
            return Err(SpiffeError::TrustDomain("is empty"));
        }
        if name.len() > limits::TRUST_DOMAIN_MAX {
            return Err(SpiffeError::TrustDomain("is longer than 255 bytes"));
        }
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')) {
            return Err(SpiffeError::TrustDomain("has other characters than lower case letters, digits, ., - and _"));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The identity of a service account here.
    ///
    /// # Errors
    /// The account's names are none that Kubernetes gives.
    pub fn account(&self, account: &ServiceAccountKey) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(self.clone(), account.clone())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(name: &str) -> Result<Self, SpiffeError> {
        Self::new(name)
    }
}

/// The identity of a service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Whose name it is.
    pub trust_domain: TrustDomain,
    /// The service account.
    pub account: ServiceAccountKey,
}

impl SpiffeId {
    /// An identity whose names are checked.
    ///
    /// # Errors
    /// The account's names are none that Kubernetes gives.
    pub fn new(trust_domain: TrustDomain, account: ServiceAccountKey) -> Result<Self, SpiffeError> {
        if !is_label(&account.namespace) {
            return Err(SpiffeError::Namespace);
        }
        if account.name.len() > limits::SERVICE_ACCOUNT_MAX || !account.name.split('.').all(is_part) {
            return Err(SpiffeError::ServiceAccount);
        }
        Ok(Self { trust_domain, account })
    }
}

/// RFC 1123 label, as Kubernetes checks namespaces.
fn is_label(name: &str) -> bool {
    name.len() <= limits::NAMESPACE_MAX && is_part(name)
}

/// What may stand between the dots of a name: lower case letters, digits, and `-` in between. So there are no dot segments either.
fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !part.starts_with('-')
        && !part.ends_with('-')
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > limits::SPIFFE_ID_MAX {
            return Err(SpiffeError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Userinfo, port, query and fragment are no characters of a trust domain or a name; neither are % and NUL.
        let trust_domain = TrustDomain::new(domain)?;
        let mut parts = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SpiffeError::Path);
        };
        Self::new(trust_domain, ServiceAccountKey::new(namespace, name))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.account.namespace, self.account.name)
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_that_break_the_grammar_are_refused_with_what_is_wrong() {
        let path = SpiffeError::Path;
        let characters = SpiffeError::TrustDomain("has other characters than lower case letters, digits, ., - and _");
        for (text, wrong) in [
            ("", SpiffeError::Scheme),
            ("SPIFFE://a/ns/b/sa/c", SpiffeError::Scheme),
            ("https://a/ns/b/sa/c", SpiffeError::Scheme),
            ("spiffe:///ns/b/sa/c", SpiffeError::TrustDomain("is empty")),
            ("spiffe://A/ns/b/sa/c", characters.clone()),
            ("spiffe://user@a/ns/b/sa/c", characters.clone()),
            ("spiffe://a:443/ns/b/sa/c", characters.clone()),
            ("spiffe://a?x/ns/b/sa/c", characters.clone()),
            ("spiffe://a%2Eb/ns/b/sa/c", characters.clone()),
            ("spiffe://a\0/ns/b/sa/c", characters),
            ("spiffe://a", path.clone()),
            ("spiffe://a/", path.clone()),
            ("spiffe://a/ns/b", path.clone()),
            ("spiffe://a/ns/b/sa/c/", path.clone()),
            ("spiffe://a/ns/b/sa/c/d", path.clone()),
            ("spiffe://a//ns/b/sa/c", path.clone()),
            ("spiffe://a/NS/b/sa/c", path),
            ("spiffe://a/ns//sa/c", SpiffeError::Namespace),
            ("spiffe://a/ns/../sa/c", SpiffeError::Namespace),
            ("spiffe://a/ns/b.c/sa/c", SpiffeError::Namespace),
            ("spiffe://a/ns/b/sa/", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/.", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/..", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/c%2Fd", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/c\0", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/c?x=y", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/c#x", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/C", SpiffeError::ServiceAccount),
            ("spiffe://a/ns/b/sa/é", SpiffeError::ServiceAccount),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(wrong), "{text:?}");
        }
        let long = format!("spiffe://a/ns/b/sa/{}", "c".repeat(limits::SPIFFE_ID_MAX));
        assert_eq!(long.parse::<SpiffeId>(), Err(SpiffeError::TooLong(long.len())));
        assert!(TrustDomain::new(&"a".repeat(255)).is_ok() && TrustDomain::new(&"a".repeat(256)).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_it_takes_is_written_as_it_was(text in "(spiffe://)?[a-z0-9._:@%?#/-]{0,40}(/ns/[a-z0-9.%-]{0,9})?(/sa/\\PC{0,9})?") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn every_account_of_kubernetes_round_trips(
            domain in "[a-z0-9._-]{1,40}", namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name in "[a-z0-9]([a-z0-9.]{0,9}[a-z0-9])?"
        ) {
            prop_assume!(!name.contains(".."));
            let id = SpiffeId::new(TrustDomain::new(&domain).unwrap(), ServiceAccountKey::new(&namespace, &name)).unwrap();
            prop_assert_eq!(id.to_string().parse::<SpiffeId>(), Ok(id));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,300}") {
            let _ = text.parse::<SpiffeId>();
            let _ = format!("spiffe://{text}").parse::<SpiffeId>();
        }
    }
}
