//! One request and its response: checked, routed, sent to an endpoint, answered. A request sees one plan from start to end.

use std::{convert::Infallible, rc::Rc};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, Version, header, request, response,
    uri::{Authority, Scheme},
};
use hyper::body::Incoming;
use weft_policy::{
    endpoints::Endpoint,
    matcher::RequestHead,
    plan::{AppProtocol, Destination, OutboundPlan, Routed},
    rule::{Action, Rule},
    split::Split,
};

use crate::{
    choose::{self, Choice},
    http::{
        body::{Content, ResponseBody, Source},
        canonical, grpc, hop,
        link::{Link, Record},
        marks,
        rules::{self, deadline},
        scan::Fault,
        upgrade,
        upstream::{self, Tries},
    },
    metrics::Limit,
    reply::{LocalReply, Reason},
};

/// Answers one request.
pub(crate) async fn exchange(
    mut record: Record,
    mut request: Request<Incoming>,
    fault: Option<Fault>,
) -> Result<Response<ResponseBody>, Infallible> {
    let link = Rc::clone(&record.link);
    record.grpc = grpc::is_grpc(request.headers());
    let wants_body = request.method() != Method::HEAD;
    // Before it is taken out with all that a client must not set.
    let http2 = link.remote().map(|_| marks::is_http2(request.headers()));
    record.asked = link.remote().and_then(|_| upgrade::asked(&mut request));
    let outcome = match canonical::check(&mut request, fault) {
        Ok(target) => forward(&link, target, request, http2, &mut record).await,
        Err(reply) => {
            if reply.reason == Reason::TargetTooLong {
                link.worker.metrics.reached(Limit::TargetBytes);
            }
            Err(reply)
        }
    };
    let canceled = matches!(&outcome, Err(reply) if reply.reason == Reason::BodyIncomplete);
    let (mut parts, source) = match outcome {
        Ok(answer) => answer,
        Err(reply) if reply.is_reset() => {
            let (parts, _) = local(&link, reply, record.grpc);
            link.response_broke();
            (parts, Source::Reset)
        }
        Err(reply) => {
            let (parts, body) = local(&link, reply, record.grpc);
            // hyper leaves the body of an answer to HEAD away in HTTP/1 only (RFC 9110 9.3.2).
            (parts, Source::Local(if wants_body || !link.is_http2() { body } else { Bytes::new() }))
        }
    };
    link.finish(&mut parts);
    record.status = (!canceled).then_some(parts.status);
    if record.grpc && !canceled {
        // Of a response that is only trailers.
        record.status = grpc::stands_for(&parts.headers).or(record.status);
    }
    Ok(Response::from_parts(parts, ResponseBody::new(source, record)))
}

fn local(link: &Link, reply: LocalReply, grpc: bool) -> (response::Parts, Bytes) {
    tracing::debug!(
        source = %link.pod.pod.name, destination = %link.flow.destination, reason = reply.reason.word(), detail = reply.detail,
        "the mesh answers"
    );
    link.worker.metrics.replied(reply.reason);
    if let Some(denial) = &reply.denial {
        link.worker.report(&link.flow, denial);
    }
    let (response, body) = if grpc { reply.into_grpc() } else { reply.into_parts() };
    (response.into_parts().0, body)
}

/// A request on its way to an endpoint.
pub(crate) struct Outgoing {
    pub(crate) parts: request::Parts,
    pub(crate) body: Content,
    /// The target's own, if the client speaks HTTP/2.
    pub(crate) origin: Option<(Scheme, Authority)>,
    /// It asks for another protocol.
    pub(crate) upgrade: bool,
    /// The client waits for `100 Continue`.
    pub(crate) expects: bool,
    pub(crate) grpc: bool,
}

impl Outgoing {
    /// The same request, with content that was kept.
    pub(crate) fn again(&self, body: Content) -> Self {
        Self { parts: self.parts.clone(), body, origin: self.origin.clone(), ..*self }
    }
}

async fn forward(
    link: &Rc<Link>,
    target: canonical::Target,
    request: Request<Incoming>,
    inbound: Option<bool>,
    record: &mut Record,
) -> Result<(response::Parts, Source), LocalReply> {
    let mut outgoing = prepare(link, target, request, record.grpc)?;
    if let (Some(http2), Some(remote)) = (inbound, link.remote()) {
        marks::set_client_cert(&mut outgoing.parts.headers, &remote.client_cert);
        record.cells = Some(link.cells(0, 0, (None, None)));
        let workload = Some(link.pod.pod.id.clone());
        let load = link.direct(Endpoint { address: link.flow.destination, workload, node: None });
        let protocol = if http2 { AppProtocol::Http2 } else { AppProtocol::Http1 };
        return upstream::send(record, Choice::Pod { load: &load, protocol }, outgoing, &mut Tries::default()).await;
    }
    let destination = link.plan.borrow_mut().current().cloned();
    let load;
    let choice = match &destination {
        None => {
            return Err(LocalReply::new(
                Reason::DestinationGone,
                format_args!("nothing stands behind {} any more", link.flow.destination),
            ));
        }
        Some(Destination::Service(plan)) => match route(link, plan, &outgoing.parts, record)? {
            Way::Straight(choice) => choice,
            Way::Ruled(routed) => return Box::pin(rules::carry(plan, routed, outgoing, record)).await,
        },
        Some(Destination::Pod(pod)) => {
            let port = link.flow.destination.port();
            let host = outgoing.parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            if let Some(plan) = pod.headless(port, host) {
                match route(link, plan, &outgoing.parts, record)? {
                    Way::Straight(choice) => choice,
                    Way::Ruled(routed) => return Box::pin(rules::carry(plan, routed, outgoing, record)).await,
                }
            } else {
                link.early_backend(0);
                load = link.direct(Endpoint {
                    address: link.flow.destination,
                    workload: Some(pod.workload.clone()),
                    node: pod.node.clone(),
                });
                record.cells = Some(link.cells(0, 0, (None, None)));
                Choice::Pod { load: &load, protocol: pod.protocol(port) }
            }
        }
    };
    upstream::send(record, choice, outgoing, &mut Tries::default()).await
}

fn prepare(
    link: &Link,
    target: canonical::Target,
    request: Request<Incoming>,
    grpc: bool,
) -> Result<Outgoing, LocalReply> {
    // What other agents set is no client's.
    if target.removed > 0 && link.remote().is_none() {
        link.worker.metrics.fields_removed.inc_by(target.removed);
    }
    let (mut parts, body) = request.into_parts();
    parts.uri = target.path;
    let one_zero = parts.version == Version::HTTP_10;
    let headers = &mut parts.headers;
    let upgrade = hop::request(headers)
        .map_err(|named| LocalReply::new(Reason::ConnectionInvalid, format_args!("Connection names {}", named.0)))?;
    let expects =
        headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    // The next hop is HTTP/1.1 or later, where it must be there (RFC 9112 3.2).
    if one_zero
        && !headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(&link.flow.destination.to_string())
    {
        headers.insert(header::HOST, host);
    }
    parts.extensions.clear();
    Ok(Outgoing {
        upgrade: upgrade && !one_zero,
        expects: expects && !one_zero && !http_body::Body::is_end_stream(&body),
        origin: target.origin,
        parts,
        body: Content::Whole(body),
        grpc,
    })
}

/// What a plan makes of a request.
enum Way<'plan> {
    /// It goes to this backend, as it is.
    Straight(Choice<'plan>),
    /// There is more to do about it.
    Ruled(Routed<'plan>),
}

fn route<'plan>(
    link: &Link,
    plan: &'plan OutboundPlan,
    parts: &request::Parts,
    record: &mut Record,
) -> Result<Way<'plan>, LocalReply> {
    let head = RequestHead {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
    };
    let routed = plan.table(&link.pod.pod.namespace).route(&head);
    let rule = routed.rule;
    match &rule.action {
        // What backends do to their fields is known before one is chosen: each choice counts.
        Action::Forward(split)
            if rule.only_chooses()
                && split.backends.iter().all(|backend| backend.headers.is_none())
                && !deadline::is_said(&parts.headers, record.grpc) =>
        {
            choose(link, plan, rule, split, record).map(Way::Straight)
        }
        _ => Ok(Way::Ruled(routed)),
    }
}

/// The backend of a split that is next.
pub(crate) fn choose<'plan>(
    link: &Link,
    plan: &'plan OutboundPlan,
    rule: &Rule,
    split: &'plan Split,
    record: &mut Record,
) -> Result<Choice<'plan>, LocalReply> {
    // What was dialled early was counted already.
    let again = link.early_backend(split.id()).and_then(|index| choose::again(split, index));
    let choice = again.map_or_else(|| choose::split(&link.worker, split), Ok);
    let choice = choice.map_err(|none| {
        record.service = Some(plan.service.clone());
        choose::no_backend(split, none)
    })?;
    if let Some(why) = choice.backend().and_then(|backend| backend.invalid.as_ref()) {
        return Err(refused(plan, rule, Reason::RuleInvalid, why, record));
    }
    let names = (Some(&plan.service), choice.backend().map(|backend| &backend.service));
    record.cells = Some(link.cells(split.id(), choice.index(), names));
    Ok(choice)
}

/// The answer of a rule that sends requests nowhere.
pub(crate) fn refused(
    plan: &OutboundPlan,
    rule: &Rule,
    reason: Reason,
    why: impl std::fmt::Display,
    record: &mut Record,
) -> LocalReply {
    record.service = Some(plan.service.clone());
    LocalReply::new(reason, format_args!("{}: {why}", rule.name()))
}
