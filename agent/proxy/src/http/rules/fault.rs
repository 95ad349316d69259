//! What goes wrong on purpose.

use weft_policy::rule::{Fault, Fraction};

use crate::{http::link::Record, metrics::Faulted, reply::LocalReply};

/// Delays a request, ends it, or leaves it alone. Each share is taken of all requests by itself.
pub(super) async fn happen(fault: &Fault, record: &Record) -> Result<(), LocalReply> {
    let link = &record.link;
    if !fault.sources.is_empty() && !fault.sources.contains(&link.pod.pod.account) {
        return Ok(());
    }
    let metrics = &link.worker.metrics;
    let is_met = |share: Fraction| share.takes(fastrand::u32(..));
    if let Some(delay) = fault.delay.filter(|delay| is_met(delay.share)) {
        metrics.faulted(Faulted::Delay);
        tokio::time::sleep(delay.fixed.saturating_add(delay.jitter.mul_f64(fastrand::f64()))).await;
    }
    let Some(abort) = fault.abort.filter(|abort| is_met(abort.share)) else { return Ok(()) };
    metrics.faulted(Faulted::Abort);
    Err(LocalReply::aborted(abort.how, record.grpc, format_args!("{} asks for this fault", fault.origin)))
}
