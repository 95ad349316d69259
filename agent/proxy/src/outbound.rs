//! A connection that a captured pod made: what it was meant for, what it speaks, and on to the right place.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use tokio::{net::TcpStream, time::timeout};
use weft_policy::{
    endpoints::Endpoint,
    plan::{AppProtocol, Destination},
    snapshot::PlanHandle,
};

use crate::{
    access::{Admitted, Asks, Passage},
    balance::{Asker, EndpointLoad},
    choose::{self, Choice},
    detect::{self, Detected, Unasked},
    dial,
    drain::Phase,
    early::{Early, Line},
    flows::{Direction, Flow, FlowEntry, FlowProtocol, bump},
    http,
    learnt::{LearntKey, Port, Seen},
    limits,
    metrics::Limit,
    mutual::Secured,
    reply::{LocalReply, Reason},
    tcp::{self, End, Side},
    transport::{Encryption, Transport},
    worker::{Pod, Worker},
};

/// What a connection speaks, and how far it got meanwhile.
#[derive(Debug)]
struct Found {
    detected: Detected,
    /// The outcome of the dial, if there was one.
    reached: Option<Result<Early, LocalReply>>,
}

impl Found {
    fn undialled(detected: Detected) -> Self {
        Self { detected, reached: None }
    }
}

/// Serves one accepted connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, stream: TcpStream, entry: FlowEntry) {
    let flow = Rc::clone(&entry.flow);
    let mut plan = PlanHandle::new(Arc::clone(&worker.snapshots), flow.destination);
    let destination = plan.current().cloned();
    let protocol = match &destination {
        Some(Destination::Service(plan)) => {
            *flow.service.borrow_mut() = Some((plan.service.clone(), plan.port));
            plan.protocol
        }
        Some(Destination::Pod(pod)) => pod.protocol(flow.destination.port()),
        // The snapshot does not know it any more: bytes, to where they were going.
        None => AppProtocol::Tcp,
    };
    let way = Way { worker: &worker, pod: &pod, flow: &flow, destination: destination.as_ref() };
    let found = match protocol {
        AppProtocol::Tcp => Ok(Found::undialled(Detected::Opaque)),
        AppProtocol::Tls => Ok(Found::undialled(Detected::Tls)),
        AppProtocol::Detect => tokio::select! {
            found = way.watch(&stream) => found,
            // In order, unless somebody has said something that is lost.
            () = flow.control.cut() => return drop(stream),
        },
        AppProtocol::Http | AppProtocol::Http1 | AppProtocol::Http2 => tokio::select! {
            detected = detect::client(&stream, true, &worker) => detected.map(Found::undialled),
            () = told_to_end(&stream, &flow) => return drop(stream),
        },
    };
    let found = match found {
        Ok(found) => {
            tracing::debug!(source = %pod.pod.name, peer = %flow.peer, destination = %flow.destination, ?protocol, detected = ?found.detected, "captured");
            found
        }
        Err(error) => {
            tracing::debug!(peer = %flow.peer, %error, "connection failed before its protocol was known");
            return dial::reset(stream);
        }
    };
    match found.detected {
        Detected::Http1 => {
            // Without one the request itself tells its client why.
            let early = found.reached.and_then(Result::ok);
            http::server::serve(worker, pod, entry, stream, plan, early).await;
        }
        Detected::Http2 => {
            let early = found.reached.and_then(Result::ok);
            http::server2::serve(worker, pod, entry, stream.into(), plan, early).await;
        }
        Detected::Tls | Detected::Opaque => way.opaque(stream, found, protocol).await,
        Detected::Ended | Detected::Silent => tcp::linger(stream, &worker.scratch).await,
    }
}

/// Returns when a connection on a port of HTTP that has not said a word is to end: a drain does that, because its client knows that
/// an idle connection may close. Others become known within a moment.
async fn told_to_end(stream: &TcpStream, flow: &Flow) {
    let mut phase = Phase::Running;
    loop {
        phase = flow.control.changed(phase).await;
        if phase == Phase::Draining {
            // One that has just connected is about to speak, and knows nothing of an idle connection.
            let grace = limits::NEW_CONNECTION_GRACE.saturating_sub(flow.started.elapsed());
            phase = timeout(grace, flow.control.changed(phase)).await.unwrap_or(phase);
        }
        if phase > Phase::Draining || !tcp::has_unread(stream) {
            return;
        }
    }
}

/// A connection on its way to where it was meant to go.
#[derive(Clone, Copy)]
struct Way<'a> {
    worker: &'a Worker,
    pod: &'a Pod,
    flow: &'a Flow,
    destination: Option<&'a Destination>,
}

impl Way<'_> {
    /// Dials, and watches both sides until one of them shows what is spoken. While both are silent that may take for ever: then
    /// this is a connection on which weft holds nothing back, and a drain treats it as it treats bytes.
    async fn watch(&self, stream: &TcpStream) -> io::Result<Found> {
        let worker = self.worker;
        let port = self.learnt();
        let mut client = pin!(detect::client(stream, false, worker));
        if port.as_ref().is_some_and(|port| port.client_speaks_first()) {
            // A connection from the pool may do, and a request's own route decides, so a dial now would be in vain.
            match timeout(worker.config.learnt_wait, &mut client).await {
                Ok(detected) => return Ok(Found::undialled(self.client_showed(port.as_deref(), detected?))),
                Err(_) => worker.metrics.reached(Limit::LearntWait),
            }
        }
        let mut reach = pin!(self.reach(Asks::Connect));
        let reached = tokio::select! {
            biased;
            reached = &mut reach => reached,
            detected = &mut client => match detected {
                Ok(detected) => {
                    let reached = reach.await;
                    let asks_only = matches!(&reached, Ok(early) if early.admitted == Some(Admitted::Requests));
                    let detected = match detected {
                        // It said nothing, so there is nothing to deny.
                        Detected::Ended if asks_only => Detected::Ended,
                        detected => self.client_showed(port.as_deref(), detected),
                    };
                    return Ok(Found { detected, reached: Some(reached) });
                }
                Err(error) => {
                    // The server may have accepted already, and a socket that is merely closed would look like an end in order.
                    if let Ok(early) = reach.await {
                        self.open();
                        early.line.reset();
                    }
                    return Err(error);
                }
            },
        };
        let early = match reached {
            Ok(early) => early,
            Err(reply) => {
                // A client of HTTP is answered why. Any other sees a reset, as of a server that is not there.
                let detected = if let Ok(detected) = timeout(worker.config.refusal_wait, &mut client).await {
                    self.client_showed(port.as_deref(), detected?)
                } else {
                    worker.metrics.reached(Limit::RefusalWait);
                    Detected::Opaque
                };
                return Ok(Found { detected, reached: Some(Err(reply)) });
            }
        };
        if early.admitted == Some(Admitted::Requests) {
            return self.requests_only(client.as_mut(), port.as_deref(), early).await;
        }
        let Line::Plain(dialled, _) = &early.line else {
            return self.choose_mutual(client.as_mut(), port.as_deref(), early).await;
        };
        let first = tokio::select! {
            // A server that has spoken unasked is none of HTTP/1, whatever the client says.
            biased;
            unasked = detect::server(&dialled.stream) => match unasked {
                Ok(Unasked::Settings) => None,
                Ok(Unasked::Spoke) => {
                    self.saw(port.as_deref(), Seen::ServerFirst);
                    Some(Ok(Detected::Opaque))
                }
                Ok(Unasked::Ended) => Some(Ok(Detected::Opaque)),
                Err(error) => {
                    self.open();
                    return Err(error);
                }
            },
            detected = &mut client => Some(detected.map(|detected| self.client_showed(port.as_deref(), detected))),
        };
        let detected = match first {
            Some(detected) => detected,
            // A client of HTTP/2 does not wait for these. Any other, whatever it is, gets them a little later.
            None => match timeout(worker.config.detect_timeout, &mut client).await {
                Ok(Ok(Detected::Http2)) => Ok(self.client_showed(port.as_deref(), Detected::Http2)),
                Ok(Ok(_)) => Ok(Detected::Opaque),
                Ok(Err(error)) => Err(error),
                Err(_) => {
                    worker.metrics.reached(Limit::DetectTimeout);
                    self.saw(port.as_deref(), Seen::ServerFirst);
                    Ok(Detected::Opaque)
                }
            },
        };
        let detected = match detected {
            Ok(detected) => detected,
            Err(error) => {
                self.open();
                early.line.reset();
                return Err(error);
            }
        };
        Ok(Found { detected, reached: Some(Ok(early)) })
    }

    /// Waits for a client that may say nothing but requests. What the server says unasked is not for it.
    async fn requests_only(
        &self,
        client: Pin<&mut impl Future<Output = io::Result<Detected>>>,
        port: Option<&Port>,
        early: Early,
    ) -> io::Result<Found> {
        let worker = self.worker;
        let detected = match timeout(worker.config.header_read_timeout, client).await {
            Ok(Ok(Detected::Ended)) => Detected::Ended,
            Ok(Ok(detected)) => self.client_showed(port, detected),
            Ok(Err(error)) => {
                self.open();
                early.line.reset();
                return Err(error);
            }
            Err(_) => {
                worker.metrics.reached(Limit::HeaderReadTimeout);
                Detected::Silent
            }
        };
        Ok(Found { detected, reached: Some(Ok(early)) })
    }

    /// Waits a little for a client whose connection is to be one of mutual TLS: whether it carries requests or bytes must be said before the
    /// server is heard. A client that stays silent gets bytes, and with them what a server says that speaks first.
    async fn choose_mutual(
        &self,
        mut client: Pin<&mut impl Future<Output = io::Result<Detected>>>,
        port: Option<&Port>,
        early: Early,
    ) -> io::Result<Found> {
        let worker = self.worker;
        if !port.is_some_and(|port| port.server_speaks_first()) {
            match timeout(worker.config.learnt_wait, &mut client).await {
                Ok(Ok(detected)) => {
                    let detected = self.client_showed(port, detected);
                    return Ok(Found { detected, reached: Some(Ok(early)) });
                }
                Ok(Err(error)) => {
                    self.open();
                    early.line.reset();
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        let Early { line, .. } = early;
        let mut secured = match line.for_bytes(worker).await {
            Ok(Line::Secured(secured)) => secured,
            Ok(line) => return Ok(Found { detected: Detected::Opaque, reached: Some(Ok(Early { line, ..early })) }),
            Err(error) => {
                let reply = LocalReply::new(Reason::TlsFailed, error);
                return Ok(Found { detected: Detected::Opaque, reached: Some(Err(reply)) });
            }
        };
        let detected = tokio::select! {
            biased;
            heard = secured.hear() => heard.map(|()| {
                self.saw(port, Seen::ServerFirst);
                Detected::Opaque
            }),
            detected = &mut client => detected.map(|detected| self.client_showed(port, detected)),
        };
        let line = Line::Secured(secured);
        match detected {
            Ok(detected @ (Detected::Http1 | Detected::Http2)) => {
                // Its requests go another way. The application has seen a connection that came and went.
                Early { line, ..early }.unused(worker);
                Ok(Found::undialled(detected))
            }
            Ok(detected) => Ok(Found { detected, reached: Some(Ok(Early { line, ..early })) }),
            Err(error) => {
                self.open();
                line.reset();
                Err(error)
            }
        }
    }

    /// What is remembered of the port.
    fn learnt(&self) -> Option<Rc<Port>> {
        let key = match self.destination? {
            Destination::Service(plan) => LearntKey::Service(plan.service.clone(), plan.port),
            Destination::Pod(_) => LearntKey::Pod(self.flow.destination),
        };
        let port = self.worker.learnt.port(key, self.flow.started);
        if port.is_none() {
            self.worker.metrics.reached(Limit::LearntPorts);
        }
        port
    }

    fn saw(&self, port: Option<&Port>, seen: Seen) {
        self.worker.detection.observe(seen, self.flow.started.elapsed());
        if let Some(port) = port {
            port.saw(seen);
        }
    }

    /// Takes note of what a client said. One that left without a word is passed on as that, and says nothing about the port.
    fn client_showed(&self, port: Option<&Port>, detected: Detected) -> Detected {
        let seen = match detected {
            Detected::Http1 => Seen::Http,
            Detected::Http2 => Seen::Http2,
            Detected::Tls => Seen::Tls,
            Detected::Opaque => Seen::Opaque,
            Detected::Ended | Detected::Silent => return Detected::Opaque,
        };
        self.saw(port, seen);
        detected
    }

    /// Counts the connection under what it leads to.
    fn open(&self) {
        let (service, backend) = (self.flow.service.borrow(), self.flow.backend.borrow());
        self.flow.open(self.pod.cells.connections(
            Direction::Outbound,
            service.as_ref().map(|(service, _)| service),
            backend.as_ref(),
        ));
    }

    async fn opaque(&self, stream: TcpStream, found: Found, protocol: AppProtocol) {
        let Self { worker, flow, .. } = *self;
        let tls = found.detected == Detected::Tls;
        flow.protocol.set(if tls { FlowProtocol::Tls } else { FlowProtocol::Tcp });
        let early = match protocol {
            // Nobody has looked.
            AppProtocol::Tcp | AppProtocol::Tls => Bytes::new(),
            _ if tls => Bytes::new(),
            _ => match detect::take(&stream) {
                Ok(early) => early,
                Err(error) => {
                    tracing::debug!(peer = %flow.peer, %error, "client connection failed");
                    if let Some(Ok(early)) = found.reached {
                        early.line.reset();
                    }
                    return dial::reset(stream);
                }
            },
        };
        bump(&flow.bytes_sent, early.len());
        let reached = match found.reached {
            Some(reached) => reached,
            None => tokio::select! {
                reached = self.reach(Asks::Bytes) => reached,
                () = flow.control.cut() => return dial::reset(stream),
            },
        };
        self.open();
        let reached = match reached.and_then(|early| self.let_through(early)) {
            Ok(early) => {
                let Early { line, .. } = early;
                let line = line.for_bytes(worker).await;
                line.map(|line| (line, early.in_flight)).map_err(|error| LocalReply::new(Reason::TlsFailed, error))
            }
            Err(reply) => Err(reply),
        };
        let (line, in_flight) = match reached {
            Ok(reached) => reached,
            Err(reply) => {
                // Before any byte, so the client sees what it would see of a server that is not there.
                worker.metrics.resets.inc();
                worker.metrics.replied(reply.reason);
                if let Some(denial) = &reply.denial {
                    worker.report(flow, denial);
                }
                tracing::debug!(source = %self.pod.pod.name, destination = %flow.destination, reason = reply.reason.word(), detail = reply.detail, "reset");
                return dial::reset(stream);
            }
        };
        let (upstream, lease) = match line {
            Line::Plain(dialled, encryption) => {
                flow.encryption.set(Some(encryption));
                (Side::new(dialled.stream, Bytes::new()), dialled.lease)
            }
            Line::Secured(Secured { stream, lease, remote, said }) => {
                flow.encryption.set(Some(Encryption::MutualTls));
                // There is one line to a flow of bytes.
                _ = flow.remote.set(remote);
                bump(&flow.bytes_received, said.len());
                (Side::new(stream, said), lease)
            }
            // It was made one that carries bytes just now.
            Line::Mutual(dialled, ..) => return dial::reset(dialled.stream),
        };
        let downstream = Side::new(stream, early);
        let end = if tls {
            tcp::splice_tls(downstream, upstream, flow, worker).await
        } else {
            tcp::splice(downstream, upstream, flow, &worker.scratch).await
        };
        if end == End::Cut {
            worker.metrics.resets.inc();
        }
        tracing::debug!(destination = %flow.destination, ?end, sent = flow.bytes_sent.get(), received = flow.bytes_received.get(), "closed");
        drop((lease, in_flight));
    }

    /// Whether a connection that was made takes bytes that weft does not look into: that was not asked while a request could still
    /// come, and it may be long ago.
    fn let_through(&self, early: Early) -> Result<Early, LocalReply> {
        let endpoint = &early.load.endpoint;
        match self.worker.admit(&self.pod.pod, endpoint, Asks::Bytes) {
            Ok(_) => {
                let passage = endpoint.workload.clone().map(|workload| Passage::new(workload, endpoint.address, None));
                *self.flow.passage.borrow_mut() = passage;
                Ok(early)
            }
            Err(denial) => {
                early.line.reset();
                Err(LocalReply::denied(denial))
            }
        }
    }

    /// Connects to an endpoint of whatever the connection was meant for.
    async fn reach(&self, asks: Asks<'_>) -> Result<Early, LocalReply> {
        let Self { worker, flow, .. } = *self;
        let direct = |workload, node| EndpointLoad::new(Endpoint { address: flow.destination, workload, node });
        match self.destination {
            Some(Destination::Service(plan)) => {
                let split = plan.route_connection();
                let choice = choose::split(worker, split).map_err(|none| choose::no_backend(split, none))?;
                self.first(choice, asks).await
            }
            Some(Destination::Pod(plan)) => {
                let load = direct(Some(plan.workload.clone()), plan.node.clone());
                let protocol = plan.protocol(flow.destination.port());
                self.first(Choice::Pod { load: &load, protocol }, asks).await
            }
            None => self.first(Choice::Pod { load: &direct(None, None), protocol: AppProtocol::Tcp }, asks).await,
        }
    }

    /// Connects to the first endpoint that answers. Takes the inbound step of each before it is dialled.
    async fn first(&self, choice: Choice<'_>, asks: Asks<'_>) -> Result<Early, LocalReply> {
        let Self { worker, pod, flow, .. } = *self;
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut failure = None;
        let asker = Asker { source: flow.peer.ip(), destination: flow.destination.ip(), head: None };
        while let Some(load) = choice.next(worker, &asker, &tried) {
            let endpoint = &load.endpoint;
            let admitted = worker.admit(&pod.pod, endpoint, asks).map_err(LocalReply::denied)?;
            let transport = match admitted {
                Some(_) => Transport::Plain { captured: true },
                None => worker.transport(&pod.pod, endpoint, choice.namespace()).await?,
            };
            let service = choice.backend().map(|backend| &backend.service);
            flow.chose(service, endpoint.address);
            let in_flight = load.begin();
            let encryption = transport.encryption();
            let line = match dial::dial(worker, transport.dial(&pod.pod, endpoint)).await {
                // What it carries is known already, so another endpoint may be tried if this one is not who it should be.
                Ok(dialled) if matches!(asks, Asks::Bytes) => Line::new(dialled, transport).for_bytes(worker).await,
                Ok(dialled) => Ok(Line::new(dialled, transport)),
                Err(error) => Err(error),
            };
            match line {
                Ok(line) => {
                    pod.cells.reached(service, encryption);
                    let (split, index) = (choice.split(), choice.index());
                    return Ok(Early { split, index, load, in_flight, line, admitted });
                }
                Err(error) => {
                    in_flight.failed();
                    tried.push(endpoint.address);
                    let last = !error.retryable() || tried.len() >= limits::CONNECT_TRIES_MAX;
                    failure = Some(error);
                    if last {
                        worker.metrics.reached(Limit::ConnectTries);
                        break;
                    }
                }
            }
        }
        Err(choice.exhausted(failure.as_ref()))
    }
}
