//! The server's counters, and the Unix socket on which it tells them: nothing is added to what the network carries.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;

use super::{PortStats, ServerStats};
use crate::{limits, wait};

/// Shared by all connections of a server.
#[derive(Clone, Debug)]
pub struct Counters {
    /// The server's name.
    pub name: Arc<str>,
    ports: Arc<Mutex<BTreeMap<u16, PortStats>>>,
}

impl Counters {
    /// For a server called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ports: Arc::default() }
    }

    /// A connection was accepted.
    pub fn connection(&self, port: u16, peer: SocketAddr) {
        self.update(port, |stats| {
            stats.connections += 1;
            *stats.peers.entry(peer_ip(peer).to_string()).or_default() += 1;
        });
    }

    /// A request has begun.
    pub fn request(&self, port: u16) {
        self.update(port, |stats| stats.requests += 1);
    }

    /// A connection began with a TLS ClientHello.
    pub fn client_hello(&self, port: u16) {
        self.update(port, |stats| stats.client_hellos += 1);
    }

    fn update(&self, port: u16, change: impl FnOnce(&mut PortStats)) {
        change(self.ports.lock().unwrap_or_else(PoisonError::into_inner).entry(port).or_default());
    }

    fn stats(&self) -> ServerStats {
        ServerStats { ports: self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone() }
    }
}

/// Serves the counters: whoever connects gets them as JSON.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(path: PathBuf, counters: Counters) -> Result<()> {
    std::fs::remove_file(&path).ok();
    let listener =
        tokio::net::UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let text = serde_json::to_vec(&counters.stats())?;
        // Whoever asked may have gone.
        stream.write_all(&text).await.ok();
    }
}

/// Asks for the counters; nothing is added to what the network saw.
///
/// # Errors
/// When nobody answers.
pub fn ask(path: &Path) -> Result<ServerStats> {
    let text = wait::until("the server's statistics", limits::HTTP_TIMEOUT, || {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        let text = std::io::read_to_string(stream)?;
        Ok((!text.is_empty()).then_some(text))
    })?;
    serde_json::from_str(&text).context("cannot read the server's statistics")
}

/// The peer's address, IPv4 as such.
#[must_use]
pub fn peer_ip(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}
