//! One kind: listed page by page, then watched, for as long as the API server serves it.

use std::{sync::Arc, time::Duration};

use kube::{
    Client,
    core::{
        Request,
        params::{ListParams, WatchParams},
    },
};
use serde_json::Value;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use weft_crds::{
    core::pod::{CGROUP_ANNOTATION, NETNS_ANNOTATION},
    object::{Kind, ObjectKey},
    parse::parse_as,
};

use super::{
    Batch, Seen,
    backoff::Backoff,
    health::{Reason, Sources},
    ledger::Note,
    wire::{self, Event, Failure, Lines},
};
use crate::limits;

/// What to list and to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    pub(super) version: String,
    /// `/apis/split.smi-spec.io/v1alpha4/trafficsplits`.
    pub(super) path: String,
    pub(super) field_selector: Option<String>,
}

/// Why a kind is no longer followed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The API server does not serve it (any more).
    NotServed,
    /// Nobody listens.
    Unwanted,
}

/// Why a watch is over.
enum Stop {
    /// The API server ended it, as it does from time to time.
    Ended,
    Failed(Failure),
    Unwanted,
}

/// Follows one kind.
pub(super) struct Reflector {
    pub(super) client: Client,
    pub(super) resource: Resource,
    /// Whether an API server may do without the kind: it is not asked again, then.
    pub(super) optional: bool,
    pub(super) sources: Arc<Sources>,
    pub(super) batches: mpsc::Sender<Batch>,
    /// Told when any kind gets through again, so that the others need not wait for the end of their pauses.
    pub(super) recovered: Arc<Notify>,
    /// Objects in one page; less after a page that was too large.
    pub(super) page: u32,
}

impl Reflector {
    pub(super) async fn run(mut self) -> End {
        let mut backoff = Backoff::default();
        let mut version: Option<String> = None;
        // Whether the API server may have another history than the one that was watched.
        let mut doubtful = false;
        // Whether an expired watch was followed by a list at once, and none has worked since.
        let mut listed_at_once = false;
        loop {
            let opened = Instant::now();
            // A watch that brought something has worked, however short it was: the next one goes on from there.
            let mut moved = false;
            let stop = match version.take() {
                None => match self.list().await {
                    Ok((seen, at)) => {
                        self.sources.listed(self.resource.kind);
                        if self.batches.send(Batch::Replace(self.resource.kind, seen)).await.is_err() {
                            return End::Unwanted;
                        }
                        version = Some(at);
                        doubtful = false;
                        continue;
                    }
                    Err(failure) => Stop::Failed(failure),
                },
                Some(mut at) => {
                    let from = at.clone();
                    let stop = match self.rewound(&at, doubtful).await {
                        Ok(()) => self.watch(&mut at).await,
                        Err(failure) => Stop::Failed(failure),
                    };
                    moved = at != from;
                    version = Some(at);
                    stop
                }
            };
            let worked = moved || opened.elapsed() >= limits::KUBE_WATCH_WORKED;
            if worked {
                backoff.reset();
                doubtful = false;
                listed_at_once = false;
            }
            let pause = match stop {
                Stop::Unwanted => return End::Unwanted,
                Stop::Ended if worked => continue,
                Stop::Ended => backoff.next(None),
                Stop::Failed(failure) => {
                    let news = self.sources.failed(self.resource.kind, failure.reason, &failure.message);
                    match failure.reason {
                        Reason::NotServed if self.optional => return End::NotServed,
                        // All that is known stays in force until the new list has come as a whole.
                        Reason::Expired | Reason::Rewound => {
                            version = None;
                            // The API server answers, and only a list helps; but one whose lists are never new enough is not asked
                            // without a pause.
                            if !std::mem::replace(&mut listed_at_once, true) {
                                continue;
                            }
                        }
                        _ => doubtful = true,
                    }
                    if news {
                        tracing::warn!(kind = self.resource.kind.as_str(), reason = %failure.reason, error = failure.message, "objects cannot be read; what is known stays in force");
                    }
                    let pause = backoff.next(failure.retry_after);
                    if failure.retry_after.is_some() {
                        // Whoever gets through meanwhile changes nothing: it is this request that the API server does not want yet.
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    pause
                }
            };
            // Asked for before the pause: a wake-up in between is not lost.
            let recovered = self.recovered.notified();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = recovered => tokio::time::sleep(pause.min(limits::KUBE_BACKOFF_FIRST)).await,
            }
        }
    }

    fn request(&self) -> Request {
        Request::new(&self.resource.path)
    }

    fn list_params(&self, limit: u32) -> ListParams {
        ListParams { field_selector: self.resource.field_selector.clone(), limit: Some(limit), ..ListParams::default() }
    }

    /// Every object, and the version of the whole.
    async fn list(&mut self) -> Result<(Vec<Seen>, String), Failure> {
        let mut all = Vec::new();
        let mut params = self.list_params(self.page);
        loop {
            let request = self.request().list(&params).map_err(|error| Failure::request(&error))?;
            let body = match wire::ask(&self.client, request).await {
                Err(failure) if failure.too_large && self.page > 1 => {
                    self.page /= 2;
                    params.limit = Some(self.page);
                    continue;
                }
                body => body?,
            };
            let page = wire::page(&body)?;
            for item in page.items {
                let item = serde_json::from_str(item.get()).map_err(|error| Failure::unreadable(&error))?;
                all.push(self.read(item));
            }
            match page.metadata.next.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok((all, page.metadata.resource_version)),
            }
        }
    }

    /// An API server whose store was restored goes on from an older version; a watch from a newer one would miss what happens until then.
    async fn rewound(&self, at: &str, doubtful: bool) -> Result<(), Failure> {
        if !doubtful {
            return Ok(());
        }
        let request = self.request().list(&self.list_params(1)).map_err(|error| Failure::request(&error))?;
        let body = wire::ask(&self.client, request).await?;
        let now = wire::page(&body)?.metadata.resource_version;
        // Versions are decimal numbers that grow (KEP-5504); what is not is left to the watch.
        match (at.parse::<u64>(), now.parse::<u64>()) {
            (Ok(at), Ok(now)) if now < at => {
                Err(Failure::new(Reason::Rewound, format!("version {now} is older than {at}, which was read before")))
            }
            _ => Ok(()),
        }
    }

    /// Watches from a version on, and keeps it up to date.
    async fn watch(&self, at: &mut String) -> Stop {
        let params = WatchParams {
            field_selector: self.resource.field_selector.clone(),
            timeout: Some(limits::KUBE_WATCH_S),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = match self.request().watch(&params, at) {
            Ok(request) => request,
            Err(error) => return Stop::Failed(Failure::request(&error)),
        };
        let mut lines = match wire::open(&self.client, request).await {
            Ok(body) => Lines::new(body),
            Err(failure) => return Stop::Failed(failure),
        };
        if let Some(stale) = self.sources.in_touch(self.resource.kind) {
            if stale > Duration::from_secs(1) {
                tracing::info!(kind = self.resource.kind.as_str(), stale_s = stale.as_secs(), "objects are followed");
            }
            self.recovered.notify_waiters();
        }
        loop {
            let line = match timeout(limits::KUBE_WATCH_SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return Stop::Ended,
                Ok(Err(failure)) => return Stop::Failed(failure),
                Err(_) => {
                    let message = format!("nothing came for {} s", limits::KUBE_WATCH_SILENCE.as_secs());
                    return Stop::Failed(Failure::new(Reason::Silent, message));
                }
            };
            let (version, batch) = match wire::event(&line) {
                Ok(Event::Bookmark(version)) => (version, None),
                Ok(Event::Applied(version, object)) => {
                    (version, Some(Batch::Apply(self.resource.kind, Box::new(self.read(object)))))
                }
                Ok(Event::Deleted(version, object)) => (version, self.key(&object).map(Batch::Delete)),
                Err(failure) => return Stop::Failed(failure),
            };
            if let Some(batch) = batch
                && self.batches.send(batch).await.is_err()
            {
                return Stop::Unwanted;
            }
            if !version.is_empty() {
                *at = version;
            }
        }
    }

    fn key(&self, object: &Value) -> Option<ObjectKey> {
        let text = |field: &str| object.pointer(field).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        (!name.is_empty()).then(|| ObjectKey::new(self.resource.kind, text("/metadata/namespace"), name))
    }

    /// Trims an object at once: a whole one is many times as large.
    fn read(&self, mut object: Value) -> Seen {
        if self.resource.kind == Kind::Pod {
            distrust(&mut object);
        }
        let kind = self.resource.kind;
        let mut note = kind
            .has_status()
            .then(|| {
                Note::of(kind, &format!("{}/{}", kind.group(), self.resource.version), &self.resource.path, &object)
            })
            .flatten();
        let object = parse_as(kind, &self.resource.version, &object);
        if let (Some(note), Err(error)) = (&mut note, &object) {
            note.unusable = Some(error.clone());
        }
        Seen { object, note }
    }
}

/// Whoever may create a pod could make the agent enter any namespace of the node: what a pod says of its own place is for directories
/// of manifests alone.
fn distrust(pod: &mut Value) {
    if let Some(annotations) = pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        for annotation in [NETNS_ANNOTATION, CGROUP_ANNOTATION] {
            annotations.remove(annotation);
        }
    }
}
