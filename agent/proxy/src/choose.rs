//! From a plan to endpoints, for requests and for connections alike: a backend of a split once, then its endpoints one after another.

use std::{net::SocketAddr, ptr, rc::Rc, sync::Arc};

use weft_policy::{
    endpoints::EndpointCell,
    plan::AppProtocol,
    split::{Backend, NoBackend, Split},
};

use crate::{
    balance::{Asker, EndpointLoad},
    dial::DialError,
    reply::{LocalReply, Reason},
    worker::Worker,
};

/// What was chosen, and where its endpoints come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice<'plan> {
    /// A backend of a split.
    Backend {
        /// The split.
        split: &'plan Split,
        /// The backend.
        backend: &'plan Backend,
        /// Its place in the split.
        index: usize,
    },
    /// One address, and no other.
    Pod {
        /// The address.
        load: &'plan Rc<EndpointLoad>,
        /// What is spoken there.
        protocol: AppProtocol,
    },
}

/// Chooses a backend of a split.
pub(crate) fn split<'plan>(worker: &Worker, split: &'plan Split) -> Result<Choice<'plan>, NoBackend> {
    let (backend, skipped) = worker.balancer.borrow_mut().backend(split)?;
    let index = split.backends.iter().position(|other| ptr::eq(other, backend)).unwrap_or_default();
    if skipped {
        worker.metrics.split_skipped.inc();
    }
    Ok(Choice::Backend { split, backend, index })
}

/// The choice that was made in a split before, by its place; `None` if there is no such backend.
pub(crate) fn again(split: &Split, index: usize) -> Option<Choice<'_>> {
    split.backends.get(index).map(|backend| Choice::Backend { split, backend, index })
}

/// The answer where a split has no backend.
pub(crate) fn no_backend(split: &Split, none: NoBackend) -> LocalReply {
    let origin = &split.origin;
    match none {
        NoBackend::SplitZero => LocalReply::new(
            Reason::SplitZero,
            format_args!("every backend of {origin} has weight zero or does not exist"),
        ),
        NoBackend::NoEndpoints => {
            LocalReply::new(Reason::NoEndpoints, format_args!("no backend of {origin} has a ready endpoint"))
        }
    }
}

impl<'plan> Choice<'plan> {
    pub(crate) fn backend(&self) -> Option<&'plan Backend> {
        match self {
            Self::Backend { backend, .. } => Some(backend),
            Self::Pod { .. } => None,
        }
    }

    /// The split that it was made in, by its id; 0 if in none.
    pub(crate) fn split(&self) -> u64 {
        match self {
            Self::Backend { split, .. } => split.id(),
            Self::Pod { .. } => 0,
        }
    }

    pub(crate) fn index(&self) -> usize {
        match self {
            Self::Backend { index, .. } => *index,
            Self::Pod { .. } => 0,
        }
    }

    /// What is spoken where this leads.
    pub(crate) fn protocol(&self) -> AppProtocol {
        match self {
            Self::Backend { backend, .. } => backend.endpoints.load().protocol,
            Self::Pod { protocol, .. } => *protocol,
        }
    }

    /// The namespace that it is in, if a Service says so.
    pub(crate) fn namespace(&self) -> Option<&'plan str> {
        self.backend().map(|backend| &*backend.service.namespace)
    }

    pub(crate) fn cell(&self) -> Option<&'plan Arc<EndpointCell>> {
        self.backend().map(|backend| &backend.endpoints)
    }

    /// The next endpoint to try.
    pub(crate) fn next(&self, worker: &Worker, asker: &Asker<'_>, tried: &[SocketAddr]) -> Option<Rc<EndpointLoad>> {
        match self {
            Self::Backend { backend, .. } => worker.balancer.borrow_mut().endpoint(&backend.endpoints, asker, tried),
            Self::Pod { load, .. } => tried.is_empty().then(|| Rc::clone(load)),
        }
    }

    /// The answer when no endpoint is left to try.
    pub(crate) fn exhausted(&self, failure: Option<&DialError>) -> LocalReply {
        let Some(failure) = failure else {
            return match self {
                Self::Backend { split, .. } => no_backend(split, NoBackend::NoEndpoints),
                Self::Pod { load, .. } => {
                    LocalReply::new(Reason::NoEndpoints, format_args!("{} takes nothing", load.endpoint.address))
                }
            };
        };
        let reason = match failure {
            DialError::Exhausted => Reason::DialsExhausted,
            DialError::NotHttp2 { .. } => Reason::UpstreamProtocol,
            DialError::Tls { .. } => Reason::TlsFailed,
            _ => Reason::ConnectFailed,
        };
        let failure = chain(failure);
        match self {
            Self::Backend { split, backend, .. } => LocalReply::new(
                reason,
                format_args!("backend {} of {} cannot be reached: {failure}", backend.service, split.origin),
            ),
            Self::Pod { .. } => LocalReply::new(reason, failure),
        }
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
