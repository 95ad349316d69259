//! What becomes of a connection after `101 Switching Protocols`: bytes both ways, on the connections that carried the request. Between
//! agents that is one stream of HTTP/2, which an extended CONNECT makes one of bytes (RFC 8441).

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header, request, response};
use hyper::{
    body::Incoming,
    ext::Protocol,
    upgrade::{self, OnUpgrade},
};

use crate::{
    access::Passage,
    balance::InFlight,
    flows::{Direction, Flow, FlowProtocol, bump},
    http::{
        client::Shared,
        client2,
        link::{Downstream, Link},
        marks,
    },
    socket::Lease,
    stream::Stream,
    tcp::{self, End, Scratch, Side},
};

/// An upgrade that the endpoint agreed to.
pub(crate) struct Upgrade {
    pub(crate) upstream: Agreed,
    pub(crate) in_flight: InFlight,
    /// What it is for, if the endpoint says which pod it is.
    pub(crate) passage: Option<Box<Passage>>,
}

/// What the endpoint's bytes come on.
pub(crate) enum Agreed {
    /// A connection of its own.
    Http1(Rc<Shared>),
    /// A stream to another agent, and its place on the connection.
    Http2(OnUpgrade, client2::Stream),
}

/// What must live as long as those bytes.
type Held = (Option<Lease>, Option<client2::Stream>);

impl Agreed {
    /// The bytes, those that were read already first.
    async fn take(self) -> Option<(Side, Held)> {
        match self {
            Self::Http1(shared) => {
                let (stream, read, lease) = shared.take_upgraded().await?;
                Some((Side::new(stream, read), (lease, None)))
            }
            Self::Http2(upgrade, place) => {
                let upgraded = upgrade.await.ok()?;
                Some((Side::new(upgraded, Bytes::new()), (None, Some(place))))
            }
        }
    }
}

/// Carries the upgraded connection until it ends.
pub(crate) async fn run(
    upgrade: Upgrade,
    downstream: impl Into<Stream>,
    early: Bytes,
    flow: &Flow,
    scratch: &Scratch,
) -> End {
    let downstream = downstream.into();
    flow.protocol.set(FlowProtocol::Upgraded);
    flow.deadline.set(None);
    *flow.passage.borrow_mut() = upgrade.passage;
    let Some((upstream, held)) = upgrade.upstream.take().await else {
        downstream.reset();
        return End::Reset;
    };
    bump(&flow.bytes_received, upstream.early.len());
    let end = tcp::splice(Side::new(downstream, early), upstream, flow, scratch).await;
    drop((held, upgrade.in_flight));
    end
}

/// Carries, beside the requests of another agent's connection, the stream that one of them has become.
pub(crate) fn run_beside(link: &Rc<Link>, asked: OnUpgrade, upgrade: Upgrade) {
    let (worker, of) = (Rc::clone(&link.worker), &link.flow);
    let flow = Flow::new(Direction::Inbound, Arc::clone(&of.pod), of.peer, of.destination);
    flow.encryption.set(of.encryption.get());
    flow.endpoint.set(Some(of.destination));
    flow.service.borrow_mut().clone_from(&of.service.borrow());
    if let Some(remote) = of.remote.get() {
        // It is new, so it has none.
        _ = flow.remote.set(Rc::clone(remote));
    }
    let client = flow.service.borrow().as_ref().map(|(client, _)| client.clone());
    flow.open(link.pod.cells.connections(Direction::Inbound, client.as_ref(), None));
    let entry = worker.flows.insert(flow);
    let link = Rc::clone(link);
    tokio::task::spawn_local(async move {
        let Downstream::Http2(session) = &link.downstream else { return };
        session.upgraded();
        if let Ok(stream) = asked.await {
            run(upgrade, stream, Bytes::new(), &entry.flow, &worker.scratch).await;
        }
        session.upgrade_over();
    });
}

/// Makes a request that asks for another protocol one that asks another agent for a stream of bytes. Tells whether it can: with a body,
/// or with a choice of protocols, it goes on as a request that asks for nothing, which a server may make of it anyway (RFC 9110 7.8).
pub(crate) fn ask(parts: &mut request::Parts, protocol: Option<&HeaderValue>, has_body: bool) -> bool {
    let one = |protocol: &&str| !protocol.is_empty() && !protocol.contains([',', ' ', '\t']);
    let Some(protocol) = protocol.and_then(|protocol| protocol.to_str().ok()).filter(one) else { return false };
    if has_body {
        return false;
    }
    marks::set_method(&mut parts.headers, &parts.method);
    parts.method = Method::CONNECT;
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.extensions.insert(Protocol::from(protocol));
    true
}

/// What another agent asked for by [`ask`], as its client asked for it.
pub(crate) fn asked(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    if *request.method() != Method::CONNECT {
        return None;
    }
    let protocol = HeaderValue::try_from(request.extensions_mut().remove::<Protocol>()?.as_str()).ok()?;
    let upgrade = upgrade::on(&mut *request);
    *request.method_mut() = marks::method(request.headers());
    request.headers_mut().insert(header::UPGRADE, protocol);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Some(upgrade)
}

/// Tells another agent that the application has agreed.
pub(crate) fn agree(parts: &mut response::Parts) {
    parts.status = StatusCode::OK;
    for name in [header::CONNECTION, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    if let Some(protocol) = parts.headers.remove(header::UPGRADE) {
        marks::set_protocol(&mut parts.headers, protocol);
    }
}

/// Tells another agent that the application has answered and not switched, as a server may (RFC 9110 7.8).
pub(crate) fn decline(parts: &mut response::Parts) {
    if parts.status.is_success() {
        marks::set_status(&mut parts.headers, parts.status);
        parts.status = StatusCode::MULTIPLE_CHOICES;
    }
}

/// Makes of [`decline`] what the client hears of an application.
pub(crate) fn declined(parts: &mut response::Parts) {
    if let Some(status) = marks::take_status(&mut parts.headers) {
        parts.status = status;
    }
}

/// Makes of [`agree`] what the client hears of an application.
pub(crate) fn agreed(parts: &mut response::Parts, asked_for: Option<HeaderValue>) {
    parts.status = StatusCode::SWITCHING_PROTOCOLS;
    parts.headers.remove(header::CONTENT_LENGTH);
    if let Some(protocol) = marks::take_protocol(&mut parts.headers).or(asked_for) {
        parts.headers.insert(header::UPGRADE, protocol);
    }
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}
