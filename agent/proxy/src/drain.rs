//! Ending connections in good order: the signal that every connection listens to, and what a drain reports.

use std::cell::Cell;

use serde::Serialize;
use tokio::sync::Notify;

/// What a connection has been asked to do. Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Go on.
    Running,
    /// Finish the current request, take no other one. Opaque connections go on.
    Draining,
    /// The client took too long; say so if nothing is owed, then close.
    TimedOut,
    /// End at once, and not as if all was said.
    Cut,
}

/// How the worker talks to one of its connections.
#[derive(Debug)]
pub(crate) struct Control {
    phase: Cell<Phase>,
    changed: Notify,
}

impl Default for Control {
    fn default() -> Self {
        Self { phase: Cell::new(Phase::Running), changed: Notify::new() }
    }
}

impl Control {
    /// Moves the connection on, and tells whether it did; does nothing if it is there already.
    pub(crate) fn advance(&self, to: Phase) -> bool {
        if to <= self.phase.get() {
            return false;
        }
        self.phase.set(to);
        self.changed.notify_one();
        true
    }

    /// Waits until the phase is another one than `seen`. There is one task to a connection, so one waiter.
    pub(crate) async fn changed(&self, seen: Phase) -> Phase {
        while self.phase.get() == seen {
            self.changed.notified().await;
        }
        self.phase.get()
    }

    /// Waits until the connection is to end at once.
    pub(crate) async fn cut(&self) {
        while self.phase.get() < Phase::TimedOut {
            self.changed.notified().await;
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DrainReport {
    /// Connections that ended by themselves, or with their last request.
    pub finished: usize,
    /// Connections that were still open at the deadline and were closed.
    pub closed: usize,
    /// Workers that did not answer; their connections are in neither number.
    pub workers_lost: usize,
}

impl DrainReport {
    pub(crate) fn add(&mut self, other: Self) {
        self.finished += other.finished;
        self.closed += other.closed;
        self.workers_lost += other.workers_lost;
    }
}
