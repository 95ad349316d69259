//! Sends a request to an endpoint of a choice, in the version that is spoken there, and to another endpoint or once more where
//! nothing of it was looked at.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, response};
use http_body::Body;
use hyper::{body::Incoming, client::conn::TrySendError, ext::ReasonPhrase};
use tokio::sync::Notify;
use weft_policy::{
    endpoints::{Endpoint, EndpointCell},
    matcher::RequestHead,
    plan::AppProtocol,
};

use crate::{
    access::{self, Asked, Asks, Passage},
    balance::{EndpointLoad, InFlight},
    choose::Choice,
    dial::{DialError, Dialled},
    early::Early,
    http::{
        body::{Carrier, Gate, Loan, RequestBody, RequestBodyError, Source, Streamed},
        client::{self, Upstream, Via},
        client2::{self, Stream},
        exchange::Outgoing,
        hop,
        link::{Downstream, Link, Record},
        translate,
        upgrade::Upgrade,
    },
    limits,
    metrics::Limit,
    pool::{Dialling, Found},
    reply::{LocalReply, Reason},
    tcp,
    worker::{Pod, Worker},
};

/// Sends a request to an endpoint of the choice; to another one if the first cannot be reached.
pub(crate) async fn send(
    record: &Record,
    choice: Choice<'_>,
    outgoing: Outgoing,
) -> Result<(response::Parts, Source), LocalReply> {
    let http2 = match choice.protocol() {
        AppProtocol::Http1 => false,
        AppProtocol::Http2 => true,
        _ => record.link.is_http2(),
    };
    if http2 {
        // Boxed, so that a request of HTTP/1 does not hold room for it.
        Box::pin(send2(record, choice, outgoing)).await
    } else {
        send1(record, choice, outgoing).await
    }
}

/// What was tried so far for one request.
#[derive(Default)]
struct Tries {
    tried: Vec<SocketAddr>,
    failure: Option<Rc<DialError>>,
    /// Times that a connection turned out not to take the request after all.
    stale: usize,
}

type Next = (Rc<EndpointLoad>, InFlight, Option<Dialled>);

/// The endpoint to try next: the one that was dialled early, with its connection; or another one.
fn next(link: &Link, choice: &Choice<'_>, tries: &Tries, early: Option<Early>) -> Result<Next, LocalReply> {
    let wanted = |load: &EndpointLoad| choice.cell().is_none_or(|cell| cell.load().ready.contains(&load.endpoint));
    if let Some(Early { load, in_flight, dialled, .. }) = early.filter(|early| wanted(&early.load)) {
        return Ok((load, in_flight, Some(dialled)));
    }
    let next = choice.next(&link.worker, link.flow.destination, &tries.tried);
    let load = next.ok_or_else(|| choice.exhausted(tries.failure.as_deref()))?;
    let in_flight = load.begin();
    Ok((load, in_flight, None))
}

impl Tries {
    /// Notes that an endpoint cannot be reached; an error if no other one is to be tried.
    fn failed(
        &mut self,
        link: &Link,
        choice: &Choice<'_>,
        at: SocketAddr,
        failure: Rc<DialError>,
    ) -> Result<(), LocalReply> {
        self.tried.push(at);
        if !failure.retryable() || self.tried.len() >= limits::CONNECT_TRIES_MAX {
            link.worker.metrics.reached(Limit::ConnectTries);
            return Err(choice.exhausted(Some(&failure)));
        }
        self.failure = Some(failure);
        Ok(())
    }
}

enum Failed {
    Reply(LocalReply),
    Dial(Rc<DialError>),
}

impl From<DialError> for Failed {
    fn from(error: DialError) -> Self {
        Self::Dial(Rc::new(error))
    }
}

/// The inbound step for one request, where it is this agent's to take; tells whether it is. Whatever connection is to carry it.
fn authorize(link: &Link, endpoint: &Endpoint, head: RequestHead<'_>) -> Result<bool, Failed> {
    let admitted = link.worker.admit(&link.pod.pod, endpoint, Asks::Request(head));
    admitted.map(|admitted| admitted.is_some()).map_err(|denial| Failed::Reply(LocalReply::denied(denial)))
}

async fn send1(
    record: &Record,
    choice: Choice<'_>,
    outgoing: Outgoing,
) -> Result<(response::Parts, Source), LocalReply> {
    let link = &record.link;
    let upgrade = outgoing.upgrade;
    let (mut request, gate) = assemble1(record, outgoing)?;
    // Once it is upgraded nobody asks for it any more but the worker's tick.
    let mut asked = upgrade.then(|| Asked::keep(&request));
    let mut tries = Tries::default();
    loop {
        let (load, in_flight, dialled) = next(link, &choice, &tries, link.take_early())?;
        let (mut upstream, pooled) =
            match take(link, &choice, &load.endpoint, dialled, tries.stale, access::head(&request)).await {
                Ok(found) => found,
                Err(Failed::Reply(reply)) => return Err(reply),
                Err(Failed::Dial(error)) => {
                    tries.failed(link, &choice, load.endpoint.address, error)?;
                    continue;
                }
            };
        link.flow.chose(choice.backend().map(|backend| &backend.service), load.endpoint.address);
        upstream.set_upgrading(upgrade);
        match upstream.send(request).await {
            Ok(response) => return answer1(link, response, upstream, in_flight, asked.take(), gate),
            Err(mut error) => match error.take_message() {
                // Not a byte of it was sent.
                Some(unsent) if pooled => {
                    request = unsent;
                    tries.stale += 1;
                }
                Some(unsent) => {
                    request = unsent;
                    let to = load.endpoint.address;
                    tries.failed(link, &choice, to, Rc::new(DialError::Refused { to }))?;
                }
                None => return Err(broken(&load.endpoint, &error.into_error())),
            },
        }
    }
}

/// The connection that was dialled early, one from the pool, or a new one; and whether it may have closed meanwhile.
async fn take(
    link: &Rc<Link>,
    choice: &Choice<'_>,
    endpoint: &Endpoint,
    dialled: Option<Dialled>,
    stale: usize,
    head: RequestHead<'_>,
) -> Result<(Upstream, bool), Failed> {
    let captured = authorize(link, endpoint, head)?;
    let via = Via { source: &link.pod.pod, endpoint, cell: choice.cell(), captured };
    if let Some(dialled) = dialled {
        let upstream = client::adopt(via, dialled).await?;
        if upstream.is_quiet() {
            return Ok((upstream, true));
        }
    }
    if stale < limits::POOL_STALE_MAX
        && let Some(upstream) = link.pod.pool.checkout(endpoint)
    {
        return Ok((upstream, true));
    }
    Ok((client::connect(&link.worker, via).await?, false))
}

/// What a connection is for once an endpoint has upgraded it.
fn passage(endpoint: &Endpoint, asked: Option<Box<Asked>>) -> Option<Box<Passage>> {
    Some(Passage::new(endpoint.workload.clone()?, endpoint.address, Some(asked?)))
}

type Assembled = (Request<RequestBody>, Option<Arc<Gate>>);

fn assemble1(record: &Record, outgoing: Outgoing) -> Result<Assembled, LocalReply> {
    let Outgoing { mut parts, body, expects, grpc, .. } = outgoing;
    if grpc && record.link.is_http2() {
        return Err(LocalReply::new(
            Reason::GrpcOverHttp1,
            "gRPC needs HTTP/2, and the port is declared to speak HTTP/1.1",
        ));
    }
    translate::to_http1(&mut parts, &body);
    let mut body = RequestBody::new(body, Rc::clone(&record.meter));
    if !expects {
        return Ok((Request::from_parts(parts, body), None));
    }
    let worker = &record.link.worker;
    let gate = Arc::new(Gate::default());
    body = body.behind(Arc::clone(&gate), worker.config.continue_timeout, Arc::clone(&worker.metrics));
    let mut request = Request::from_parts(parts, body);
    let opened = Arc::clone(&gate);
    // Other interim responses end here: hyper's server cannot send them.
    hyper::ext::on_informational(&mut request, move |interim| {
        if interim.status() == StatusCode::CONTINUE {
            opened.open();
        }
    });
    Ok((request, Some(gate)))
}

async fn send2(
    record: &Record,
    choice: Choice<'_>,
    outgoing: Outgoing,
) -> Result<(response::Parts, Source), LocalReply> {
    let link = &record.link;
    let Outgoing { parts, body, origin, upgrade, .. } = outgoing;
    if upgrade {
        return Err(LocalReply::new(
            Reason::UpgradeOverHttp2,
            "the port is declared to speak HTTP/2, and only HTTP/1.1 can be upgraded",
        ));
    }
    let origin = translate::origin(&parts.headers, origin)?;
    let loan = (!body.is_end_stream()).then(|| Loan::new(body));
    let mut tries = Tries::default();
    loop {
        let (load, in_flight, dialled) = next(link, &choice, &tries, link.take_early())?;
        let head = RequestHead { method: &parts.method, path: parts.uri.path(), headers: &parts.headers };
        let stream = match join(link, &choice, &load.endpoint, dialled, head).await {
            Ok(stream) => stream,
            Err(Failed::Reply(reply)) => return Err(reply),
            Err(Failed::Dial(error)) => {
                tries.failed(link, &choice, load.endpoint.address, error)?;
                continue;
            }
        };
        link.flow.chose(choice.backend().map(|backend| &backend.service), load.endpoint.address);
        let meter = Rc::clone(&record.meter);
        let body = loan
            .as_ref()
            .map_or_else(|| RequestBody::empty(Rc::clone(&meter)), |loan| RequestBody::lent(loan, meter.clone()));
        // hyper does not give it back when the server says that it never looked at it.
        // What was asked for has its `Host` still: policy may look at it.
        let mut parts = parts.clone();
        translate::to_http2(&mut parts, origin.clone())?;
        let request = Request::from_parts(parts, body);
        match stream.send(request).await {
            Ok(response) => {
                if let Some(loan) = &loan {
                    loan.forget();
                }
                return answer2(response, stream, in_flight);
            }
            Err(error) => {
                let again = is_unprocessed(&error) && loan.as_ref().is_none_or(|loan| loan.is_whole());
                tries.stale += 1;
                if !again || tries.stale > limits::POOL_STALE_MAX {
                    if again {
                        link.worker.metrics.reached(Limit::H2Refused);
                    }
                    return Err(broken(&load.endpoint, error.error()));
                }
            }
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
    choice: &Choice<'_>,
    endpoint: &Endpoint,
    mut dialled: Option<Dialled>,
    head: RequestHead<'_>,
) -> Result<Stream, Failed> {
    let worker = &link.worker;
    loop {
        // After each wait again.
        let captured = authorize(link, endpoint, head)?;
        let room = match link.pod.pool.stream(endpoint) {
            Found::Stream(stream) => return Ok(stream),
            Found::Dialling(dialling) => {
                dialling.over().await.map_err(Failed::Dial)?;
                continue;
            }
            Found::Dial(dialling, room) => {
                let dialled = dialled.take().filter(|dialled| tcp::is_quiet(&dialled.stream));
                let dial = SharedDial {
                    worker: Rc::clone(worker),
                    pod: Rc::clone(&link.pod),
                    endpoint: endpoint.clone(),
                    cell: choice.cell().cloned(),
                    captured,
                    dialling: Rc::clone(&dialling),
                    room,
                };
                // In a task of its own: whoever asked first may go away, and others wait.
                tokio::task::spawn_local(dial.run(dialled));
                dialling.over().await.map_err(Failed::Dial)?;
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
                    endpoint.address
                ),
            )));
        }
    }
}

/// A connection that is made for everybody who waits for it.
struct SharedDial {
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    endpoint: Endpoint,
    cell: Option<Arc<EndpointCell>>,
    captured: bool,
    dialling: Rc<Dialling>,
    room: Rc<Notify>,
}

impl SharedDial {
    async fn run(self, dialled: Option<Dialled>) {
        let Self { worker, pod, endpoint, cell, captured, dialling, room } = self;
        let via = Via { source: &pod.pod, endpoint: &endpoint, cell: cell.as_ref(), captured };
        let outcome = match dialled {
            Some(dialled) => client2::open(&worker, via, dialled, &room).await,
            None => client2::connect(&worker, via, &room).await,
        };
        pod.pool.dialled(&endpoint, &dialling, outcome);
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
    link: &Rc<Link>,
    response: Response<Incoming>,
    upstream: Upstream,
    in_flight: InFlight,
    upgrade: Option<Box<Asked>>,
    gate: Option<Arc<Gate>>,
) -> Result<(response::Parts, Source), LocalReply> {
    let (mut parts, body) = response.into_parts();
    let address = upstream.endpoint().address;
    let protocol =
        |what: &str| LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address}: {what}"));
    let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let one_by_one = match &link.downstream {
        Downstream::Http1(one) => Some(one),
        Downstream::Http2(_) => None,
    };
    if switching && !(upgrade.is_some() && one_by_one.is_some()) {
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
    if switching && let Some(one) = one_by_one {
        let passage = passage(upstream.endpoint(), upgrade);
        *one.upgrade.borrow_mut() = Some(Upgrade { upstream: upstream.shared, in_flight, passage });
        return Ok((parts, Source::Local(Bytes::new())));
    }
    upstream.set_upgrading(false);
    let unwanted = gate.filter(|gate| gate.answered());
    if unwanted.is_some() {
        // The client may send its body or not; where its next request would begin cannot be known.
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if one_by_one.is_none() {
        translate::response_to_http2(&mut parts.headers);
    }
    let upstream = Carrier::Http1(if framed_twice { None } else { Some(upstream) });
    Ok((parts, Source::Upstream(Streamed { body, upstream, unwanted, _in_flight: in_flight, ended: false })))
}

fn answer2(
    response: Response<Incoming>,
    stream: Stream,
    in_flight: InFlight,
) -> Result<(response::Parts, Source), LocalReply> {
    let (mut parts, body) = response.into_parts();
    let address = stream.connection().endpoint().address;
    hop::response(&mut parts.headers, parts.status).map_err(|named| {
        LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address}: Connection names {}", named.0))
    })?;
    parts.extensions.clear();
    let upstream = Carrier::Http2(stream);
    Ok((parts, Source::Upstream(Streamed { body, upstream, unwanted: None, _in_flight: in_flight, ended: false })))
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
