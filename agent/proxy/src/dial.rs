//! Connects to endpoints: a socket from capture, a connect that does not block, a bound on how many are under way. Chooses nothing.

use std::{io, net::SocketAddr};

use socket2::{SockAddr, SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use weft_identity::Refusal;

use crate::{
    limits,
    metrics::{DialResult, Limit},
    socket::{Dial, DialSocket, Lease, SocketError},
    worker::Worker,
};

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    /// Dropped with the connection, not before.
    pub(crate) lease: Lease,
}

/// Why a dial failed. Always before anything was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no socket for {to}")]
    Socket {
        to: SocketAddr,
        #[source]
        source: SocketError,
    },
    #[error("{to} refused the connection")]
    Refused { to: SocketAddr },
    #[error("{to} did not answer within {} s", .within.as_secs_f32())]
    TimedOut { to: SocketAddr, within: std::time::Duration },
    #[error("{to} cannot be reached")]
    Unreachable {
        to: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("too many connects are under way in this worker")]
    Exhausted,
    #[error("mutual TLS with {to} failed: {refusal}")]
    Tls { to: SocketAddr, refusal: Box<Refusal> },
    #[error("{to} does not speak HTTP/2: {what}")]
    NotHttp2 { to: SocketAddr, what: &'static str },
}

impl DialError {
    /// Whether the process, or the machine, may open no more files (EMFILE, ENFILE).
    fn out_of_files(&self) -> bool {
        const OUT_OF_FILES: [i32; 2] =
            [rustix::io::Errno::MFILE.raw_os_error(), rustix::io::Errno::NFILE.raw_os_error()];
        matches!(self, Self::Socket { source: SocketError::Kernel { source, .. }, .. }
            if source.raw_os_error().is_some_and(|code| OUT_OF_FILES.contains(&code)))
    }

    /// Whether another endpoint may do better.
    pub(crate) fn retryable(&self) -> bool {
        match self {
            Self::Socket { source, .. } => source.retryable(),
            Self::Refused { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::NotHttp2 { .. } => true,
            Self::Exhausted => false,
        }
    }
}

/// Connects, or says why not within the connect timeout.
pub(crate) async fn dial(worker: &Worker, dial: Dial<'_>) -> Result<Dialled, DialError> {
    let to = match dial {
        Dial::Outbound { to, .. } | Dial::Inbound { to, .. } => to,
    };
    let within = worker.config.connect_timeout;
    let mut waited = true;
    let attempt = async {
        let _slot = match worker.dials.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                worker.metrics.reached(Limit::Dials);
                worker.dials.acquire().await.map_err(|_| DialError::Exhausted)?
            }
        };
        waited = false;
        connect(worker, &dial, to).await
    };
    let outcome = match tokio::time::timeout(within, attempt).await {
        Ok(outcome) => outcome,
        Err(_) if waited => Err(DialError::Exhausted),
        Err(_) => Err(DialError::TimedOut { to, within }),
    };
    worker.metrics.dialled(match &outcome {
        // What it speaks shows only later.
        Ok(_) | Err(DialError::Tls { .. } | DialError::NotHttp2 { .. }) => DialResult::Connected,
        Err(DialError::Refused { .. }) => DialResult::Refused,
        Err(DialError::TimedOut { .. }) => DialResult::TimedOut,
        Err(DialError::Unreachable { .. }) => DialResult::Unreachable,
        Err(DialError::Socket { .. } | DialError::Exhausted) => DialResult::NoSocket,
    });
    if let Err(error) = &outcome {
        if error.out_of_files() {
            worker.limit_reached(Limit::FileDescriptors, "endpoints cannot be dialled");
        }
        if let (Dial::Outbound { .. }, DialError::Socket { source: SocketError::PortsExhausted { .. }, .. }) =
            (dial, error)
        {
            worker.limit_reached(Limit::TlsPorts, "no source port is left for mutual TLS to an endpoint");
        }
        tracing::debug!(%to, error = error as &dyn std::error::Error, "dial failed");
    }
    outcome
}

async fn connect(worker: &Worker, dial: &Dial<'_>, to: SocketAddr) -> Result<Dialled, DialError> {
    let no_socket = |source| DialError::Socket { to, source };
    let made = worker.sockets.socket(dial).map_err(no_socket)?;
    match made.socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(error) if in_progress(&error) => {}
        Err(error) => return Err(failed(to, error)),
    }
    worker.sockets.started(&made, dial).map_err(no_socket)?;
    let DialSocket { socket, lease } = made;
    tune(&SockRef::from(&socket));
    let stream = TcpStream::from_std(socket.into()).map_err(|error| failed(to, error))?;
    // A connect that failed makes the socket writable too, with an error to take.
    stream.writable().await.map_err(|error| failed(to, error))?;
    match stream.take_error() {
        Ok(None) => Ok(Dialled { stream, lease }),
        Ok(Some(error)) | Err(error) => Err(failed(to, error)),
    }
}

fn in_progress(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

fn failed(to: SocketAddr, source: io::Error) -> DialError {
    match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => DialError::Refused { to },
        _ => DialError::Unreachable { to, source },
    }
}

/// No delay for small segments, and keepalive so that a vanished peer is found out. Neither is worth failing for.
pub(crate) fn tune(socket: &SockRef<'_>) {
    let keepalive = TcpKeepalive::new()
        .with_time(limits::KEEPALIVE_IDLE)
        .with_interval(limits::KEEPALIVE_INTERVAL)
        .with_retries(limits::KEEPALIVE_PROBES);
    if let Err(error) = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
        tracing::debug!(%error, "socket options could not be set");
    }
}

/// Closes with a reset instead of an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    // An error means that the connection is gone already.
    let _ = stream.set_zero_linger();
    drop(stream);
}
