//! What the agent wants of an authority, wherever that is.

use std::{future::Future, pin::Pin, sync::Arc};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use weft_identity::Bundle;

use super::book::{PodRef, Problem};

/// One certificate that is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The pod in whose name it is asked for.
    pub pod: PodRef,
    /// The request: PKCS #10, DER.
    pub request: Vec<u8>,
}

/// What became of one: its chain, or why there is none.
pub type Answer = Result<Vec<CertificateDer<'static>>, Problem>;

/// What an authority says of several that were asked for together.
#[derive(Debug)]
pub struct Answers {
    /// One for each, in their order.
    pub answers: Vec<Answer>,
    /// By how much the authority's clock is ahead of this node's, milliseconds; `None` where it is the same clock.
    pub clock_ahead_ms: Option<i64>,
}

/// Answers, later. The call as a whole fails where the authority cannot be asked.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Answers, Problem>> + Send + 'a>>;

/// The roots, as the authority gives them out.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The roots, once there are any.
    pub bundle: Option<Arc<Bundle>>,
    /// Rises when all certificates are to be asked for again.
    pub epoch: u64,
    /// Why there is no newer bundle.
    pub problem: Option<Problem>,
}

/// What the agent has in force, as the authority is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The hash of the bundle; empty while there is none.
    pub bundle_sha256: String,
    /// The highest epoch for which all certificates were asked for.
    pub reissued: u64,
}

/// Who signs for this node.
pub trait Authority: Send + Sync + 'static {
    /// Asks for certificates, at most [`weft_identity::limits::BATCH_MAX`].
    fn sign<'a>(&'a self, asks: &'a [Ask]) -> Signing<'a>;
    /// The roots, and every change of them.
    fn trust(&self) -> watch::Receiver<Trust>;
    /// Takes note of what is in force here.
    fn told(&self, in_force: InForce);
    /// Its name, for people.
    fn name(&self) -> String;
}
