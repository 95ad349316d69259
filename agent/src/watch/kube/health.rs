//! How the watches are doing, for metrics and `weft status`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use weft_crds::object::Kind;

use super::ledger::Ledger;

/// Every kind that is watched; empty where objects come from a directory.
#[derive(Debug, Default)]
pub struct Sources {
    /// What is noted of objects that get a status.
    pub ledger: Ledger,
    status_writes: AtomicU64,
    status_errors: AtomicU64,
    rows: Mutex<BTreeMap<Kind, Row>>,
}

#[derive(Debug)]
struct Row {
    version: String,
    /// Since when what is known may be old; `None` while a watch is open.
    stale_since: Option<Instant>,
    /// The API server does not serve the kind.
    absent: bool,
    objects: usize,
    relists: u64,
    errors: BTreeMap<Reason, u64>,
    last_error: String,
}

/// Why the API server could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No connection, or it broke.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// A watch said nothing, not even a bookmark.
    Silent,
    /// What the watch was to go on from is no longer kept (410).
    Expired,
    /// The API server is older than what it said before: its store was restored.
    Rewound,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotServed,
    /// 429.
    Throttled,
    /// 5xx, and every other refusal.
    Refused,
    /// An answer that cannot be read.
    Unreadable,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Silent,
        Self::Expired,
        Self::Rewound,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotServed,
        Self::Throttled,
        Self::Refused,
        Self::Unreadable,
    ];

    /// As a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Silent => "silent",
            Self::Expired => "expired",
            Self::Rewound => "rewound",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotServed => "not_served",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One kind, as `weft status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceView {
    /// The kind.
    pub kind: String,
    /// The version that is read; empty while the kind is not served.
    pub version: String,
    /// `watching`, `stale`, or `absent`: the API server does not serve the kind.
    pub state: String,
    /// Objects in use.
    pub objects: usize,
    /// For how long what is known may be old, seconds.
    pub stale_s: f64,
    /// How often all objects were listed.
    pub relists: u64,
    /// Failures by reason.
    pub errors: BTreeMap<String, u64>,
    /// What went wrong last; empty once the watch is open again.
    pub last_error: String,
}

impl Sources {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<Kind, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, kind: Kind, change: impl FnOnce(&mut Row)) {
        let mut rows = self.rows();
        change(rows.entry(kind).or_insert_with(|| Row {
            version: String::new(),
            stale_since: Some(Instant::now()),
            absent: false,
            objects: 0,
            relists: 0,
            errors: BTreeMap::new(),
            last_error: String::new(),
        }));
    }

    /// The kind is going to be read in this version.
    pub(super) fn begin(&self, kind: Kind, version: &str) {
        self.row(kind, |row| {
            row.absent = false;
            row.stale_since = row.stale_since.or_else(|| Some(Instant::now()));
            version.clone_into(&mut row.version);
        });
    }

    /// All objects of the kind were listed.
    pub(super) fn listed(&self, kind: Kind) {
        self.row(kind, |row| row.relists += 1);
    }

    /// How many objects of the kind are in use.
    pub(super) fn count(&self, kind: Kind, objects: usize) {
        self.row(kind, |row| row.objects = objects);
    }

    /// A watch is open. Says for how long none was.
    pub(super) fn in_touch(&self, kind: Kind) -> Option<Duration> {
        let mut stale = None;
        self.row(kind, |row| {
            stale = row.stale_since.take().map(|since| since.elapsed());
            row.last_error.clear();
        });
        stale
    }

    /// What is known may be old from now on. Returns whether that is news.
    pub(super) fn failed(&self, kind: Kind, reason: Reason, message: &str) -> bool {
        let mut news = false;
        self.row(kind, |row| {
            row.stale_since = row.stale_since.or_else(|| Some(Instant::now()));
            *row.errors.entry(reason).or_default() += 1;
            news = row.last_error != message;
            message.clone_into(&mut row.last_error);
        });
        news
    }

    /// The API server does not serve the kind.
    pub(super) fn absent(&self, kind: Kind) {
        self.row(kind, |row| {
            row.absent = true;
            row.stale_since = None;
            row.objects = 0;
            row.version.clear();
            row.last_error.clear();
        });
    }

    /// A status or an Event was written.
    pub(crate) fn status_written(&self) {
        self.status_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// A status or an Event could not be written.
    pub(crate) fn status_failed(&self) {
        self.status_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Statuses and Events that were written, and that could not be.
    fn status_counts(&self) -> (u64, u64) {
        (self.status_writes.load(Ordering::Relaxed), self.status_errors.load(Ordering::Relaxed))
    }

    /// Every kind as it stands.
    #[must_use]
    pub fn view(&self) -> Vec<SourceView> {
        let view = |(kind, row): (&Kind, &Row)| SourceView {
            kind: kind.as_str().to_owned(),
            version: row.version.clone(),
            state: match (row.absent, row.stale_since) {
                (true, _) => "absent",
                (false, None) => "watching",
                (false, Some(_)) => "stale",
            }
            .to_owned(),
            objects: row.objects,
            stale_s: row.stale_since.map_or(0.0, |since| since.elapsed().as_secs_f64()),
            relists: row.relists,
            errors: row.errors.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
            last_error: row.last_error.clone(),
        };
        self.rows().iter().map(view).collect()
    }
}

/// Registers the metrics of `sources`, which are read when somebody scrapes.
///
/// # Errors
/// When a name is taken.
pub fn register(registry: &prometheus::Registry, sources: &Arc<Sources>) -> Result<(), prometheus::Error> {
    registry.register(Box::new(metrics::SourceMetrics::new(Arc::clone(sources))?))
}

mod metrics;
