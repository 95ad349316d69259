//! Mutual TLS between the agents of two nodes: on the destination's own port and with the pods' own addresses (TLS 1.3, RFC 8446). The
//! protocol that is agreed on (ALPN) tells it from the application's own TLS, and requests from bytes.

use std::{future::poll_fn, io, net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use tokio::{io::ReadBuf, net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use weft_identity::{Alpn, Credential, Credentials, Refusal, SpiffeId, Svid, refusal, refusal::Reason, tls};
use weft_policy::{names::ServiceAccountKey, peer::Peer};

use crate::{
    dial::{DialError, Dialled},
    limits,
    metrics::{Limit, TlsSide},
    socket::{Lease, LocalPod},
    stream::{Socket, Stream},
    worker::Worker,
};

/// Who is at the other end of a connection, as its certificate proves.
#[derive(Debug)]
pub(crate) struct Remote {
    svid: Svid,
    /// What this end showed.
    own: Arc<Credential>,
    /// The same for applications.
    pub(crate) client_cert: HeaderValue,
}

impl Remote {
    fn new(svid: Svid, own: Arc<Credential>) -> Self {
        // Characters that would need quotes are in no SPIFFE ID.
        let text = format!("By={};URI={}", own.id(), svid.id);
        let client_cert = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { svid, own, client_cert }
    }

    /// The service account of the other end.
    pub(crate) fn account(&self) -> &ServiceAccountKey {
        &self.svid.id.account
    }

    /// The identity of the other end.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// The certificate of the other end.
    pub(crate) fn svid(&self) -> &Svid {
        &self.svid
    }

    /// Whether one of both certificates has ended, and the connection with it.
    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        now >= self.svid.not_after || now >= self.own.svid().not_after
    }

    /// Whether a connection that is made now would show another certificate, or trust other roots.
    pub(crate) fn is_outdated(&self, credentials: &dyn Credentials) -> bool {
        credentials.of(&self.own.id().account).is_some_and(|current| current.epoch() != self.own.epoch())
    }
}

/// A connection to another agent, and who that is.
#[derive(Debug)]
pub(crate) struct Secured {
    pub(crate) stream: Stream,
    pub(crate) lease: Lease,
    pub(crate) remote: Rc<Remote>,
    /// What the other end has said so far.
    pub(crate) said: Bytes,
}

impl Secured {
    /// Waits until the other end says something, or ends.
    pub(crate) async fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; HEARD_BYTES_MAX];
        let mut buffer = ReadBuf::new(&mut buffer);
        poll_fn(|cx| self.stream.poll_read(cx, &mut buffer)).await?;
        self.said = Bytes::copy_from_slice(buffer.filled());
        Ok(())
    }
}

/// Most that is taken of the first words of a server that speaks first, bytes: a greeting.
const HEARD_BYTES_MAX: usize = 512;

/// Makes a connection that is there already one of mutual TLS. Nothing is sent but a `ClientHello` until the other end has proved that
/// it is the pod's agent.
pub(crate) async fn connect(
    worker: &Worker,
    credential: &Arc<Credential>,
    peer: &Peer,
    dialled: Dialled,
    alpn: Alpn,
) -> Result<Secured, DialError> {
    let Dialled { stream, lease } = dialled;
    let to = match stream.peer_addr() {
        Ok(to) => to,
        Err(source) => return Err(DialError::Unreachable { to: SocketAddr::from(([0; 4], 0)), source }),
    };
    let refused = |refusal: Refusal| {
        worker.metrics.handshake(TlsSide::Client, refusal.word());
        DialError::Tls { to, refusal: Box::new(refusal) }
    };
    let expected = SpiffeId { trust_domain: credential.id().trust_domain.clone(), account: peer.account.clone() };
    let connector = TlsConnector::from(credential.client_config(&expected, alpn));
    let handshake = connector.connect(tls::server_name(), Socket::new(stream));
    let stream = match timeout(worker.config.tls_handshake_timeout, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(refused(refusal(&error))),
        Err(_) => {
            worker.metrics.reached(Limit::TlsHandshake);
            return Err(refused(Refusal::timeout()));
        }
    };
    // Only what was offered can have been agreed on.
    let (svid, _) = tls::finished(stream.get_ref().1).map_err(refused)?;
    worker.metrics.secured(TlsSide::Client);
    let remote = Rc::new(Remote::new(svid, Arc::clone(credential)));
    Ok(Secured { stream: TlsStream::Client(stream).into(), lease, remote, said: Bytes::new() })
}

/// What a client that proved who it is wants to carry.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    pub(crate) alpn: Alpn,
    pub(crate) remote: Rc<Remote>,
}

/// Why a client's handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Tls(Box<Refusal>),
    #[error("the pod's service account has no certificate")]
    NoCredential,
    #[error("too many handshakes are under way")]
    Busy,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Tls(Box::new(refusal))
    }
}

impl Refused {
    /// Whether the client has ended the connection by itself.
    pub(crate) fn is_left(&self) -> bool {
        matches!(self, Self::Tls(refusal) if refusal.reason == Reason::Closed)
    }

    /// The reason as a word for metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::Tls(refusal) => refusal.word(),
            Self::NoCredential => "no_credential",
            Self::Busy => "busy",
        }
    }
}

/// Waits for a client's handshake. No byte of it reaches an application, whatever comes of it.
pub(crate) async fn accept(worker: &Worker, pod: &LocalPod, stream: TcpStream) -> Result<Accepted, Refused> {
    let outcome = handshake(worker, pod, stream).await;
    match &outcome {
        Ok(_) => worker.metrics.secured(TlsSide::Server),
        Err(refused) => worker.metrics.handshake(TlsSide::Server, refused.word()),
    }
    outcome
}

async fn handshake(worker: &Worker, pod: &LocalPod, stream: TcpStream) -> Result<Accepted, Refused> {
    let credential = worker.credentials.as_ref().and_then(|credentials| credentials.of(&pod.account));
    let credential = credential.ok_or(Refused::NoCredential)?;
    let Ok(_room) = worker.handshakes.try_acquire() else {
        worker.limit_reached(Limit::TlsHandshakes, "too many handshakes of mutual TLS are under way");
        return Err(Refused::Busy);
    };
    let acceptor = TlsAcceptor::from(credential.server_config());
    let accept = acceptor.accept(Socket::new(stream)).into_fallible();
    let stream = match timeout(worker.config.tls_handshake_timeout, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, socket))) => {
            // The other end learns why, if it listens.
            crate::tcp::linger(Stream::from(socket), &worker.scratch).await;
            return Err(refusal(&error).into());
        }
        Err(_) => {
            worker.metrics.reached(Limit::TlsHandshake);
            return Err(Refusal::timeout().into());
        }
    };
    let (svid, alpn) = tls::finished(stream.get_ref().1)?;
    let remote = Rc::new(Remote::new(svid, credential));
    Ok(Accepted { stream: TlsStream::Server(stream).into(), alpn, remote })
}

impl Worker {
    /// The credential of a service account; waited for while there is none, because a pod may be quicker than its certificate.
    pub(crate) async fn credential(&self, account: &ServiceAccountKey) -> Option<Arc<Credential>> {
        let credentials = self.credentials.as_ref()?;
        if let Some(credential) = credentials.of(account) {
            return Some(credential);
        }
        let mut changed = credentials.changed();
        let found = async {
            loop {
                if let Some(credential) = credentials.of(account) {
                    return Some(credential);
                }
                changed.changed().await.ok()?;
            }
        };
        timeout(limits::CREDENTIAL_WAIT, found).await.unwrap_or_else(|_| {
            self.metrics.reached(Limit::CredentialWait);
            None
        })
    }
}
