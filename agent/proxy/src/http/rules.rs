//! What a rule does to a request beside choosing a backend for it, and to its response. Requests of rules that do nothing of the kind
//! never come here.

mod cors;
pub(crate) mod deadline;
mod edit;
mod fault;
mod mirror;
mod redirect;
mod retry;

use std::{
    future::Future,
    rc::Rc,
    time::{Duration, Instant},
};

use http::response;
use weft_policy::{
    plan::{OutboundPlan, Routed},
    rule::{Action, BackendHeaders, Filters, Refusal},
};

use crate::{
    choose::Choice,
    http::{
        body::{Expiry, Source},
        exchange::{self, Outgoing},
        link::Record,
        rules::cors::Cross,
        upstream::{self, Tries},
    },
    reply::{LocalReply, Reason},
};

pub(crate) use self::mirror::Tee;

type Answer = Result<(response::Parts, Source), LocalReply>;

/// Carries a request out as its rule says. The rule is the one that was found for the request when it came, however long it takes.
pub(crate) async fn carry(plan: &OutboundPlan, routed: Routed<'_>, outgoing: Outgoing, record: &mut Record) -> Answer {
    let filters = routed.rule.ir.filters.as_deref();
    let cors = filters.and_then(|filters| filters.cors.as_deref());
    let cross = cors.and_then(|cors| Cross::new(cors, &outgoing.parts.headers));
    if let (Some(cors), Some(cross)) = (cors, &cross)
        && let Some(reply) = cross.preflight(cors, &outgoing.parts)
    {
        record.service = Some(plan.service.clone());
        return Err(reply);
    }
    let span = filters.and_then(|filters| filters.timeouts.request);
    let expiry = span.and_then(|span| Span::from(record.started, span, Reason::RequestTimeout));
    let said = deadline::said(&outgoing.parts.headers, record.grpc);
    let said = said.and_then(|said| Span::from(record.started, said, Reason::DeadlineExceeded));
    let expiry = Span::first(expiry, said);
    let carried = directed(plan, routed, filters, outgoing, record, expiry);
    let mut answer = Span::limit(expiry, carried).await;
    if let Err(reply) = &answer
        && matches!(reply.reason, Reason::RequestTimeout | Reason::BackendTimeout | Reason::DeadlineExceeded)
    {
        record.link.worker.metrics.expired(reply.reason);
    }
    if let (Some(cors), Some(cross)) = (cors, &cross) {
        match &mut answer {
            Ok((parts, _)) => cross.respond(cors, &mut parts.headers),
            // A script is to see why it gets no answer.
            Err(reply) => cross.respond(cors, reply.fields_mut()),
        }
    }
    answer
}

/// A request's way by its rule's action.
async fn directed(
    plan: &OutboundPlan,
    routed: Routed<'_>,
    filters: Option<&Filters>,
    mut outgoing: Outgoing,
    record: &mut Record,
    expiry: Option<Span>,
) -> Answer {
    let link = &Rc::clone(&record.link);
    let rule = routed.rule;
    if let Some(fault) = filters.and_then(|filters| filters.fault.as_deref())
        && let Err(reply) = fault::happen(fault, record).await
    {
        record.service = Some(plan.service.clone());
        return Err(reply);
    }
    let split = match &rule.action {
        Action::Forward(split) => split,
        Action::Redirect(to) => {
            record.service = Some(plan.service.clone());
            let prefix = routed.prefix.map(AsRef::as_ref);
            return Err(redirect::reply(to, &outgoing, prefix, plan.port, rule)?);
        }
        Action::Refuse(refusal) => {
            let reason = match refusal {
                Refusal::NoRoute => Reason::NoRoute,
                Refusal::Invalid(_) => Reason::RuleInvalid,
            };
            return Err(exchange::refused(plan, rule, reason, refusal, record));
        }
    };
    if let Some(filters) = filters {
        edit::rewrite(&mut outgoing, &filters.rewrite, routed.prefix.map(AsRef::as_ref))?;
        edit::fields(&mut outgoing.parts.headers, &filters.request);
    }
    mirror::begin(rule, link, &mut outgoing);
    let choice = exchange::choose(link, plan, rule, split, record)?;
    let headers = choice.backend().and_then(|backend| backend.headers.as_deref());
    if let Some(BackendHeaders { request, .. }) = headers {
        edit::fields(&mut outgoing.parts.headers, request);
    }
    let (mut parts, source) = sent(record, choice, filters, outgoing, expiry).await?;
    if let Some(BackendHeaders { response, .. }) = headers {
        edit::fields(&mut parts.headers, response);
    }
    if let Some(filters) = filters {
        edit::fields(&mut parts.headers, &filters.response);
    }
    Ok((parts, source))
}

/// Sends a request to the backend that was chosen.
async fn sent(
    record: &mut Record,
    choice: Choice<'_>,
    filters: Option<&Filters>,
    outgoing: Outgoing,
    expiry: Option<Span>,
) -> Answer {
    let each = filters.and_then(|filters| filters.timeouts.backend_request);
    match filters.and_then(|filters| filters.retry.as_deref()) {
        Some(retry) => retry::sent(record, choice, retry, each, outgoing, expiry).await,
        None => once(record, choice, outgoing, each, expiry, &mut Tries::default()).await,
    }
}

/// One try.
async fn once(
    record: &mut Record,
    choice: Choice<'_>,
    mut outgoing: Outgoing,
    each: Option<Duration>,
    expiry: Option<Span>,
    tries: &mut Tries,
) -> Answer {
    if let Some(expiry) = expiry {
        // What is late already is sent to nobody.
        let left = expiry.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(expiry.over());
        }
        deadline::tell(&mut outgoing.parts.headers, outgoing.grpc, left);
    }
    let each = each.and_then(|each| Span::from(Instant::now(), each, Reason::BackendTimeout));
    let (parts, mut source) = Span::limit(each, upstream::send(record, choice, outgoing, tries)).await?;
    if let (Source::Upstream(streamed), Some(first)) = (&mut source, Span::first(expiry, each)) {
        streamed.expiry = Some(Expiry::new(first.end, first.reason));
    }
    Ok((parts, source))
}

/// A time that something may take.
#[derive(Clone, Copy, Debug)]
struct Span {
    end: Instant,
    length: Duration,
    reason: Reason,
}

impl Span {
    /// `None` if it is so long that no clock reaches its end.
    fn from(start: Instant, length: Duration, reason: Reason) -> Option<Self> {
        start.checked_add(length).map(|end| Self { end, length, reason })
    }

    /// The one that is over first.
    fn first(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if other.end < one.end { other } else { one }),
            (one, other) => one.or(other),
        }
    }

    /// The outcome of something that may not take longer.
    async fn limit<T>(span: Option<Self>, what: impl Future<Output = Result<T, LocalReply>>) -> Result<T, LocalReply> {
        let Some(span) = span else { return what.await };
        tokio::time::timeout_at(span.end.into(), what).await.unwrap_or_else(|_| Err(span.over()))
    }

    /// The answer when it is over.
    fn over(self) -> LocalReply {
        let Self { length, reason, .. } = self;
        let who = if reason == Reason::BackendTimeout { "from the endpoint" } else { "to the request" };
        LocalReply::new(reason, format_args!("no response {who} within {} ms", length.as_millis()))
    }
}
