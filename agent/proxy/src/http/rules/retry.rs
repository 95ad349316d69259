//! Tries a request again (GEP-1731) where nothing of an answer was passed on: after an answer with one of the statuses that the rule
//! names, and where an endpoint gave none. What was sent in part and not answered may have had its effect, so it goes again only if its
//! method is idempotent (RFC 9110 9.2.2), or the rule names the status that the mesh would give for it.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use http::Method;
use weft_policy::rule::Retry;

use crate::{
    budget::Allowance,
    choose::Choice,
    http::{
        body::{Content, Source},
        exchange::Outgoing,
        link::Record,
        rules::{Answer, Span, once},
        upstream::Tries,
    },
    limits,
    metrics::{Limit, Retried, RetrySkipped},
    reply::Reason,
};

/// Sends a request, and again.
pub(super) async fn sent(
    record: &mut Record,
    choice: Choice<'_>,
    retry: &Retry,
    each: Option<Duration>,
    mut outgoing: Outgoing,
    expiry: Option<Span>,
) -> Answer {
    let link = Rc::clone(&record.link);
    let worker = &link.worker;
    let backend = choice.cell().map_or(0, |cell| cell.id());
    worker.budgets.borrow_mut().request(backend, Instant::now());
    let kept = outgoing.body.keep();
    let mut tries = Tries::default();
    let mut retried = 0;
    let latest = Instant::now() + worker.config.endpoint_wait;
    let patience = expiry.map_or(latest, |expiry| expiry.end.min(latest));
    let answer = loop {
        let content = kept.as_ref().map_or(Content::None, |kept| Content::Lent(Rc::clone(kept)));
        let answer = once(record, choice, outgoing.again(content), each, expiry, &mut tries).await;
        let is_whole = kept.as_ref().is_none_or(|kept| kept.is_whole());
        if matches!(&answer, Err(reply) if reply.reason == Reason::NoEndpoints) {
            // Nothing was sent, so nothing is tried again.
            if is_whole && there_is_an_endpoint(&choice, patience).await {
                continue;
            }
            worker.metrics.reached(Limit::EndpointWait);
            break answer;
        }
        let cause = match cause(retry, &answer, &outgoing.parts.method) {
            None => break answer,
            Some(Err(skipped)) => {
                worker.metrics.retry_skipped(skipped);
                break answer;
            }
            Some(Ok(cause)) => cause,
        };
        let pause = pause(retry.backoff, retried);
        let too_late = expiry.is_some_and(|expiry| Instant::now() + pause >= expiry.end);
        let skipped = if retried >= retry.attempts {
            Some(RetrySkipped::Attempts)
        } else if !is_whole {
            worker.metrics.reached(Limit::ReplayBytes);
            Some(RetrySkipped::Body)
        } else if too_late {
            Some(RetrySkipped::Time)
        } else if !worker.budgets.borrow_mut().take(backend, Allowance::default(), Instant::now()) {
            Some(RetrySkipped::Budget)
        } else {
            None
        };
        if let Some(skipped) = skipped {
            worker.metrics.retry_skipped(skipped);
            break answer;
        }
        worker.metrics.retried(cause);
        if let Ok((_, Source::Upstream(streamed))) = answer {
            tokio::task::spawn_local(streamed.discarded(Rc::clone(&link)));
        }
        tokio::time::sleep(pause).await;
        retried += 1;
        tries.again();
    };
    if let Some(kept) = kept {
        kept.release();
    }
    answer
}

/// Why an answer is not the last one; an error if it would not be, were the request another.
fn cause(retry: &Retry, answer: &Answer, method: &Method) -> Option<Result<Retried, RetrySkipped>> {
    let is_named = |status: http::StatusCode| retry.codes.contains(&status.as_u16());
    let (reason, status) = match answer {
        Ok((parts, Source::Upstream(_))) if is_named(parts.status) => return Some(Ok(Retried::Status)),
        // Said by the agent of the endpoint's node, in the endpoint's place.
        Ok((parts, Source::Upstream(_))) => (Reason::said(&parts.headers)?, parts.status),
        Ok(_) => return None,
        Err(reply) => (reply.reason, reply.status()),
    };
    let may = |cause| {
        let may = method.is_idempotent() || is_named(status);
        Some(if may { Ok(cause) } else { Err(RetrySkipped::Method) })
    };
    match reason {
        Reason::ConnectFailed | Reason::TlsFailed | Reason::DialsExhausted | Reason::StreamsExhausted => {
            Some(Ok(Retried::Connect))
        }
        Reason::UpstreamReset => may(Retried::Reset),
        Reason::BackendTimeout => may(Retried::Timeout),
        // There was an answer, if none that makes sense.
        Reason::UpstreamProtocol => is_named(status).then_some(Ok(Retried::Status)),
        _ => None,
    }
}

/// The time before a retry: twice as long each time, and up to half as long again, so that clients do not come all at once.
fn pause(backoff: Duration, retried: u32) -> Duration {
    let shortest = backoff.saturating_mul(1 << retried.min(16)).min(limits::RETRY_BACKOFF_MAX);
    shortest + shortest.mul_f64(fastrand::f64() / 2.0)
}

/// Waits until the backend has an endpoint; false if it has none by then.
async fn there_is_an_endpoint(choice: &Choice<'_>, latest: Instant) -> bool {
    let Some(cell) = choice.cell() else { return false };
    while Instant::now() < latest {
        // First of all: what looks ready may not be for this request.
        tokio::time::sleep(limits::ENDPOINT_LOOK).await;
        if cell.has_ready() {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_differ_by_less_than_half() {
        let backoff = Duration::from_millis(100);
        for (retried, shortest) in [(0, 100), (1, 200), (2, 400), (20, 10_000)] {
            for _ in 0..100 {
                let pause = pause(backoff, retried).as_millis();
                assert!((shortest..=shortest * 3 / 2).contains(&pause), "{retried}: {pause} ms");
            }
        }
        assert_eq!(pause(Duration::ZERO, 3), Duration::ZERO);
    }
}
