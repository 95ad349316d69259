//! What may reach a workload. Every path to a captured application asks here, on the same node too.
//!
//! A workload that any TrafficTarget selects takes nothing but what a target grants (SMI: "all traffic is denied by default"); one
//! that none selects follows the stance of its namespace.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{
    matcher::{RequestHead, RouteMatcher},
    names::{ObjectRef, ServiceAccountKey, WorkloadId},
};

/// Who asks, as the kernel knows it or a certificate proves it. Whoever is not known has no `Source` at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// The service account.
    pub account: &'a ServiceAccountKey,
    /// The pod, where it is known.
    pub workload: Option<&'a WorkloadId>,
}

/// Allow or deny, with the object or the default behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Allow(Basis),
    /// Refused.
    Deny(Basis),
}

/// What is known before anything was said on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionVerdict {
    /// Whatever is said may go on: no request need be asked for.
    Allow(Basis),
    /// Each request is asked for; anything but HTTP is refused with this basis ([`Basis::NotHttp`]).
    Requests(Basis),
    /// Refused.
    Deny(Basis),
}

/// What a verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Basis {
    /// A TrafficTarget that grants it.
    Grant(Arc<ObjectRef>),
    /// No TrafficTarget selects the workload, and the stance is allow: the namespace that says so, or the agent's default.
    StanceAllow(Option<Arc<ObjectRef>>),
    /// No TrafficTarget selects the workload, and the stance is deny.
    StanceDeny(Option<Arc<ObjectRef>>),
    /// These TrafficTargets select the workload, and none of them grants it.
    NotGranted(Arc<[ObjectRef]>),
    /// These TrafficTargets select the workload, and nobody knows who asks.
    Unidentified(Arc<[ObjectRef]>),
    /// These TrafficTargets grant requests only, and this is not HTTP.
    NotHttp(Arc<[ObjectRef]>),
    /// This object refuses plaintext at the workload, and the connection brought no certificate.
    Plaintext(ObjectRef),
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grant(object) => write!(f, "granted by {object}"),
            Self::StanceAllow(Some(object)) => {
                write!(f, "no TrafficTarget selects the destination, and {object} allows")
            }
            Self::StanceAllow(None) => {
                f.write_str("no TrafficTarget selects the destination, and the default is allow")
            }
            Self::StanceDeny(Some(object)) => {
                write!(f, "no TrafficTarget selects the destination, and {object} denies")
            }
            Self::StanceDeny(None) => f.write_str("no TrafficTarget selects the destination, and the default is deny"),
            Self::NotGranted(by) => write!(f, "not granted by {}", Names(by)),
            Self::Unidentified(by) => {
                write!(f, "the source has no identity, and {} selects the destination", Names(by))
            }
            Self::NotHttp(by) => write!(f, "{} grants HTTP requests only", Names(by)),
            Self::Plaintext(object) => {
                write!(f, "{object} takes mutual TLS only, and this connection brought no certificate")
            }
        }
    }
}

/// The first few objects of a list, for people.
struct Names<'a>(&'a [ObjectRef]);

/// Objects that a sentence names; the others are counted.
const NAMED_MAX: usize = 3;

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, object) in self.0.iter().take(NAMED_MAX).enumerate() {
            write!(f, "{}{object}", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What holds where no TrafficTarget selects a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stance {
    /// Whether it denies.
    pub deny: bool,
    /// The namespace that says so; `None` for the agent's default.
    pub origin: Option<Arc<ObjectRef>>,
}

/// Whether a workload takes connections from elsewhere that bring no certificate. Those from captured pods of the same node need none:
/// the kernel vouches for both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    /// It does.
    #[default]
    Permissive,
    /// It does not, because this object says so.
    Strict(ObjectRef),
}

/// What one TrafficTarget gives.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The TrafficTarget.
    pub origin: Arc<ObjectRef>,
    /// Service accounts, ascending.
    pub accounts: Box<[ServiceAccountKey]>,
    /// Single pods (IdentityBinding by label), ascending.
    pub workloads: Box<[WorkloadId]>,
    /// TCP ports, ascending; `None` for all.
    pub ports: Option<Box<[u16]>>,
    /// UDP ports, ascending; `None` for all, empty for none.
    pub udp_ports: Option<Box<[u16]>>,
    /// The requests; `None` for whatever is said.
    pub requests: Option<RouteMatcher>,
}

impl Grant {
    fn covers(&self, source: &Source<'_>, port: u16) -> bool {
        holds(self.ports.as_deref(), port) && self.names(source)
    }

    fn names(&self, source: &Source<'_>) -> bool {
        self.accounts.binary_search(source.account).is_ok()
            || source.workload.is_some_and(|workload| self.workloads.binary_search(workload).is_ok())
    }
}

fn holds(ports: Option<&[u16]>, port: u16) -> bool {
    ports.is_none_or(|ports| ports.binary_search(&port).is_ok())
}

/// The inbound policy of one workload. Asking takes no lock; allowing allocates nothing.
#[derive(Debug, Default)]
pub struct InboundPlan {
    /// What holds if nothing selects the workload.
    pub stance: Stance,
    /// Whether it takes connections without a certificate.
    pub mtls: Mtls,
    /// The TrafficTargets that select it, grants or not.
    pub selected_by: Arc<[ObjectRef]>,
    /// What they grant.
    pub grants: Box<[Grant]>,
}

impl InboundPlan {
    /// Whether the workload is denied by default or refuses plaintext, so that its connections are refused while the agent is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.stance.deny || !self.selected_by.is_empty() || matches!(self.mtls, Mtls::Strict(_))
    }

    /// Why a connection from elsewhere that brought no certificate is refused, whatever it asks for; `None` where it is not, and the
    /// other questions decide. To be asked before them: nothing that they say outweighs it.
    #[must_use]
    pub fn plaintext(&self) -> Option<Basis> {
        match &self.mtls {
            Mtls::Permissive => None,
            Mtls::Strict(object) => Some(Basis::Plaintext(object.clone())),
        }
    }

    /// What to do with a connection to `port`.
    #[must_use]
    pub fn connection(&self, source: Option<Source<'_>>, port: u16) -> ConnectionVerdict {
        if self.selected_by.is_empty() {
            let origin = self.stance.origin.clone();
            return if self.stance.deny {
                ConnectionVerdict::Deny(Basis::StanceDeny(origin))
            } else {
                ConnectionVerdict::Allow(Basis::StanceAllow(origin))
            };
        }
        let Some(source) = source else {
            return ConnectionVerdict::Deny(Basis::Unidentified(Arc::clone(&self.selected_by)));
        };
        let mut requests = false;
        for grant in self.grants.iter().filter(|grant| grant.covers(&source, port)) {
            if grant.requests.is_none() {
                return ConnectionVerdict::Allow(Basis::Grant(Arc::clone(&grant.origin)));
            }
            requests = true;
        }
        if requests {
            ConnectionVerdict::Requests(Basis::NotHttp(Arc::clone(&self.selected_by)))
        } else {
            ConnectionVerdict::Deny(Basis::NotGranted(Arc::clone(&self.selected_by)))
        }
    }

    /// Whether datagrams may go to `port`: only a UDPRoute grants that.
    #[must_use]
    pub fn udp(&self, source: Option<Source<'_>>, port: u16) -> Verdict {
        if self.selected_by.is_empty() {
            let origin = self.stance.origin.clone();
            return if self.stance.deny {
                Verdict::Deny(Basis::StanceDeny(origin))
            } else {
                Verdict::Allow(Basis::StanceAllow(origin))
            };
        }
        let Some(source) = source else {
            return Verdict::Deny(Basis::Unidentified(Arc::clone(&self.selected_by)));
        };
        let mut grants = self.grants.iter();
        match grants.find(|grant| holds(grant.udp_ports.as_deref(), port) && grant.names(&source)) {
            Some(grant) => Verdict::Allow(Basis::Grant(Arc::clone(&grant.origin))),
            None => Verdict::Deny(Basis::NotGranted(Arc::clone(&self.selected_by))),
        }
    }

    /// Whether one request may go on.
    #[must_use]
    pub fn request(&self, source: Option<Source<'_>>, port: u16, head: &RequestHead<'_>) -> Verdict {
        match self.connection(source, port) {
            ConnectionVerdict::Allow(basis) => return Verdict::Allow(basis),
            ConnectionVerdict::Deny(basis) => return Verdict::Deny(basis),
            ConnectionVerdict::Requests(_) => {}
        }
        let granted = source.and_then(|source| {
            self.grants.iter().find(|grant| {
                grant.covers(&source, port)
                    && grant.requests.as_ref().is_none_or(|requests| requests.find(head).is_some())
            })
        });
        match granted {
            Some(grant) => Verdict::Allow(Basis::Grant(Arc::clone(&grant.origin))),
            None => Verdict::Deny(Basis::NotGranted(Arc::clone(&self.selected_by))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_that_refuses_plaintext_is_closed_and_names_who_says_so() {
        let shop = ObjectRef::new("Namespace", "", "shop");
        let strict = InboundPlan { mtls: Mtls::Strict(shop.clone()), ..InboundPlan::default() };
        assert!(strict.is_closed());
        assert_eq!(strict.plaintext(), Some(Basis::Plaintext(shop)));
        assert_eq!(
            strict.plaintext().unwrap().to_string(),
            "Namespace shop takes mutual TLS only, and this connection brought no certificate"
        );
        let permissive = InboundPlan::default();
        assert_eq!((permissive.is_closed(), permissive.plaintext()), (false, None));
    }
}
