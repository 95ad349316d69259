//! A way to the API server that can be shut, byte by byte: what a load balancer or a network between them does.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

use super::server::{AGENT, ApiServer};
use crate::{Node, limits, namespace};

/// What happens to who comes, and to who is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All passes.
    Open,
    /// Connections end, and new ones are ended at once.
    Shut,
    /// Connections are taken and stay, but nothing that is said on them arrives: half-open ones behind a load balancer.
    Mute,
}

/// Listens on a port of its own, and carries connections to the API server, TLS and all.
#[derive(Debug)]
pub struct Door {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    way: Mutex<Way>,
    inside: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

impl Door {
    /// An open door to `server`, in the node's namespace.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn to(node: &Node, server: &ApiServer) -> Result<Self> {
        Self::from(node, node, server)
    }

    /// An open door on a node to `server` on another one.
    ///
    /// # Errors
    /// As [`to`](Self::to).
    pub fn from(node: &Node, of_server: &Node, server: &ApiServer) -> Result<Self> {
        let upstream = (of_server.namespace().path(), server.address());
        let listener = node.namespace().run(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen for the agent")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { way: Mutex::new(Way::Open), inside: Mutex::default(), ended: AtomicBool::new(false) });
        let (of_thread, netns) = (Arc::clone(&shared), node.namespace().path());
        let thread = thread::spawn(move || {
            // A namespace that has gone ends the door; connections to it fail, and say so.
            namespace::run_in(&netns, || {
                of_thread.serve(&listener, &upstream);
                Ok(())
            })
            .ok();
        });
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// Where it is, in the node's namespace.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says what happens from now on. Connections that were mute have lost bytes, so they end.
    pub fn set(&self, way: Way) {
        let before = std::mem::replace(&mut *locked(&self.shared.way), way);
        if way == Way::Shut || before == Way::Mute {
            self.shared.end_all();
        }
    }

    /// A kubeconfig of the agent that leads through the door.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, server: &ApiServer) -> Result<PathBuf> {
        self.kubeconfig_of(server, AGENT)
    }

    /// A kubeconfig of any user that leads through the door.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_of(&self, server: &ApiServer, user: &str) -> Result<PathBuf> {
        server.kubeconfig_through(user, "door", &format!("https://{}", self.address))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.end_all();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Shared {
    fn end_all(&self) {
        for stream in locked(&self.inside).drain(..) {
            // It may have ended by itself.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    fn serve(self: &Arc<Self>, listener: &TcpListener, upstream: &(PathBuf, SocketAddr)) {
        while !self.ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => drop(self.let_in(stream, upstream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(limits::POLL_INTERVAL),
                Err(_) => return,
            }
        }
    }

    fn let_in(self: &Arc<Self>, stream: TcpStream, (netns, address): &(PathBuf, SocketAddr)) -> Result<()> {
        stream.set_nonblocking(false)?;
        if *locked(&self.way) == Way::Shut {
            return Ok(());
        }
        let beyond = namespace::run_in(netns, || Ok(TcpStream::connect(address)?))?;
        for stream in [&stream, &beyond] {
            stream.set_nodelay(true)?;
            locked(&self.inside).push(stream.try_clone()?);
        }
        for (from, to) in [(stream.try_clone()?, beyond.try_clone()?), (beyond, stream)] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.carry(from, to));
        }
        // It may have been shut meanwhile.
        if *locked(&self.way) == Way::Shut {
            self.end_all();
        }
        Ok(())
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if *locked(&self.way) != Way::Mute && to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        for stream in [from, to] {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
