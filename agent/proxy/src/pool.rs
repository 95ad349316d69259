//! Upstream connections of one pod in one worker: of HTTP/1 those that wait for their next request, of HTTP/2 all, since requests
//! share them. Keyed by the endpoint's address and by the pod behind it, so that an address that was given to another pod is never
//! served by an old connection.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::Notify;
use weft_identity::Credentials;
use weft_policy::{endpoints::Endpoint, names::WorkloadId};

use crate::{
    dial::DialError,
    http::{
        client::Upstream,
        client2::{Connection, Stream},
    },
    limits,
    transport::{Transport, TransportKey},
};

/// What a pooled connection may be used for. The pod is the pool's own, and the protocol that of the table that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    address: SocketAddr,
    workload: Option<WorkloadId>,
    transport: TransportKey,
}

impl Key {
    pub(crate) fn new(endpoint: &Endpoint, transport: &Transport) -> Self {
        Self { address: endpoint.address, workload: endpoint.workload.clone(), transport: transport.key() }
    }
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// One pod's pool.
#[derive(Default)]
pub(crate) struct Pool(RefCell<Inner>);

#[derive(Default)]
struct Inner {
    /// The newest is last, and taken first: the others then time out.
    idle: HashMap<Key, Vec<Idle>>,
    shared: HashMap<Key, Shared>,
    closed: bool,
}

/// HTTP/2 connections to one endpoint.
#[derive(Default)]
struct Shared {
    connections: Vec<Rc<Connection>>,
    dialling: Option<Rc<Dialling>>,
    /// Told when a request ends on one of them.
    room: Rc<Notify>,
}

/// A connection that is being made, for everybody who waits for it.
#[derive(Default)]
pub(crate) struct Dialling {
    over: Cell<bool>,
    failed: RefCell<Option<Rc<DialError>>>,
    changed: Notify,
}

impl Dialling {
    /// Waits until it is made, or has failed.
    pub(crate) async fn over(&self) -> Result<(), Rc<DialError>> {
        while !self.over.get() {
            self.changed.notified().await;
        }
        self.failed.borrow().clone().map_or(Ok(()), Err)
    }
}

/// What the pool has for a request to an endpoint that speaks HTTP/2.
pub(crate) enum Found {
    /// A place on a connection.
    Stream(Stream),
    /// A connection is being made.
    Dialling(Rc<Dialling>),
    /// The caller is to make one, with [`Pool::dialled`] when it is done.
    Dial(Rc<Dialling>, Rc<Notify>),
    /// There are as many connections as there may be, and all are full: to be asked again when a request has ended.
    Full(Rc<Notify>),
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
    pub(crate) fn checkout(&self, key: &Key) -> Option<Upstream> {
        let mut inner = self.0.borrow_mut();
        let idle = inner.idle.get_mut(key)?;
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
        let idle = inner.idle.entry(upstream.key().clone()).or_default();
        if idle.len() >= max_per_key {
            return Kept::Full;
        }
        idle.push(Idle { upstream, since: Instant::now() });
        Kept::Yes
    }

    /// A place for a request on an HTTP/2 connection to this very endpoint, or how to come by one.
    pub(crate) fn stream(&self, key: &Key) -> Found {
        let mut inner = self.0.borrow_mut();
        let shared = inner.shared.entry(key.clone()).or_default();
        shared.connections.retain(|connection| connection.is_usable());
        // The oldest first: the others become idle, and end.
        if let Some(stream) = shared.connections.iter().find_map(Connection::join) {
            return Found::Stream(stream);
        }
        if let Some(dialling) = &shared.dialling {
            return Found::Dialling(Rc::clone(dialling));
        }
        if shared.connections.len() >= limits::H2_CONNECTIONS_PER_KEY_MAX {
            return Found::Full(Rc::clone(&shared.room));
        }
        let dialling = Rc::<Dialling>::default();
        shared.dialling = Some(Rc::clone(&dialling));
        Found::Dial(dialling, Rc::clone(&shared.room))
    }

    /// A dial for [`Found::Dial`] is over: shares the connection, and tells everybody who waits.
    pub(crate) fn dialled(&self, key: Key, dialling: &Dialling, outcome: Result<Connection, DialError>) {
        let mut inner = self.0.borrow_mut();
        let shared = inner.shared.entry(key).or_default();
        shared.dialling = None;
        match outcome {
            Ok(connection) => shared.connections.push(Rc::new(connection)),
            Err(error) => *dialling.failed.borrow_mut() = Some(Rc::new(error)),
        }
        dialling.over.set(true);
        dialling.changed.notify_waiters();
    }

    /// Lets go of connections that were not used for `idle_max`, are closed, or lead to endpoints that are not ready any more. HTTP/2
    /// connections finish the requests that they have, unless a certificate has ended.
    pub(crate) fn sweep(
        &self,
        now: (Instant, SystemTime),
        (idle_max, h2_idle_max): (Duration, Duration),
        credentials: Option<&dyn Credentials>,
    ) {
        let (now, wall) = now;
        let mut inner = self.0.borrow_mut();
        inner.idle.retain(|_, idle| {
            idle.retain(|idle| {
                let fresh = now.duration_since(idle.since) < idle_max;
                fresh && !idle.upstream.is_closed() && idle.upstream.is_wanted()
            });
            !idle.is_empty()
        });
        inner.shared.retain(|_, shared| {
            shared.connections.retain(|connection| {
                if let Some(remote) = connection.remote() {
                    if remote.has_expired(wall) {
                        connection.cut();
                        return false;
                    }
                    if credentials.is_some_and(|credentials| remote.is_outdated(credentials)) {
                        return false;
                    }
                }
                let idle = connection.idle_since().is_some_and(|since| now.duration_since(since) >= h2_idle_max);
                !idle && connection.is_usable() && connection.is_wanted()
            });
            !shared.connections.is_empty() || shared.dialling.is_some()
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        let inner = self.0.borrow();
        inner.idle.is_empty() && inner.shared.is_empty()
    }

    /// Drops everything, and takes nothing any more: the pod is gone.
    pub(crate) fn clear(&self) {
        let mut inner = self.0.borrow_mut();
        inner.closed = true;
        inner.idle.clear();
        // Those who wait for a dial still get it; it ends with the last of them.
        for shared in inner.shared.values_mut() {
            shared.connections.clear();
        }
    }
}
