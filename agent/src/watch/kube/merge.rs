//! Merges what the watches say into changes, each of which is applied as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use weft_crds::{
    object::{Kind, Object, ObjectKey},
    parse::ParseError,
    store::ObjectEvent,
};

use super::{Batch, Seen, health::Sources, ledger::Note};
use crate::{
    limits,
    watch::{Change, SourceProblem},
};

/// What problems name instead of a file.
const API_SERVER: &str = "API server";

/// What the reconciler was told, and what it has to hear.
#[derive(Debug)]
pub(super) struct Merge {
    batches: mpsc::Receiver<Batch>,
    sources: Arc<Sources>,
    /// Kinds that were not listed yet.
    awaited: BTreeSet<Kind>,
    told: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    problems: BTreeMap<ObjectKey, SourceProblem>,
    /// The same as it is handed over, until one of them changes: there may be ten thousand.
    listed: Option<Arc<[SourceProblem]>>,
    events: Vec<ObjectEvent>,
    notes: BTreeMap<ObjectKey, Option<Note>>,
    changed: bool,
}

impl Merge {
    pub(super) fn new(batches: mpsc::Receiver<Batch>, sources: Arc<Sources>) -> Self {
        Self {
            batches,
            sources,
            awaited: Kind::ALL.into(),
            told: BTreeMap::new(),
            problems: BTreeMap::new(),
            listed: None,
            events: Vec::new(),
            notes: BTreeMap::new(),
            changed: false,
        }
    }

    /// Everything, once every kind was listed.
    pub(super) async fn first(&mut self) -> Option<Change> {
        while !self.awaited.is_empty() {
            let batch = self.batches.recv().await?;
            self.take(batch);
        }
        Some(self.change())
    }

    /// What changed since; bursts are one change.
    pub(super) async fn next(&mut self) -> Option<Change> {
        loop {
            let batch = self.batches.recv().await?;
            self.take(batch);
            let cap = Instant::now() + limits::KUBE_QUIET_CAP;
            while let Ok(batch) = timeout_at((Instant::now() + limits::KUBE_QUIET).min(cap), self.batches.recv()).await
            {
                let Some(batch) = batch else { break };
                self.take(batch);
            }
            if self.changed {
                return Some(self.change());
            }
        }
    }

    fn change(&mut self) -> Change {
        self.changed = false;
        for (kind, told) in &self.told {
            self.sources.count(*kind, told.len());
        }
        self.sources.ledger.hand_over(std::mem::take(&mut self.notes));
        let problems = self.listed.get_or_insert_with(|| self.problems.values().cloned().collect());
        Change { events: std::mem::take(&mut self.events), problems: Arc::clone(problems) }
    }

    /// Forgets what is wrong with an object.
    fn solve(&mut self, key: &ObjectKey) {
        if self.problems.remove(key).is_some() {
            self.listed = None;
            self.changed = true;
        }
    }

    fn take(&mut self, batch: Batch) {
        match batch {
            Batch::Replace(kind, seen) => {
                self.awaited.remove(&kind);
                let present: BTreeSet<ObjectKey> = seen.iter().filter_map(|one| key(&one.object)).collect();
                let gone: Vec<ObjectKey> = self.told.get(&kind).into_iter().flatten().cloned().collect();
                let unnamed: Vec<ObjectKey> = self.problems.keys().filter(|key| key.kind == kind).cloned().collect();
                for key in gone.into_iter().chain(unnamed).filter(|key| !present.contains(key)) {
                    self.delete(key);
                }
                for one in seen {
                    self.apply(kind, one);
                }
            }
            Batch::Apply(kind, seen) => self.apply(kind, *seen),
            Batch::Delete(key) => self.delete(key),
        }
    }

    fn apply(&mut self, kind: Kind, seen: Seen) {
        if let (Some(note), Some(key)) = (seen.note, key(&seen.object)) {
            self.notes.insert(key, Some(note));
            self.changed = true;
        }
        match seen.object {
            Ok(object) => {
                let key = object.key();
                self.solve(&key);
                self.told.entry(kind).or_default().insert(key);
                self.events.push(ObjectEvent::Apply(object));
                self.changed = true;
            }
            Err(error) => {
                // The API server names every object; one without a name has no key to keep anything by.
                let key = error.key.clone().unwrap_or_else(|| ObjectKey::new(kind, "", ""));
                let known = self.told.get(&kind).is_some_and(|told| told.contains(&key));
                let fate = if known { "the last good version stays in force" } else { "nothing of it is in force" };
                let problem = problem(error, fate);
                if self.problems.get(&key) != Some(&problem) {
                    self.problems.insert(key, problem);
                    self.listed = None;
                    self.changed = true;
                }
            }
        }
    }

    fn delete(&mut self, key: ObjectKey) {
        self.notes.insert(key.clone(), None);
        self.solve(&key);
        if self.told.get_mut(&key.kind).is_some_and(|told| told.remove(&key)) {
            self.events.push(ObjectEvent::Delete(key));
            self.changed = true;
        }
    }
}

fn key(object: &Result<Object, ParseError>) -> Option<ObjectKey> {
    match object {
        Ok(object) => Some(object.key()),
        Err(error) => error.key.clone(),
    }
}

fn problem(error: ParseError, fate: &str) -> SourceProblem {
    SourceProblem {
        file: API_SERVER.to_owned(),
        document: 0,
        line: 0,
        object: error.object,
        field: error.field,
        message: format!("{}; {fate}", error.message),
    }
}

#[cfg(test)]
mod tests;
