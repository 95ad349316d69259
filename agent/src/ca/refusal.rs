//! What the authority refuses, each with a word of its own: the value of a metric's label, and of what the agent is told.

use tonic::{Code, Status, metadata::MetadataValue};
use weft_identity::{authority::SignError, request::RequestError, spiffe::SpiffeError};

/// Name of the metadata that carries [`Denied::code`].
pub(super) const REFUSAL_KEY: &str = "weft-refusal";

/// Why a whole call is refused: the caller is not who may ask, asks too much, or cannot be told now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// Check 1.
    #[error("the batch has {0} items, of at most {max}", max = weft_identity::limits::BATCH_MAX)]
    BatchTooLarge(usize),
    /// Check 1.
    #[error("this agent has asked for too many certificates; later")]
    RateLimited,
    /// Check 1.
    #[error("too many tokens that are not known have to be reviewed; later")]
    Busy,
    /// Check 1.
    #[error("this agent follows the bundle {max} times already", max = super::limits::WATCHES_PER_AGENT_MAX)]
    TooManyWatches,
    /// Check 2.
    #[error("there is no bearer token")]
    NoToken,
    /// Check 2.
    #[error("the API server does not confirm the token: {0}")]
    BadToken(String),
    /// Check 2.
    #[error("the token is not meant for {expected:?}")]
    WrongAudience {
        /// Ours.
        expected: String,
    },
    /// Check 2.
    #[error("the token is {found}'s, and only {expected} may ask")]
    NotAnAgent {
        /// The agents' service account.
        expected: String,
        /// Whose it is.
        found: String,
    },
    /// Check 3.
    #[error("the token is bound to no pod")]
    Unbound,
    /// Check 3.
    #[error("the agent's pod {0} is not there (any more)")]
    AgentGone(String),
    /// Check 3.
    #[error("the agent's pod {0} is being deleted")]
    AgentStops(String),
    /// Check 3.
    #[error("the agent's pod {0} does not run as an agent")]
    AgentAccount(String),
    /// Check 3.
    #[error("the token is bound to node {token}, and the agent's pod runs on {pod}")]
    AgentNode {
        /// What the token says.
        token: String,
        /// What the pod says.
        pod: String,
    },
    /// The API server does not answer.
    #[error("the API server cannot be asked: {0}")]
    ApiServer(String),
    /// There is no key to sign with, or nobody knows whether it is still the one.
    #[error("the authority cannot sign now: {0}")]
    NotReady(String),
}

impl Denied {
    /// One word.
    #[must_use]
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::BatchTooLarge(_) => "batch_too_large",
            Self::RateLimited => "rate_limited",
            Self::Busy => "busy",
            Self::TooManyWatches => "too_many_watches",
            Self::NoToken => "no_token",
            Self::BadToken(_) => "bad_token",
            Self::WrongAudience { .. } => "wrong_audience",
            Self::NotAnAgent { .. } => "not_an_agent",
            Self::Unbound => "token_unbound",
            Self::AgentGone(_) => "agent_gone",
            Self::AgentStops(_) => "agent_stops",
            Self::AgentAccount(_) => "agent_account",
            Self::AgentNode { .. } => "agent_node",
            Self::ApiServer(_) => "api_server",
            Self::NotReady(_) => "not_ready",
        }
    }

    fn grpc(&self) -> Code {
        match self {
            Self::BatchTooLarge(_) => Code::InvalidArgument,
            Self::RateLimited | Self::Busy | Self::TooManyWatches => Code::ResourceExhausted,
            Self::NoToken | Self::BadToken(_) | Self::WrongAudience { .. } => Code::Unauthenticated,
            Self::NotAnAgent { .. }
            | Self::Unbound
            | Self::AgentGone(_)
            | Self::AgentStops(_)
            | Self::AgentAccount(_)
            | Self::AgentNode { .. } => Code::PermissionDenied,
            Self::ApiServer(_) | Self::NotReady(_) => Code::Unavailable,
        }
    }

    /// As gRPC has it.
    #[must_use]
    pub(super) fn status(&self) -> Status {
        let mut status = Status::new(self.grpc(), self.to_string());
        status.metadata_mut().insert(REFUSAL_KEY, MetadataValue::from_static(self.code()));
        status
    }
}

/// Why one certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// Check 4.
    #[error("no pod of this name has the UID {0:?} (yet)")]
    UnknownPod(String),
    /// Check 4.
    #[error("the API server cannot be asked for the pod: {0}")]
    ApiServer(String),
    /// Check 4.
    #[error("the pod with this UID is {0}")]
    OtherPod(String),
    /// Check 4.
    #[error("the pod runs as service account {0}")]
    OtherAccount(String),
    /// Check 4.
    #[error("the pod does not run on node {0}, which asks")]
    OtherNode(String),
    /// Check 4.
    #[error("the pod has ended")]
    PodEnded,
    /// Check 4.
    #[error("the pod shares its node's network, and every process there could take its place")]
    HostNetwork,
    /// Check 4.
    #[error("the pod is not in the mesh: its namespace is not labelled weft.dev/mesh=enabled, or it has opted out")]
    NotMeshed,
    /// Check 4.
    #[error("there is no SPIFFE ID for it: {0}")]
    Name(SpiffeError),
    /// Check 5.
    #[error("the request is refused: {0}")]
    Request(RequestError),
    /// What signs.
    #[error(transparent)]
    Signer(#[from] SignError),
}

impl Refused {
    /// One word.
    #[must_use]
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::UnknownPod(_) => "unknown_pod",
            Self::ApiServer(_) => "api_server",
            Self::OtherPod(_) => "other_pod",
            Self::OtherAccount(_) => "other_account",
            Self::OtherNode(_) => "other_node",
            Self::PodEnded => "pod_ended",
            Self::HostNetwork => "host_network",
            Self::NotMeshed => "not_meshed",
            Self::Name(_) => "bad_name",
            Self::Request(error) => match error {
                RequestError::TooLarge(_) => "csr_too_large",
                RequestError::Garbage => "csr_garbage",
                RequestError::Signature => "csr_signature",
                RequestError::Key => "csr_key",
                RequestError::Names(_) => "csr_names",
            },
            Self::Signer(error) => error.reason(),
        }
    }

    /// Whether the same request may be granted later without anybody's doing.
    #[must_use]
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            // The authority's watch, or the scheduler's word, may be behind the agent's.
            Self::UnknownPod(_) | Self::ApiServer(_) | Self::OtherNode(_) | Self::NotMeshed => true,
            Self::Signer(error) => error.is_retryable(),
            _ => false,
        }
    }
}
