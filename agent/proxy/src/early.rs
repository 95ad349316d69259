//! A connection to an endpoint that was made before it was known what its client speaks.

use std::{rc::Rc, sync::Arc};

use weft_identity::{Alpn, Credential};
use weft_policy::peer::Peer;

use crate::{
    access::Admitted,
    balance::{EndpointLoad, InFlight},
    dial::{self, DialError, Dialled},
    mutual::{self, Secured},
    transport::{Encryption, Transport},
    worker::Worker,
};

/// A choice that was made for a whole connection, and the connection that it led to. If the client turns out to speak HTTP, its
/// first request takes both where its route leads to the same split: the split has counted the choice already, and a second one
/// would skew the shares. Otherwise it is closed unused.
#[derive(Debug)]
pub(crate) struct Early {
    /// The split, by [`Split::id`](weft_policy::split::Split::id); 0 for a pod's own address.
    pub(crate) split: u64,
    /// The backend, by its place in the split.
    pub(crate) index: usize,
    /// The endpoint.
    pub(crate) load: Rc<EndpointLoad>,
    pub(crate) in_flight: InFlight,
    pub(crate) line: Line,
    /// The endpoint is a pod that is captured on this node; its inbound step was taken for this connection, and let this through.
    pub(crate) admitted: Option<Admitted>,
}

/// What a dial has led to.
#[derive(Debug)]
pub(crate) enum Line {
    /// A connection in the clear.
    Plain(Dialled, Encryption),
    /// One that is for mutual TLS, on which nothing was said.
    Mutual(Dialled, Arc<Peer>, Arc<Credential>),
    /// One that carries bytes within mutual TLS.
    Secured(Secured),
}

impl Line {
    pub(crate) fn new(dialled: Dialled, transport: Transport) -> Self {
        match transport {
            Transport::Mutual { peer, credential } => Self::Mutual(dialled, peer, credential),
            other => Self::Plain(dialled, other.encryption()),
        }
    }

    /// Makes it one that carries bytes.
    pub(crate) async fn for_bytes(self, worker: &Worker) -> Result<Self, DialError> {
        Ok(match self {
            Self::Mutual(dialled, peer, credential) => {
                Self::Secured(mutual::connect(worker, &credential, &peer, dialled, Alpn::Tcp).await?)
            }
            other => other,
        })
    }

    /// The connection, and whether it is for mutual TLS, if nothing was said on it.
    pub(crate) fn unsaid(self) -> Option<(Dialled, bool)> {
        match self {
            Self::Plain(dialled, _) => Some((dialled, false)),
            Self::Mutual(dialled, ..) => Some((dialled, true)),
            Self::Secured(_) => None,
        }
    }

    /// Ends it, and not as if all was said.
    pub(crate) fn reset(self) {
        match self {
            Self::Plain(dialled, _) | Self::Mutual(dialled, ..) => dial::reset(dialled.stream),
            Self::Secured(secured) => secured.stream.reset(),
        }
    }
}

impl Early {
    /// Closes it, because the first request goes elsewhere, and gives the choice back.
    pub(crate) fn unused(self, worker: &Worker) {
        worker.balancer.borrow_mut().give_back(self.split, self.index);
    }
}
