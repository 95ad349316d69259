//! What may reach a workload. Every path to a captured application asks here, on the same node too.

use std::sync::Arc;

use crate::names::ObjectRef;

/// Allow or deny, with the object or the default behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Allow(Basis),
    /// Refused.
    Deny(Basis),
}

/// What a verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Basis {
    /// An object.
    Object(Arc<ObjectRef>),
    /// The stance that holds where no object selects the workload.
    DefaultAllow,
}

/// The inbound policy of one workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InboundPlan {}

impl InboundPlan {
    /// Whether a connection may go on. No access policy kind is enforced by this version, so the stance `allow` decides.
    #[must_use]
    pub fn authorize(&self) -> Verdict {
        Verdict::Allow(Basis::DefaultAllow)
    }
}
