//! Sends a request to an endpoint of a choice, in the version that is spoken there, and to another endpoint or once more where
//! nothing of it was looked at.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, header, request, response,
    uri::{Authority, Scheme},
};
use http_body::Body;
use hyper::{body::Incoming, client::conn::TrySendError, ext::ReasonPhrase};
use tokio::sync::Notify;
use weft_policy::{
    endpoints::{Endpoint, EndpointCell},
    matcher::RequestHead,
    names::ServiceKey,
    plan::AppProtocol,
};

use crate::{
    access::{Asked, Asks, Passage},
    balance::{Asker, EndpointLoad, InFlight},
    choose::Choice,
    dial::{DialError, Dialled},
    early::Early,
    http::{
        body::{Carrier, Content, Gate, Loan, RequestBody, RequestBodyError, Source, Streamed},
        client::{self, Upstream, Via},
        client2::{self, Stream},
        exchange::Outgoing,
        hop,
        link::{Downstream, Link, Record},
        marks, translate,
        upgrade::{self, Agreed, Upgrade},
    },
    limits,
    metrics::Limit,
    pool::{Dialling, Found, Key},
    reply::{LocalReply, Reason},
    tcp,
    transport::Transport,
    worker::{Pod, Worker},
};

/// Sends a request to an endpoint of the choice; to another one if the first cannot be reached.
pub(crate) async fn send(
    record: &mut Record,
    choice: Choice<'_>,
    outgoing: Outgoing,
    tries: &mut Tries,
) -> Result<(response::Parts, Source), LocalReply> {
    let link = &Rc::clone(&record.link);
    let http2 = match choice.protocol() {
        AppProtocol::Http1 => false,
        AppProtocol::Http2 => true,
        _ => link.is_http2(),
    };
    let mut unsent = Unsent::new(outgoing, http2);
    if http2 && unsent.upgrade {
        return Err(LocalReply::new(
            Reason::UpgradeOverHttp2,
            "the port is declared to speak HTTP/2, and only HTTP/1.1 can be upgraded",
        ));
    }
    // What comes from another node was asked there, where it is known what its client speaks.
    if unsent.grpc && !http2 && link.is_http2() && link.remote().is_none() {
        return Err(LocalReply::new(
            Reason::GrpcOverHttp1,
            "gRPC needs HTTP/2, and the port is declared to speak HTTP/1.1",
        ));
    }
    loop {
        let early = if record.is_copy { None } else { link.take_early() };
        let (load, in_flight, early) = next(link, &choice, tries, unsent.head(), early)?;
        let transport = match authorize(link, &load.endpoint, unsent.head())? {
            Some(transport) => transport,
            None => link.worker.transport(&link.pod.pod, &load.endpoint, choice.namespace()).await?,
        };
        let dialled = early.filter(|(_, mutual)| *mutual == transport.is_mutual()).map(|(dialled, _)| dialled);
        let target = Target { choice: &choice, endpoint: &load.endpoint, transport: &transport };
        let answer = if http2 || transport.is_mutual() {
            // Boxed, so that a request of HTTP/1 does not hold room for it.
            Box::pin(attempt2(record, target, &mut unsent, dialled, in_flight, tries)).await
        } else {
            attempt1(record, target, &mut unsent, dialled, in_flight, tries).await
        };
        if let Some(answer) = answer? {
            return Ok(answer);
        }
    }
}

/// What an attempt gives: an answer, or none, if nothing of the request was looked at and there may be another way.
type Attempt = Result<Option<(response::Parts, Source)>, LocalReply>;

/// A request that nobody has looked at.
struct Unsent {
    parts: request::Parts,
    body: Content,
    origin: Option<(Scheme, Authority)>,
    upgrade: bool,
    expects: bool,
    grpc: bool,
    /// What the application speaks.
    http2: bool,
}

impl Unsent {
    fn new(outgoing: Outgoing, http2: bool) -> Self {
        let Outgoing { parts, body, origin, upgrade, expects, grpc } = outgoing;
        Self { parts, body, origin, upgrade, expects, grpc, http2 }
    }

    /// Takes it to be sent; nothing of worth is left.
    fn take(&mut self) -> (request::Parts, Content) {
        let nothing = Request::new(()).into_parts().0;
        (std::mem::replace(&mut self.parts, nothing), std::mem::replace(&mut self.body, Content::None))
    }

    fn head(&self) -> RequestHead<'_> {
        let uri = &self.parts.uri;
        RequestHead { method: &self.parts.method, path: uri.path(), query: uri.query(), headers: &self.parts.headers }
    }
}

/// Where an attempt goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    choice: &'a Choice<'a>,
    endpoint: &'a Endpoint,
    transport: &'a Transport,
}

impl<'a> Target<'a> {
    fn via(self, link: &'a Link) -> Via<'a> {
        Via { pod: &link.pod.pod, endpoint: self.endpoint, cell: self.choice.cell(), transport: self.transport }
    }

    /// Counts a connection that was made.
    fn reached(self, link: &Link) {
        if link.remote().is_none() {
            link.pod.cells.reached(self.service(), self.transport.encryption());
        }
    }

    fn service(self) -> Option<&'a ServiceKey> {
        self.choice.backend().map(|backend| &backend.service)
    }

    fn chosen(self, link: &Link) {
        link.flow.chose(self.service(), self.endpoint.address);
        if link.remote().is_none() {
            link.flow.encryption.set(Some(self.transport.encryption()));
        }
    }
}

/// What was tried so far for one request.
#[derive(Default)]
pub(crate) struct Tries {
    tried: Vec<SocketAddr>,
    /// How many of them, the first ones, were left for others only as long as there are others.
    avoided: usize,
    /// The one that was chosen last.
    last: Option<SocketAddr>,
    failure: Option<Rc<DialError>>,
    /// Times that a connection turned out not to take the request after all.
    stale: usize,
}

/// An endpoint, and what was dialled early: for mutual TLS or not.
type Next = (Rc<EndpointLoad>, InFlight, Option<(Dialled, bool)>);

/// The endpoint to try next: the one that was dialled early, with its connection; or another one.
fn next(
    link: &Link,
    choice: &Choice<'_>,
    tries: &mut Tries,
    head: RequestHead<'_>,
    early: Option<Early>,
) -> Result<Next, LocalReply> {
    let asker = Asker { source: link.flow.peer.ip(), destination: link.flow.destination.ip(), head: Some(head) };
    let wanted = |load: &EndpointLoad| {
        let Some(cell) = choice.cell() else { return true };
        let set = cell.load();
        // What was dialled early was chosen without the request.
        let may_differ = set.policy.looks_at_requests();
        set.ready.contains(&load.endpoint)
            && (!may_differ
                || choice.next(&link.worker, &asker, &[]).is_some_and(|next| next.endpoint == load.endpoint))
    };
    if let Some(Early { load, in_flight, line, .. }) = early.filter(|early| wanted(&early.load)) {
        tries.last = Some(load.endpoint.address);
        return Ok((load, in_flight, line.unsaid()));
    }
    let mut next = choice.next(&link.worker, &asker, &tries.tried);
    if next.is_none() && tries.avoided > 0 {
        tries.tried.drain(..std::mem::take(&mut tries.avoided));
        next = choice.next(&link.worker, &asker, &tries.tried);
    }
    let load = next.ok_or_else(|| choice.exhausted(tries.failure.as_deref()))?;
    tries.last = Some(load.endpoint.address);
    let in_flight = load.begin();
    Ok((load, in_flight, None))
}

impl Tries {
    /// Begins another round, in which the endpoint that was chosen last is chosen only if there is no other one.
    pub(crate) fn again(&mut self) {
        let avoided = self.last.take();
        *self = Self { tried: Vec::from_iter(avoided), avoided: usize::from(avoided.is_some()), ..Self::default() };
    }

    /// Notes that an endpoint cannot be reached; an error if no other one is to be tried.
    fn failed(&mut self, link: &Link, target: Target<'_>, failure: Rc<DialError>) -> Result<(), LocalReply> {
        self.tried.push(target.endpoint.address);
        if !failure.retryable() || self.tried.len() - self.avoided >= limits::CONNECT_TRIES_MAX {
            link.worker.metrics.reached(Limit::ConnectTries);
            return Err(target.choice.exhausted(Some(&failure)));
        }
        self.failure = Some(failure);
        Ok(())
    }
}

enum Failed {
    Reply(LocalReply),
    Dial(Rc<DialError>),
}

impl From<LocalReply> for Failed {
    fn from(reply: LocalReply) -> Self {
        Self::Reply(reply)
    }
}

/// The inbound step for one request, where it is this agent's to take: gives how the endpoint is reached then. Whatever connection is to
/// carry it.
fn authorize(link: &Link, endpoint: &Endpoint, head: RequestHead<'_>) -> Result<Option<Transport>, LocalReply> {
    let (worker, pod, asks) = (&link.worker, &link.pod.pod, Asks::Request(head));
    if let Some(remote) = link.remote() {
        worker.admit_remote(remote, pod, endpoint.address, asks).map_err(LocalReply::denied)?;
        return Ok(Some(Transport::Application { client: link.flow.peer }));
    }
    let admitted = worker.admit(pod, endpoint, asks).map_err(LocalReply::denied)?;
    Ok(admitted.map(|_| Transport::Plain { captured: true }))
}

async fn attempt1(
    record: &mut Record,
    target: Target<'_>,
    unsent: &mut Unsent,
    dialled: Option<Dialled>,
    in_flight: InFlight,
    tries: &mut Tries,
) -> Attempt {
    let link = &Rc::clone(&record.link);
    let (mut upstream, pooled) = match take(link, target, dialled, tries.stale).await {
        Ok(found) => found,
        Err(error) => {
            in_flight.failed();
            tries.failed(link, target, Rc::new(error))?;
            return Ok(None);
        }
    };
    if !record.is_copy {
        target.chosen(link);
    }
    let (request, gate) = assemble1(record, unsent);
    // Once it is upgraded nobody asks for it any more but the worker's tick.
    let asked = unsent.upgrade.then(|| Asked::keep(&request));
    upstream.set_upgrading(unsent.upgrade);
    match upstream.send(request).await {
        Ok(response) => {
            in_flight.answered();
            answer1(record, response, upstream, in_flight, asked, gate).map(Some)
        }
        Err(mut error) => match error.take_message() {
            // Not a byte of it was sent.
            Some(request) => {
                if pooled {
                    tries.stale += 1;
                } else {
                    let to = target.endpoint.address;
                    tries.failed(link, target, Rc::new(DialError::Refused { to }))?;
                }
                let (parts, body) = request.into_parts();
                (unsent.parts, unsent.body) = (parts, Content::Made(body, gate));
                Ok(None)
            }
            None => {
                in_flight.failed();
                Err(broken(target.endpoint, &error.into_error()))
            }
        },
    }
}

/// The connection that was dialled early, one from the pool, or a new one; and whether it may have closed meanwhile.
async fn take(
    link: &Link,
    target: Target<'_>,
    dialled: Option<Dialled>,
    stale: usize,
) -> Result<(Upstream, bool), DialError> {
    let via = target.via(link);
    if let Some(dialled) = dialled {
        let upstream = client::adopt(via, dialled).await?;
        if upstream.is_quiet() {
            return Ok((upstream, true));
        }
    }
    if stale < limits::POOL_STALE_MAX
        && let Some(upstream) = link.pod.pool.checkout(&Key::new(target.endpoint, target.transport))
    {
        return Ok((upstream, true));
    }
    let upstream = client::connect(&link.worker, via).await?;
    target.reached(link);
    Ok((upstream, false))
}

/// What a connection is for once an endpoint has upgraded it.
fn passage(endpoint: &Endpoint, asked: Option<Box<Asked>>) -> Option<Box<Passage>> {
    Some(Passage::new(endpoint.workload.clone()?, endpoint.address, Some(asked?)))
}

type Assembled = (Request<RequestBody>, Option<Arc<Gate>>);

fn assemble1(record: &Record, unsent: &mut Unsent) -> Assembled {
    let (mut parts, body) = unsent.take();
    let meter = || Rc::clone(&record.meter);
    let body = match body {
        Content::Made(body, gate) => {
            translate::to_http1(&mut parts, &body);
            return (Request::from_parts(parts, body), gate);
        }
        Content::Whole(body) => RequestBody::new(body, meter()),
        Content::Lent(loan) => RequestBody::lent(&loan, meter()),
        Content::Copied(parts) => RequestBody::copied(parts, meter()),
        Content::None => RequestBody::empty(meter()),
    };
    translate::to_http1(&mut parts, &body);
    if !unsent.expects {
        return (Request::from_parts(parts, body), None);
    }
    let worker = &record.link.worker;
    let gate = Arc::new(Gate::default());
    let body = body.behind(Arc::clone(&gate), worker.config.continue_timeout, Arc::clone(&worker.metrics));
    let mut request = Request::from_parts(parts, body);
    let opened = Arc::clone(&gate);
    // Other interim responses end here: hyper's server cannot send them.
    hyper::ext::on_informational(&mut request, move |interim| {
        if interim.status() == StatusCode::CONTINUE {
            opened.open();
        }
    });
    (request, Some(gate))
}

async fn attempt2(
    record: &Record,
    target: Target<'_>,
    unsent: &mut Unsent,
    dialled: Option<Dialled>,
    in_flight: InFlight,
    tries: &mut Tries,
) -> Attempt {
    let link = &record.link;
    let origin = translate::origin(&unsent.parts.headers, unsent.origin.clone())?;
    let stream = match join(link, target, dialled, unsent.head()).await {
        Ok(stream) => stream,
        Err(Failed::Reply(reply)) => return Err(reply),
        Err(Failed::Dial(error)) => {
            in_flight.failed();
            tries.failed(link, target, error)?;
            return Ok(None);
        }
    };
    if !record.is_copy {
        target.chosen(link);
    }
    let meter = || Rc::clone(&record.meter);
    let mut loan = None;
    let body = match std::mem::replace(&mut unsent.body, Content::None) {
        Content::Whole(body) if body.is_end_stream() => RequestBody::empty(meter()),
        // hyper does not give it back when the server says that it never looked at it.
        Content::Whole(body) => RequestBody::lent(loan.insert(Loan::new(body)), meter()),
        Content::Lent(lent) => RequestBody::lent(loan.insert(lent), meter()),
        Content::None => RequestBody::empty(meter()),
        Content::Copied(parts) => RequestBody::copied(parts, meter()),
        Content::Made(body, gate) => {
            if let Some(gate) = gate {
                gate.open();
            }
            body
        }
    };
    let whole = loan.is_some() || body.is_end_stream();
    // What was asked for has its `Host` still: policy may look at it.
    let mut parts = unsent.parts.clone();
    translate::to_http2(&mut parts, origin)?;
    let mut protocol = None;
    if target.transport.is_mutual() {
        marks::set_version(&mut parts.headers, unsent.http2);
        let wanted = unsent.parts.headers.get(header::UPGRADE).filter(|_| unsent.upgrade);
        protocol = wanted.filter(|_| upgrade::ask(&mut parts, wanted, !body.is_end_stream())).cloned();
    }
    match stream.send(Request::from_parts(parts, body)).await {
        Ok(response) => {
            in_flight.answered();
            if let Some(loan) = &loan {
                loan.answered();
            }
            answer2(link, response, stream, in_flight, protocol).map(Some)
        }
        Err(error) => {
            let again = whole && is_unprocessed(&error) && loan.as_ref().is_none_or(|loan| loan.is_whole());
            tries.stale += 1;
            if !again || tries.stale > limits::POOL_STALE_MAX {
                if again {
                    link.worker.metrics.reached(Limit::H2Refused);
                }
                in_flight.failed();
                return Err(broken(target.endpoint, error.error()));
            }
            unsent.body = loan.map_or(Content::None, Content::Lent);
            Ok(None)
        }
    }
}

/// Whether the server has said, or it is known, that nothing was done with a request (RFC 9113 8.7).
fn is_unprocessed<T>(error: &TrySendError<T>) -> bool {
    if error.message().is_some() {
        return true;
    }
    let Some(cause) = reset_by(error.error()) else { return false };
    // A GOAWAY fails a stream only if it is above the last one that the server processes.
    cause.is_remote() && (cause.is_go_away() || cause.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn reset_by(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error).and_then(|cause| cause.downcast_ref())
}

/// A place on a connection, of which one is made for everybody who waits.
async fn join(
    link: &Rc<Link>,
    target: Target<'_>,
    mut dialled: Option<Dialled>,
    head: RequestHead<'_>,
) -> Result<Stream, Failed> {
    let worker = &link.worker;
    let key = Key::new(target.endpoint, target.transport);
    loop {
        let room = match link.pod.pool.stream(&key) {
            Found::Stream(stream) => return Ok(stream),
            Found::Dialling(dialling) => {
                dialling.over().await.map_err(Failed::Dial)?;
                // After each wait again.
                authorize(link, target.endpoint, head)?;
                continue;
            }
            Found::Dial(dialling, room) => {
                let dialled = dialled.take().filter(|dialled| tcp::is_quiet(&dialled.stream));
                let dial = SharedDial {
                    worker: Rc::clone(worker),
                    pod: Rc::clone(&link.pod),
                    endpoint: target.endpoint.clone(),
                    cell: target.choice.cell().cloned(),
                    transport: target.transport.clone(),
                    dialling: Rc::clone(&dialling),
                    room,
                };
                // In a task of its own: whoever asked first may go away, and others wait.
                let counted = dialled.is_some();
                tokio::task::spawn_local(dial.run(dialled));
                dialling.over().await.map_err(Failed::Dial)?;
                if !counted {
                    target.reached(link);
                }
                authorize(link, target.endpoint, head)?;
                continue;
            }
            Found::Full(room) => room,
        };
        worker.metrics.reached(Limit::H2UpstreamStreams);
        if tokio::time::timeout(worker.config.connect_timeout, room.notified()).await.is_err() {
            return Err(Failed::Reply(LocalReply::new(
                Reason::StreamsExhausted,
                format_args!(
                    "{} connections to {} are full of requests",
                    limits::H2_CONNECTIONS_PER_KEY_MAX,
                    target.endpoint.address
                ),
            )));
        }
        authorize(link, target.endpoint, head)?;
    }
}

/// A connection that is made for everybody who waits for it.
struct SharedDial {
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    endpoint: Endpoint,
    cell: Option<Arc<EndpointCell>>,
    transport: Transport,
    dialling: Rc<Dialling>,
    room: Rc<Notify>,
}

impl SharedDial {
    async fn run(self, dialled: Option<Dialled>) {
        let Self { worker, pod, endpoint, cell, transport, dialling, room } = self;
        let via = Via { pod: &pod.pod, endpoint: &endpoint, cell: cell.as_ref(), transport: &transport };
        let outcome = match dialled {
            Some(dialled) => client2::open(&worker, via, dialled, &room).await,
            None => client2::connect(&worker, via, &room).await,
        };
        pod.pool.dialled(Key::new(&endpoint, &transport), &dialling, outcome);
    }
}

/// What to answer when a request was sent, at least in part, and no response came.
fn broken(endpoint: &Endpoint, error: &hyper::Error) -> LocalReply {
    let address = endpoint.address;
    if let Some(cause) = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<RequestBodyError>()) {
        return if cause.is_malformed() {
            LocalReply::new(Reason::MalformedBody, "request body cannot be parsed")
        } else {
            LocalReply::new(Reason::BodyIncomplete, "client ended the connection within its request's body")
        };
    }
    if let Some(cause) = reset_by(error) {
        // What its author says of a response, or of the connection; or what h2 found wrong with it.
        let (reason, who) = match (cause.is_remote(), cause.reason()) {
            (true, Some(h2::Reason::HTTP_1_1_REQUIRED)) => (Reason::UpstreamProtocol, "asks for HTTP/1.1"),
            (true, _) => (Reason::UpstreamReset, "ended the stream before its response"),
            (false, _) => (Reason::UpstreamProtocol, "breaks HTTP/2"),
        };
        return LocalReply::new(reason, format_args!("{address} {who}: {cause}"));
    }
    if error.is_parse() {
        LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address} cannot be parsed: {error}"))
    } else {
        LocalReply::new(
            Reason::UpstreamReset,
            format_args!("{address} ended the connection before its response: {error}"),
        )
    }
}

fn answer1(
    record: &mut Record,
    response: Response<Incoming>,
    upstream: Upstream,
    in_flight: InFlight,
    upgrade: Option<Box<Asked>>,
    gate: Option<Arc<Gate>>,
) -> Result<(response::Parts, Source), LocalReply> {
    let link = &record.link;
    let (mut parts, body) = response.into_parts();
    let address = upstream.endpoint().address;
    let protocol =
        |what: &str| LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address}: {what}"));
    let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let one_by_one = match &link.downstream {
        Downstream::Http1(one) => Some(one),
        Downstream::Http2(_) => None,
    };
    if switching && !(upgrade.is_some() && (one_by_one.is_some() || record.asked.is_some())) {
        return Err(protocol("switches protocols, which nobody asked for"));
    }
    let framed_twice = framing(&mut parts.headers, &body).map_err(protocol)?;
    hop::response(&mut parts.headers, parts.status)
        .map_err(|named| protocol(&format!("Connection names {}", named.0)))?;
    // Only the phrase of the status line goes through of what hyper knows beside the head.
    let phrase = parts.extensions.remove::<ReasonPhrase>();
    parts.extensions.clear();
    if let Some(phrase) = phrase {
        parts.extensions.insert(phrase);
    }
    if switching {
        let passage = passage(upstream.endpoint(), upgrade);
        let upgrade = Upgrade { upstream: Agreed::Http1(upstream.shared), in_flight, passage };
        match (one_by_one, record.asked.take()) {
            (Some(one), _) => *one.upgrade.borrow_mut() = Some(upgrade),
            (None, Some(asked)) => {
                upgrade::agree(&mut parts);
                upgrade::run_beside(link, asked, upgrade);
            }
            (None, None) => {}
        }
        return Ok((parts, Source::Local(Bytes::new())));
    }
    upstream.set_upgrading(false);
    if record.asked.is_some() {
        upgrade::decline(&mut parts);
    }
    let unwanted = gate.filter(|gate| gate.answered());
    if unwanted.is_some() {
        // The client may send its body or not; where its next request would begin cannot be known.
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if one_by_one.is_none() {
        translate::response_to_http2(&mut parts.headers);
    }
    let upstream = Carrier::Http1(if framed_twice { None } else { Some(upstream) });
    Ok((
        parts,
        Source::Upstream(Streamed { body, upstream, unwanted, _in_flight: in_flight, ended: false, expiry: None }),
    ))
}

fn answer2(
    link: &Link,
    mut response: Response<Incoming>,
    stream: Stream,
    in_flight: InFlight,
    protocol: Option<HeaderValue>,
) -> Result<(response::Parts, Source), LocalReply> {
    let address = stream.connection().endpoint().address;
    let one_by_one = match &link.downstream {
        Downstream::Http1(one) => Some(one),
        Downstream::Http2(_) => None,
    };
    if let (Some(one), StatusCode::OK, true) = (one_by_one, response.status(), protocol.is_some()) {
        let agreed = Agreed::Http2(hyper::upgrade::on(&mut response), stream);
        let mut parts = response.into_parts().0;
        parts.extensions.clear();
        upgrade::agreed(&mut parts, protocol);
        // The other agent asks policy again and again.
        *one.upgrade.borrow_mut() = Some(Upgrade { upstream: agreed, in_flight, passage: None });
        return Ok((parts, Source::Local(Bytes::new())));
    }
    let (mut parts, body) = response.into_parts();
    if protocol.is_some() {
        upgrade::declined(&mut parts);
    }
    hop::response(&mut parts.headers, parts.status).map_err(|named| {
        LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address}: Connection names {}", named.0))
    })?;
    parts.extensions.clear();
    let upstream = Carrier::Http2(stream);
    Ok((
        parts,
        Source::Upstream(Streamed {
            body,
            upstream,
            unwanted: None,
            _in_flight: in_flight,
            ended: false,
            expiry: None,
        }),
    ))
}

/// Leaves one framing in a response, the one that hyper read it by. Tells whether there were two.
fn framing(headers: &mut HeaderMap, body: &Incoming) -> Result<bool, &'static str> {
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if chunked && !body.is_end_stream() {
        let codings: Vec<_> = hop::elements(headers, &header::TRANSFER_ENCODING).take(2).collect();
        if !matches!(codings[..], [only] if only.eq_ignore_ascii_case(b"chunked")) {
            return Err("has a transfer coding other than chunked");
        }
        return Ok(headers.remove(header::CONTENT_LENGTH).is_some());
    }
    let repeated = hop::elements(headers, &header::CONTENT_LENGTH).nth(1).is_some();
    if repeated && let Some(length) = body.size_hint().exact() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(false)
}
