//! Upstream connections that wait for their next request, of one pod in one worker. Keyed by the endpoint's address and by the pod
//! behind it, so that an address that was given to another pod is never served by an old connection.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use weft_policy::{endpoints::Endpoint, names::WorkloadId};

use crate::http::client::Upstream;

/// What a pooled connection may be used for. The source pod is the pool's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    workload: Option<WorkloadId>,
    protocol: Protocol,
}

/// What is spoken on a pooled connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Protocol {
    Http1,
}

impl Key {
    fn of(endpoint: &Endpoint) -> Self {
        Self { address: endpoint.address, workload: endpoint.workload.clone(), protocol: Protocol::Http1 }
    }
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// One pod's pool.
#[derive(Debug, Default)]
pub(crate) struct Pool(RefCell<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The newest is last, and taken first: the others then time out.
    idle: HashMap<Key, Vec<Idle>>,
    closed: bool,
}

/// Whether the pool took a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Yes,
    No,
    /// No, because there are as many as there may be.
    Full,
}

impl Pool {
    /// A connection to this very endpoint that is alive as far as can be told, if there is one.
    pub(crate) fn checkout(&self, endpoint: &Endpoint) -> Option<Upstream> {
        let mut inner = self.0.borrow_mut();
        let idle = inner.idle.get_mut(&Key::of(endpoint))?;
        let mut index = idle.len();
        while index > 0 {
            index -= 1;
            let upstream = &idle[index].upstream;
            if upstream.is_ready() && upstream.is_quiet() {
                return Some(idle.remove(index).upstream);
            }
            if upstream.is_closed() || upstream.is_ready() {
                idle.remove(index);
            }
            // Else it still sends the last request's body: left alone.
        }
        None
    }

    /// Keeps a connection whose response was read to its end.
    pub(crate) fn put_back(&self, upstream: Upstream, max_per_key: usize) -> Kept {
        let mut inner = self.0.borrow_mut();
        if inner.closed || upstream.is_closed() {
            return Kept::No;
        }
        let idle = inner.idle.entry(Key::of(upstream.endpoint())).or_default();
        if idle.len() >= max_per_key {
            return Kept::Full;
        }
        idle.push(Idle { upstream, since: Instant::now() });
        Kept::Yes
    }

    /// Lets go of connections that were not used for `idle_max`, are closed, or lead to endpoints that are not ready any more.
    pub(crate) fn sweep(&self, now: Instant, idle_max: Duration) {
        self.0.borrow_mut().idle.retain(|_, idle| {
            idle.retain(|idle| {
                let fresh = now.duration_since(idle.since) < idle_max;
                fresh && !idle.upstream.is_closed() && idle.upstream.is_wanted()
            });
            !idle.is_empty()
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().idle.is_empty()
    }

    /// Drops everything, and takes nothing any more: the pod is gone.
    pub(crate) fn clear(&self) {
        let mut inner = self.0.borrow_mut();
        inner.closed = true;
        inner.idle.clear();
    }
}
