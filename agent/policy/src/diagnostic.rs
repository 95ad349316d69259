//! What the author of an object should know about it.

use serde::Serialize;

use crate::names::ObjectRef;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Works, but probably not as meant.
    Warning,
    /// Part of the object has no effect, or the whole object.
    Error,
}

/// Every [`Diagnostic::code`], in alphabetical order.
pub const CODES: [&str; 36] = [
    "AddressConflict",
    "BackendIsRoot",
    "BackendNotFound",
    "BackendPortMismatch",
    "Conflicted",
    "DestinationNotFound",
    "DuplicatePodIP",
    "DuplicateUID",
    "EmptyMatches",
    "FailModeRefused",
    "IdentityBindingNotFound",
    "IncompatibleFilters",
    "Invalid",
    "InvalidKind",
    "InvalidMatch",
    "MatchNotFound",
    "NoMatchingParent",
    "PodMismatch",
    "PortMismatch",
    "RedirectsToItself",
    "RefNotPermitted",
    "RootNotFound",
    "RouteGroupNotFound",
    "RouteNotFound",
    "SpiffeNotProven",
    "TargetNotFound",
    "TooManyMatches",
    "TooManySplits",
    "TooManyTargets",
    "TooMuchToMatch",
    "UnknownDefault",
    "UnknownFailMode",
    "UnknownLoadBalancing",
    "UnknownMeshLabel",
    "UnknownMtls",
    "UnsupportedValue",
];

/// One finding about one object. Findings never stop anything else from working.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Diagnostic {
    /// The object that should be changed.
    pub object: ObjectRef,
    /// How bad it is.
    pub severity: Severity,
    /// Stable, in CamelCase like a Kubernetes condition reason: `BackendNotFound`, `Conflicted`.
    pub code: &'static str,
    /// Path of the field inside the object, `spec.backends[1].weight`; empty for the whole object.
    pub field: String,
    /// What is wrong, and what is done about it.
    pub message: String,
}
