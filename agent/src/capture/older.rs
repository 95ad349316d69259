//! Connections into a pod that weft does not carry: older than its capture, or made directly while the agent was gone.
//!
//! Nothing in the kernel keeps a list of them. They are what is left of a namespace's sockets without the agent's own, those that the
//! agent carries, the node's, and the pod's talk with itself. Which of them may stay is not decided here.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_sock_diag::{
    constants::{TCP_FIN_WAIT2, TCP_SYN_RECV},
    inet::StateFlags,
};
use weft_abi::NODE_NETNS;
use weft_policy::names::WorkloadId;

use super::{
    Capture, convert,
    diag::{Destroyed, Diag, TcpSocket},
    error::PodError,
    limits::OLDER_LOOKED_AT_MAX,
    pod::Attached,
    sysctl,
};

/// A connection into a pod that weft does not carry.
#[derive(Clone, Debug)]
pub struct OlderConnection {
    /// Where it was made to.
    pub to: SocketAddr,
    /// Who made it.
    pub client: SocketAddr,
    socket: TcpSocket,
}

/// What one look at a pod's sockets shows.
#[derive(Debug, Default)]
pub struct OlderConnections {
    /// Connections made to it, at most [`OLDER_LOOKED_AT_MAX`].
    pub inbound: Vec<OlderConnection>,
    /// Connections that were about to be made, as (to, from). They may turn out to be some that weft does not carry.
    pub being_made: HashSet<(SocketAddr, SocketAddr)>,
    /// Whether there are more.
    pub more: bool,
}

/// What became of a connection that was to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It was reset.
    Done,
    /// It had ended already.
    Gone,
    /// The agent carries it from its client's side, and asks policy itself.
    Carried,
    /// This kernel ends no sockets: it was built without `CONFIG_INET_DIAG_DESTROY`.
    Unsupported,
}

/// Ends connections of one pod; made anew for each look, because it remembers what it saw.
#[derive(Debug)]
pub struct Cutter<'a> {
    capture: &'a Capture,
    diag: Diag,
    /// The agent's own connections in the namespaces of clients, each asked once.
    dialled: HashMap<IpAddr, HashSet<(SocketAddr, SocketAddr)>>,
}

impl Capture {
    /// Connections made to a captured pod that weft does not carry.
    ///
    /// # Errors
    /// When the pod is not captured, or the kernel does not tell.
    pub fn older_connections(&self, id: &WorkloadId) -> Result<OlderConnections, PodError> {
        let attached = self.attached.get(id).ok_or_else(|| PodError::NotAttached(id.clone()))?;
        self.list_older(attached).map_err(PodError::kernel("list the pod's connections"))
    }

    /// How many connections reached the pod directly because the agent was gone.
    #[must_use]
    pub fn direct_connections(&self, id: &WorkloadId) -> u64 {
        self.attached.get(id).map_or(0, |attached| self.tables.stats(attached.stats_key()).inbound_direct)
    }

    /// Tells captures of a pod apart: another one whenever it is captured anew in another namespace; `None` if there is nothing to look
    /// at, because it is not captured, or its inbound connections are not.
    #[must_use]
    pub fn inbound_capture(&self, id: &WorkloadId) -> Option<u64> {
        self.attached.get(id).filter(|attached| attached.sockets.inbound).map(|attached| attached.config.netns_cookie)
    }

    /// Something to end connections of a captured pod with.
    ///
    /// # Errors
    /// As [`older_connections`](Self::older_connections).
    pub fn cutter(&self, id: &WorkloadId) -> Result<Cutter<'_>, PodError> {
        let attached = self.attached.get(id).ok_or_else(|| PodError::NotAttached(id.clone()))?;
        let diag = attached.sockets.netns.enter(Diag::open).and_then(|made| made);
        let diag = diag.map_err(PodError::kernel("open a sock_diag socket"))?;
        Ok(Cutter { capture: self, diag, dialled: HashMap::new() })
    }

    fn list_older(&self, attached: &Attached) -> io::Result<OlderConnections> {
        let netns = &attached.sockets.netns;
        // Not the pod's own: workers wait for that one.
        let mut diag = netns.enter(Diag::open).and_then(|made| made)?;
        let ephemeral = netns.enter(sysctl::ephemeral_ports).and_then(|range| range)?;
        let mut listened = HashSet::new();
        diag.tcp(&StateFlags::LISTEN, None, |socket| {
            listened.insert(socket.local.port());
        })?;

        let mut found = OlderConnections::default();
        let mut candidates = Vec::new();
        let states = StateFlags::ESTABLISHED
            | StateFlags::SYN_RECV
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT;
        diag.tcp(&states, Some(self.sockets.tags()), |socket| {
            // Who connected a socket does not show. What came in is at a port that somebody listens on, or at one that the kernel gives
            // to nobody who asks for any.
            let came_in = listened.contains(&socket.local.port()) || !ephemeral.contains(&socket.local.port());
            if socket.agents_own || !came_in || is_own_talk(&socket) || self.is_known(attached, &socket) {
                return;
            }
            match socket.state {
                TCP_SYN_RECV => drop(found.being_made.insert((socket.local, socket.peer))),
                // Closed by its application: nobody reads or writes any more.
                TCP_FIN_WAIT2 if !socket.held => {}
                _ if candidates.len() >= OLDER_LOOKED_AT_MAX => found.more = true,
                _ => candidates.push(socket),
            }
        })?;
        let mut home = Diag::open()?;
        for socket in candidates {
            // A socket of the host's own namespace. Whoever is only masqueraded behind the node has none there.
            if !home.holds(socket.peer, socket.local)? {
                found.inbound.push(OlderConnection { to: socket.local, client: socket.peer, socket });
            }
        }
        Ok(found)
    }

    /// Whether the agent made it, or the node, as the look-up program knows it. A map that cannot be read knows nothing.
    fn is_known(&self, attached: &Attached, socket: &TcpSocket) -> bool {
        let mut key = convert::flow_key(attached.config.netns_cookie, socket.local, socket.peer);
        if self.tables.bypass.get(&key).ok().flatten().is_some() {
            return true;
        }
        key.netns_cookie = NODE_NETNS;
        self.tables.node_flows.get(&key).ok().flatten().is_some()
    }
}

/// Whether the pod talks to itself: by loopback, or by its own address, where redirected connections are, too.
fn is_own_talk(socket: &TcpSocket) -> bool {
    socket.local.ip().is_loopback() || socket.peer.ip().is_loopback() || socket.local.ip() == socket.peer.ip()
}

impl Cutter<'_> {
    /// Resets a connection. `from` is the captured pod of this node whose address its client has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&mut self, connection: &OlderConnection, from: Option<&WorkloadId>) -> io::Result<Cut> {
        if let Some(from) = from
            && self.is_carried(connection, from)?
        {
            return Ok(Cut::Carried);
        }
        Ok(match self.diag.destroy(&connection.socket)? {
            Destroyed::Done => Cut::Done,
            Destroyed::Gone => Cut::Gone,
            Destroyed::Unsupported => Cut::Unsupported,
        })
    }

    /// Whether the agent dialled it, in its client's namespace, when the pod at its other end was not captured yet.
    fn is_carried(&mut self, connection: &OlderConnection, from: &WorkloadId) -> io::Result<bool> {
        let ip = connection.client.ip();
        if !self.dialled.contains_key(&ip) {
            let mut dialled = HashSet::new();
            if let Some(client) = self.capture.attached.get(from) {
                let mut diag = client.sockets.netns.enter(Diag::open).and_then(|made| made)?;
                let live =
                    StateFlags::ESTABLISHED | StateFlags::FIN_WAIT1 | StateFlags::FIN_WAIT2 | StateFlags::CLOSE_WAIT;
                diag.tcp(&live, Some(self.capture.sockets.tags()), |socket| {
                    if socket.agents_own && socket.local.ip() == ip {
                        dialled.insert((socket.local, socket.peer));
                    }
                })?;
            }
            self.dialled.insert(ip, dialled);
        }
        Ok(self.dialled.get(&ip).is_some_and(|dialled| dialled.contains(&(connection.client, connection.to))))
    }
}
