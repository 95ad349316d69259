//! Waits for files to change: bursts of inotify events become one round of reading.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    Change,
    directory::{Directory, DirectoryError},
};
use crate::limits;

/// Paths that wait between two rounds; beyond that only "something changed" is kept, and everything is looked at.
const TOUCHED_MAX: usize = 4096;

/// Follows a directory until the receiver of `changes` is gone.
pub async fn follow(mut directory: Directory, root: PathBuf, changes: mpsc::Sender<Change>) {
    let (event_tx, mut events) = mpsc::channel::<PathBuf>(TOUCHED_MAX);
    let mut watcher = watch(&root, event_tx.clone());
    let mut last_problems = None;
    loop {
        let mut touched = BTreeSet::new();
        // The watch ends when the directory itself is replaced; the periodic round then makes a new one.
        match timeout_at(Instant::now() + limits::MANIFEST_RESCAN, events.recv()).await {
            Ok(Some(path)) => {
                touched.insert(path);
                settle(&mut events, &mut touched).await;
            }
            Ok(None) => return,
            Err(_) => watcher = watch(&root, event_tx.clone()),
        }
        if watcher.is_none() {
            watcher = watch(&root, event_tx.clone());
        }
        match directory.scan(&touched) {
            Ok(change) => {
                let quiet = change.events.is_empty() && last_problems.as_ref() == Some(&change.problems);
                last_problems = Some(change.problems.clone());
                if !quiet && changes.send(change).await.is_err() {
                    return;
                }
            }
            Err(error) => report(&error),
        }
    }
}

fn report(error: &DirectoryError) {
    tracing::error!(error = %crate::telemetry::Chain(error), "manifests cannot be read; everything stays as it was");
}

async fn settle(events: &mut mpsc::Receiver<PathBuf>, touched: &mut BTreeSet<PathBuf>) {
    let cap = Instant::now() + limits::MANIFEST_QUIET_CAP;
    loop {
        let quiet = (Instant::now() + limits::MANIFEST_QUIET).min(cap);
        match timeout_at(quiet, events.recv()).await {
            Ok(Some(path)) => {
                touched.insert(path);
            }
            Ok(None) | Err(_) => return,
        }
    }
}

fn watch(root: &Path, events: mpsc::Sender<PathBuf>) -> Option<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if matches!(
            event.kind,
            notify::EventKind::Access(notify::event::AccessKind::Open(_) | notify::event::AccessKind::Read)
        ) {
            return;
        }
        for path in event.paths {
            // A full queue means that a round is due anyway; it looks at every file's fingerprint.
            let _ = events.try_send(path);
        }
    };
    let mut watcher = match notify::recommended_watcher(handler) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "no inotify watch; manifests are only read periodically");
            return None;
        }
    };
    match watcher.watch(root, RecursiveMode::NonRecursive) {
        Ok(()) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, path = %root.display(), "no inotify watch; manifests are only read periodically");
            None
        }
    }
}
