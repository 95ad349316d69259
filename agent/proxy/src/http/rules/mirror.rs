//! Copies of requests for other Services. The original never waits for one, and nobody hears what comes of it but metrics. A copy with
//! content is sent once the original's is there as a whole.

use std::{mem, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::header;
use tokio::sync::OwnedSemaphorePermit;
use weft_policy::{
    names::ObjectRef,
    rule::Rule,
    split::{Backend, Split},
};

use crate::{
    choose,
    http::{
        body::{Content, Loan, Source},
        exchange::Outgoing,
        link::{Link, Record},
        upstream::{self, Tries},
    },
    limits,
    metrics::{Limit, Mirrored},
    reply::LocalReply,
};

/// A copy that is to be sent.
struct Copy {
    link: Rc<Link>,
    origin: ObjectRef,
    to: Backend,
    outgoing: Outgoing,
    _place: OwnedSemaphorePermit,
}

/// Copies that wait for the content of their original.
pub(crate) struct Tee {
    copies: Vec<Copy>,
    parts: Vec<Bytes>,
    bytes: usize,
}

/// Begins the copies that a rule asks for.
pub(super) fn begin(rule: &Rule, link: &Rc<Link>, outgoing: &mut Outgoing) {
    let worker = &link.worker;
    let mut copies = Vec::new();
    for (mirror, to) in rule.ir.mirrors.iter().zip(&rule.mirrors) {
        if !mirror.share.takes(fastrand::u32(..)) {
            continue;
        }
        // What a request becomes that asks for another protocol cannot be copied.
        if to.invalid.is_some() || outgoing.upgrade {
            worker.metrics.mirrored(Mirrored::Impossible);
            continue;
        }
        let Ok(place) = Arc::clone(&worker.mirrors).try_acquire_owned() else {
            worker.metrics.reached(Limit::Mirrors);
            worker.metrics.mirrored(Mirrored::Busy);
            continue;
        };
        let mut copy = outgoing.again(Content::None);
        // Its content is sent when it is there.
        copy.expects = false;
        copy.parts.headers.remove(header::EXPECT);
        copies.push(Copy {
            link: Rc::clone(link),
            origin: rule.ir.origin.clone(),
            to: to.clone(),
            outgoing: copy,
            _place: place,
        });
    }
    if copies.is_empty() {
        return;
    }
    match mem::replace(&mut outgoing.body, Content::None) {
        Content::Whole(body) if !http_body::Body::is_end_stream(&body) => {
            let tee = Tee { copies, parts: Vec::new(), bytes: 0 };
            outgoing.body = Content::Lent(Loan::with_copies(body, tee));
        }
        other => {
            outgoing.body = other;
            for copy in copies {
                tokio::task::spawn_local(copy.send());
            }
        }
    }
}

impl Copy {
    async fn send(self) {
        let Self { link, origin, to, outgoing, _place } = self;
        let metrics = &link.worker.metrics;
        let service = to.service.clone();
        let split = Split::new(origin, Box::new([to]));
        let Some(choice) = choose::again(&split, 0) else { return };
        let mut record = Record::copy(&link);
        let sent = async {
            let (_, source) = upstream::send(&mut record, choice, outgoing, &mut Tries::default()).await?;
            if let Source::Upstream(streamed) = source {
                streamed.discarded(Rc::clone(&link)).await;
            }
            Ok::<_, LocalReply>(())
        };
        match tokio::time::timeout(limits::MIRROR_TIMEOUT, sent).await {
            Ok(Ok(())) => metrics.mirrored(Mirrored::Answered),
            Ok(Err(reply)) => {
                if let Some(denial) = &reply.denial {
                    link.worker.report(&link.flow, denial);
                }
                tracing::debug!(%service, reason = reply.reason.word(), detail = reply.detail, "a copy of a request was not answered");
                metrics.mirrored(Mirrored::Failed);
            }
            Err(_) => {
                metrics.reached(Limit::MirrorTimeout);
                metrics.mirrored(Mirrored::Failed);
            }
        }
    }
}

impl Tee {
    /// A part of the original's content was read. Tells whether there is still anybody who wants it.
    pub(crate) fn read(&mut self, data: &Bytes) -> bool {
        self.bytes += data.len();
        if self.bytes <= limits::MIRROR_BYTES_MAX {
            self.parts.push(data.clone());
            return true;
        }
        for copy in self.copies.drain(..) {
            copy.link.worker.metrics.reached(Limit::MirrorBytes);
            copy.link.worker.metrics.mirrored(Mirrored::TooLong);
        }
        false
    }

    /// All of it was.
    pub(crate) fn whole(mut self) {
        for mut copy in self.copies.drain(..) {
            copy.outgoing.body = Content::Copied(self.parts.clone());
            tokio::task::spawn_local(copy.send());
        }
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        // The original has ended before its content did.
        for copy in &self.copies {
            copy.link.worker.metrics.mirrored(Mirrored::Incomplete);
        }
    }
}
