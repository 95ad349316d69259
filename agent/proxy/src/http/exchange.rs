//! One request and its response: checked, routed, sent to an endpoint, answered. A request sees one plan from start to end.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, request, response};
use http_body::Body;
use hyper::{body::Incoming, ext::ReasonPhrase};
use tokio::net::TcpStream;
use weft_policy::{
    endpoints::Endpoint,
    matcher::RequestHead,
    names::ServiceKey,
    plan::{Destination, OutboundPlan},
    snapshot::PlanHandle,
    split::Split,
};

use crate::{
    balance::{EndpointLoad, InFlight},
    choose::{self, Choice},
    dial::DialError,
    flows::{Flow, bump},
    http::{
        body::{Gate, RequestBody, RequestBodyError, ResponseBody, Source, Streamed},
        canonical,
        client::{self, Upstream, Via},
        hop,
        scan::Fault,
        upgrade::Upgrade,
        wire::Turn,
    },
    limits,
    metrics::{Limit, RequestCells, StatusClass},
    reply::{LocalReply, Reason},
    worker::{Pod, Worker},
};

/// A client connection, as its requests see it.
pub(crate) struct Link {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<Pod>,
    pub(crate) flow: Rc<Flow>,
    pub(crate) turn: Rc<Turn>,
    /// What the destination stands for.
    pub(crate) plan: RefCell<PlanHandle>,
    /// Bytes of request bodies so far. Requests follow each other, so one counter will do.
    pub(crate) request_bytes: Cell<u64>,
    /// The connection is to end with the response that is next.
    pub(crate) closing: Cell<bool>,
    /// Set once an endpoint has switched protocols.
    pub(crate) upgrade: RefCell<Option<Upgrade>>,
    /// The pod behind the address that was asked for, where it is a pod's own.
    direct: RefCell<Option<Rc<EndpointLoad>>>,
    /// Metric cells by split and backend.
    cells: RefCell<Vec<(u64, usize, Rc<RequestCells>)>>,
}

impl Link {
    pub(crate) fn new(worker: Rc<Worker>, pod: Rc<Pod>, flow: Rc<Flow>, plan: PlanHandle, stream: TcpStream) -> Self {
        Self {
            worker,
            pod,
            flow,
            turn: Rc::new(Turn::new(stream)),
            plan: RefCell::new(plan),
            request_bytes: Cell::new(0),
            closing: Cell::new(false),
            upgrade: RefCell::default(),
            direct: RefCell::default(),
            cells: RefCell::default(),
        }
    }

    /// The cells for a backend of a split; resolved by name only the first time on this connection.
    fn cells(&self, split: u64, backend: usize, names: (Option<&ServiceKey>, Option<&ServiceKey>)) -> Rc<RequestCells> {
        let mut cells = self.cells.borrow_mut();
        if let Some((_, _, known)) = cells.iter().find(|(of, index, _)| (*of, *index) == (split, backend)) {
            return Rc::clone(known);
        }
        let found = self.pod.cells.requests(names.0, names.1);
        if cells.len() >= limits::METRIC_CELLS_PER_CONNECTION_MAX {
            cells.clear();
        }
        cells.push((split, backend, Rc::clone(&found)));
        found
    }
}

/// Counts a request once, however it ends.
pub(crate) struct Record {
    link: Rc<Link>,
    cells: Option<Rc<RequestCells>>,
    service: Option<ServiceKey>,
    status: Option<StatusCode>,
    started: Instant,
    request_bytes_before: u64,
    pub(crate) response_bytes: u64,
}

impl Record {
    fn begin(link: &Rc<Link>) -> Self {
        bump(&link.flow.requests, 1);
        Self {
            link: Rc::clone(link),
            cells: None,
            service: None,
            status: None,
            started: Instant::now(),
            request_bytes_before: link.request_bytes.get(),
            response_bytes: 0,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let cells = self.cells.take().unwrap_or_else(|| self.link.pod.cells.requests(self.service.as_ref(), None));
        let class = self.status.map_or(StatusClass::Canceled, StatusClass::Of);
        let request_bytes = self.link.request_bytes.get() - self.request_bytes_before;
        cells.record(class, self.started.elapsed(), request_bytes, self.response_bytes);
    }
}

/// Answers one request.
pub(crate) async fn exchange(
    link: Rc<Link>,
    request: Request<Incoming>,
    fault: Option<Fault>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut record = Record::begin(&link);
    let outcome = match canonical::check(&request, fault) {
        Ok(target) => forward(&link, target, request, &mut record).await,
        Err(reply) => Err(reply),
    };
    let canceled = matches!(&outcome, Err(reply) if reply.reason == Reason::BodyIncomplete);
    let (mut parts, source) = match outcome {
        Ok(answer) => answer,
        Err(reply) => local(&link, reply),
    };
    if link.closing.get() {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = (!canceled).then_some(parts.status);
    Ok(Response::from_parts(parts, ResponseBody::new(source, link, record)))
}

fn local(link: &Link, reply: LocalReply) -> (response::Parts, Source) {
    tracing::debug!(
        source = %link.pod.pod.name, destination = %link.flow.destination, reason = reply.reason.word(), detail = reply.detail,
        "the mesh answers"
    );
    link.worker.metrics.replied(reply.reason);
    let (response, body) = reply.into_parts();
    (response.into_parts().0, Source::Local(body))
}

async fn forward(
    link: &Rc<Link>,
    target: http::Uri,
    request: Request<Incoming>,
    record: &mut Record,
) -> Result<(response::Parts, Source), LocalReply> {
    let (mut parts, body) = request.into_parts();
    parts.uri = target;
    let prepared = prepare(link, &mut parts, &body)?;
    let destination = link.plan.borrow_mut().current().cloned();
    let port = link.flow.destination.port();
    match destination {
        None => Err(LocalReply::new(
            Reason::DestinationGone,
            format_args!("nothing stands behind {} any more", link.flow.destination),
        )),
        Some(Destination::Service(plan)) => through(link, &plan, (parts, body, prepared), record).await,
        Some(Destination::Pod(pod)) => {
            let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            if let Some(plan) = pod.headless(port, host) {
                return through(link, plan, (parts, body, prepared), record).await;
            }
            let endpoint = Endpoint {
                address: link.flow.destination,
                workload: Some(pod.workload.clone()),
                node: pod.node.clone(),
            };
            let load = direct(link, endpoint);
            record.cells = Some(link.cells(0, 0, (None, None)));
            send(link, Choice::Pod(&load), (parts, body, prepared)).await
        }
    }
}

/// One load for all requests to a pod's own address.
fn direct(link: &Link, endpoint: Endpoint) -> Rc<EndpointLoad> {
    let mut direct = link.direct.borrow_mut();
    match &*direct {
        Some(load) if load.endpoint == endpoint => Rc::clone(load),
        _ => Rc::clone(direct.insert(EndpointLoad::new(endpoint))),
    }
}

/// A request that was made ready for upstream.
struct Prepared {
    upgrade: bool,
    expects: bool,
}

type Outgoing = (request::Parts, Incoming, Prepared);

fn prepare(link: &Link, parts: &mut request::Parts, body: &Incoming) -> Result<Prepared, LocalReply> {
    let one_zero = parts.version == Version::HTTP_10;
    let headers = &mut parts.headers;
    let upgrade = hop::request(headers)
        .map_err(|named| LocalReply::new(Reason::ConnectionInvalid, format_args!("Connection names {}", named.0)))?;
    let expects =
        headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if one_zero {
        // RFC 9110 10.1.1: an expectation of HTTP/1.0 is ignored.
        headers.remove(header::EXPECT);
        if !headers.contains_key(header::HOST) {
            // The next hop is HTTP/1.1, where it must be there (RFC 9112 3.2).
            if let Ok(host) = HeaderValue::from_str(&link.flow.destination.to_string()) {
                headers.insert(header::HOST, host);
            }
        }
    }
    let sized = body.is_end_stream() || body.size_hint().exact().is_some();
    if !sized {
        // Said explicitly, because hyper sends no body with a GET otherwise.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Prepared { upgrade: upgrade && !one_zero, expects: expects && !one_zero && !body.is_end_stream() })
}

async fn through(
    link: &Rc<Link>,
    plan: &OutboundPlan,
    outgoing: Outgoing,
    record: &mut Record,
) -> Result<(response::Parts, Source), LocalReply> {
    let (parts, _, _) = &outgoing;
    let head = RequestHead { method: &parts.method, path: parts.uri.path(), headers: &parts.headers };
    let split: &Arc<Split> = plan.route_request(&head);
    let choice = match choose::split(&link.worker, split, plan.balance) {
        Ok(choice) => choice,
        Err(none) => {
            record.service = Some(plan.service.clone());
            return Err(choose::no_backend(split, none));
        }
    };
    let names = (Some(&plan.service), choice.backend().map(|backend| &backend.service));
    record.cells = Some(link.cells(split.id(), choice.index(), names));
    send(link, choice, outgoing).await
}

/// Sends a request to an endpoint of the choice; to another one if the first cannot be reached.
async fn send(
    link: &Rc<Link>,
    choice: Choice<'_>,
    outgoing: Outgoing,
) -> Result<(response::Parts, Source), LocalReply> {
    let (parts, body, prepared) = outgoing;
    let (mut request, gate) = assemble(link, parts, body, &prepared);
    let worker = &link.worker;
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut failure: Option<DialError> = None;
    let mut stale = 0;
    loop {
        let Some(load) = choice.next(worker, link.flow.destination, &tried) else {
            return Err(choice.exhausted(failure.as_ref()));
        };
        let in_flight = load.begin();
        let (mut upstream, pooled) = match take(link, &choice, &load.endpoint, stale).await {
            Ok(found) => found,
            Err(Failed::Reply(reply)) => return Err(reply),
            Err(Failed::Dial(error)) => {
                tried.push(load.endpoint.address);
                if !error.retryable() || tried.len() >= limits::CONNECT_TRIES_MAX {
                    worker.metrics.reached(Limit::ConnectTries);
                    return Err(choice.exhausted(Some(&error)));
                }
                failure = Some(error);
                continue;
            }
        };
        link.flow.chose(choice.backend().map(|backend| &backend.service), load.endpoint.address);
        upstream.set_upgrading(prepared.upgrade);
        match upstream.send(request).await {
            Ok(response) => return answer(link, response, upstream, in_flight, prepared.upgrade, gate),
            Err(mut error) => match error.take_message() {
                // Not a byte of it was sent.
                Some(unsent) if pooled => {
                    request = unsent;
                    stale += 1;
                }
                Some(unsent) => {
                    request = unsent;
                    tried.push(load.endpoint.address);
                    let refused = DialError::Refused { to: load.endpoint.address };
                    if tried.len() >= limits::CONNECT_TRIES_MAX {
                        worker.metrics.reached(Limit::ConnectTries);
                        return Err(choice.exhausted(Some(&refused)));
                    }
                    failure = Some(refused);
                }
                None => return Err(broken(&load.endpoint, &error.into_error())),
            },
        }
    }
}

enum Failed {
    Reply(LocalReply),
    Dial(DialError),
}

/// A connection from the pool, or a new one; and which of both. Takes the inbound step where it is this agent's to take.
async fn take(
    link: &Rc<Link>,
    choice: &Choice<'_>,
    endpoint: &Endpoint,
    stale: usize,
) -> Result<(Upstream, bool), Failed> {
    let worker = &link.worker;
    let denied = |denied| {
        Failed::Reply(LocalReply::new(Reason::Denied, format_args!("request to {}: {denied}", endpoint.address)))
    };
    if stale < limits::POOL_STALE_MAX
        && let Some(upstream) = link.pod.pool.checkout(endpoint)
    {
        if upstream.shared.captured
            && let Some(workload) = &endpoint.workload
        {
            worker.authorize(workload).map_err(denied)?;
        }
        return Ok((upstream, true));
    }
    let captured = worker.authorize_endpoint(endpoint).map_err(denied)?;
    let via = Via { source: &link.pod.pod, endpoint, cell: choice.cell(), captured };
    let upstream = client::connect(worker, via).await.map_err(Failed::Dial)?;
    Ok((upstream, false))
}

fn assemble(
    link: &Rc<Link>,
    parts: request::Parts,
    body: Incoming,
    prepared: &Prepared,
) -> (Request<RequestBody>, Option<Arc<Gate>>) {
    let mut body = RequestBody::new(body, Rc::clone(link));
    if !prepared.expects {
        return (Request::from_parts(parts, body), None);
    }
    let gate = Arc::new(Gate::default());
    body = body.behind(Arc::clone(&gate), link.worker.config.continue_timeout);
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

/// What to answer when a request was sent, at least in part, and no response came.
fn broken(endpoint: &Endpoint, error: &hyper::Error) -> LocalReply {
    let address = endpoint.address;
    if let Some(cause) = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<RequestBodyError>()) {
        if cause.is_malformed() {
            LocalReply::new(Reason::MalformedBody, "request body cannot be parsed")
        } else {
            LocalReply::new(Reason::BodyIncomplete, "client ended the connection within its request's body")
        }
    } else if error.is_parse() {
        LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address} cannot be parsed: {error}"))
    } else {
        LocalReply::new(
            Reason::UpstreamReset,
            format_args!("{address} ended the connection before its response: {error}"),
        )
    }
}

fn answer(
    link: &Rc<Link>,
    response: Response<Incoming>,
    upstream: Upstream,
    in_flight: InFlight,
    upgrade: bool,
    gate: Option<Arc<Gate>>,
) -> Result<(response::Parts, Source), LocalReply> {
    let (mut parts, body) = response.into_parts();
    let address = upstream.endpoint().address;
    let protocol =
        |what: &str| LocalReply::new(Reason::UpstreamProtocol, format_args!("response of {address}: {what}"));
    let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !upgrade {
        return Err(protocol("switches protocols, which nobody asked for"));
    }
    let framed_twice = framing(&mut parts.headers, &body).map_err(protocol)?;
    hop::response(&mut parts.headers, parts.status)
        .map_err(|named| protocol(&format!("Connection names {}", named.0)))?;
    parts.version = Version::HTTP_11;
    // Only the phrase of the status line goes through of what hyper knows beside the head.
    let phrase = parts.extensions.remove::<ReasonPhrase>();
    parts.extensions.clear();
    if let Some(phrase) = phrase {
        parts.extensions.insert(phrase);
    }
    if switching {
        *link.upgrade.borrow_mut() = Some(Upgrade { upstream: upstream.shared, in_flight });
        return Ok((parts, Source::Local(Bytes::new())));
    }
    upstream.set_upgrading(false);
    let unwanted = gate.filter(|gate| gate.answered());
    if unwanted.is_some() {
        // The client may send its body or not; where its next request would begin cannot be known.
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let upstream = if framed_twice { None } else { Some(upstream) };
    Ok((parts, Source::Upstream(Streamed { body, upstream, unwanted, _in_flight: in_flight, ended: false })))
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
