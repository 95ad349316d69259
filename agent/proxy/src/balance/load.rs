//! What a worker knows of one endpoint: what it has under way there, how fast that answers, since when it is there.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use weft_policy::endpoints::Endpoint;

use super::{ewma::Ewma, slow_start};

/// An endpoint and what this worker has under way to it.
#[derive(Debug)]
pub(crate) struct EndpointLoad {
    pub(crate) endpoint: Endpoint,
    in_flight: Cell<u32>,
    /// When it came, if it came while others were there.
    since: Option<Instant>,
    /// Whether the policy asks how long it takes to answer.
    pub(super) timed: Cell<bool>,
    latency: Cell<Ewma>,
}

impl EndpointLoad {
    pub(crate) fn new(endpoint: Endpoint) -> Rc<Self> {
        Self::since(endpoint, None)
    }

    pub(super) fn since(endpoint: Endpoint, since: Option<Instant>) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            in_flight: Cell::new(0),
            since,
            timed: Cell::new(false),
            latency: Cell::new(Ewma::default()),
        })
    }

    /// Counts one request or connection until the guard is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        let started = Cell::new(self.timed.get().then(Instant::now));
        InFlight { load: Rc::clone(self), started }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// How long one more request would take, in seconds, if those under way take their turns.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.latency.get().value(now) * f64::from(self.in_flight.get() + 1)
    }

    /// Its part of what it would get if it had been there for ever.
    pub(super) fn warmth(&self, window: Duration, now: Instant) -> f64 {
        self.since.map_or(1.0, |since| slow_start::warmth(now.saturating_duration_since(since), window))
    }

    fn took(&self, seconds: f64, now: Instant) {
        let mut latency = self.latency.get();
        latency.observe(seconds, now);
        self.latency.set(latency);
    }
}

/// One request or connection under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    load: Rc<EndpointLoad>,
    /// When it began, if that is of interest and nothing has come of it yet.
    started: Cell<Option<Instant>>,
}

impl InFlight {
    /// The endpoint has begun to answer.
    pub(crate) fn answered(&self) {
        if let Some(started) = self.started.take() {
            let now = Instant::now();
            self.load.took(now.saturating_duration_since(started).as_secs_f64(), now);
        }
    }

    /// It will not. An endpoint that fails at once must not look like one that is fast.
    pub(crate) fn failed(&self) {
        if self.started.take().is_some() {
            self.load.took(super::ewma::FAILURE_SECONDS, Instant::now());
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.in_flight.set(self.load.in_flight.get() - 1);
    }
}
