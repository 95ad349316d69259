//! The data path as the rest of the agent sees it: started once, told about pods, asked how it is.

use std::{
    net::TcpListener,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use weft_identity::Credentials;
use weft_policy::{names::WorkloadId, snapshot::SnapshotCell};

use crate::{
    config::ProxyConfig,
    drain::DrainReport,
    flows::FlowRow,
    learnt::{self, LearntRow},
    limits,
    listener::Stop,
    metrics::{Limit, Metrics},
    socket::{FlowSource, PodListeners, SocketFactory},
    worker::{self, Command, Heartbeat, Parts},
};

/// Why the data path cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A metric of the same name is there already.
    #[error("cannot register the data path's metrics")]
    Metrics(#[from] prometheus::Error),
    /// The system gives no thread or no event queue.
    #[error("cannot start worker {index}")]
    Worker {
        /// Which one.
        index: usize,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The running data path. Dropping it resets what is open and joins its threads.
#[derive(Debug)]
pub struct Proxy {
    workers: Vec<Handle>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    heartbeat: Arc<Heartbeat>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts the workers. Without credentials mutual TLS is neither spoken nor taken.
    ///
    /// # Errors
    /// When the metrics are registered already, or the system has no threads left.
    pub fn start(
        config: &ProxyConfig,
        snapshots: Arc<SnapshotCell>,
        sockets: Arc<dyn SocketFactory>,
        captured: Arc<dyn FlowSource>,
        credentials: Option<Arc<dyn Credentials>>,
        registry: &prometheus::Registry,
    ) -> Result<Self, ProxyError> {
        let metrics = Metrics::register(registry)?;
        let parts = Parts {
            config: Arc::new(config.clone()),
            snapshots,
            sockets,
            captured,
            credentials,
            metrics: Arc::clone(&metrics),
        };
        let epoch = Instant::now();
        let workers = (0..config.worker_count())
            .map(|index| {
                Handle::start(index, parts.clone(), epoch).map_err(|source| ProxyError::Worker { index, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { workers, metrics })
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Serves a pod's listeners from now on, in every worker. What goes wrong is logged and counted: its listeners stay open, so
    /// connections wait and are not lost.
    pub fn add_pod(&self, listeners: PodListeners) {
        let (last, others) = match self.workers.split_last() {
            Some((last, others)) => (last, others),
            None => return,
        };
        for worker in others {
            let copy = |sockets: &[TcpListener]| {
                sockets.iter().map(TcpListener::try_clone).collect::<std::io::Result<Vec<_>>>()
            };
            let copies = copy(&listeners.outbound).and_then(|outbound| Ok((outbound, copy(&listeners.inbound)?)));
            match copies {
                Ok((outbound, inbound)) => {
                    self.give(worker, PodListeners { pod: Arc::clone(&listeners.pod), outbound, inbound });
                }
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    tracing::error!(pod = %listeners.pod.name, %error, "listeners cannot be shared with every worker");
                    break;
                }
            }
        }
        self.give(last, listeners);
    }

    fn give(&self, worker: &Handle, listeners: PodListeners) {
        for socket in listeners.outbound.iter().chain(&listeners.inbound) {
            if let Err(error) = socket.set_nonblocking(true) {
                self.metrics.accept_errors.inc();
                tracing::error!(pod = %listeners.pod.name, %error, "listener cannot be used");
                return;
            }
        }
        self.tell(worker, Command::AddPod(listeners));
    }

    /// Stops accepting for a pod at once; its live connections have a short grace, then they are reset.
    pub fn remove_pod(&self, id: &WorkloadId) {
        for worker in &self.workers {
            self.tell(worker, Command::RemovePod(id.clone(), Stop::Now));
        }
    }

    /// As [`remove_pod`](Self::remove_pod), for a pod that lives on: what waits in its accept queues is still served.
    pub fn let_go(&self, id: &WorkloadId) {
        for worker in &self.workers {
            self.tell(worker, Command::RemovePod(id.clone(), Stop::WhenEmpty));
        }
    }

    fn tell(&self, worker: &Handle, command: Command) {
        if worker.commands.try_send(command).is_err() {
            self.metrics.reached(Limit::Commands);
            tracing::error!(
                heartbeat_age_ms = worker.heartbeat.age().as_millis(),
                "a worker takes no commands: it hangs or has ended"
            );
        }
    }

    /// Counts a connection that was ended and that no worker ever carried, beside those that workers cut.
    pub fn cut_older(&self) {
        self.metrics.cut_older.inc();
    }

    /// How long ago the slowest worker last showed that it lives.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.workers.iter().map(|worker| worker.heartbeat.age()).max().unwrap_or_default()
    }

    /// Live connections of all workers, the oldest of each first; at most `limit`, and [`limits::FLOW_ROWS_MAX`].
    pub async fn flows(&self, limit: usize) -> Vec<FlowRow> {
        let limit = limit.min(limits::FLOW_ROWS_MAX);
        let mut rows = Vec::new();
        let answers: Vec<_> = self
            .workers
            .iter()
            .map(|worker| ask(worker, |answer| Command::Flows { limit: limit + 1, answer }))
            .collect();
        for answer in answers {
            if let Some(answer) = answer
                && let Ok(Ok(part)) = tokio::time::timeout(limits::FLOWS_TIMEOUT, answer).await
            {
                rows.extend(part);
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.age_ms));
        if rows.len() > limit {
            self.metrics.reached(Limit::FlowRows);
            rows.truncate(limit);
        }
        rows
    }

    /// What all workers together have seen ports speak whose protocol is not declared, in the order of their keys.
    pub async fn learnt(&self) -> Vec<LearntRow> {
        let answers: Vec<_> =
            self.workers.iter().map(|worker| ask(worker, |answer| Command::Learnt { answer })).collect();
        let mut rows = Vec::new();
        for answer in answers.into_iter().flatten() {
            if let Ok(Ok(part)) = tokio::time::timeout(limits::FLOWS_TIMEOUT, answer).await {
                rows.extend(part);
            }
        }
        learnt::sum(rows)
    }

    /// Takes what waits in the accept queues, then lets go of every listener. Returns when all workers have.
    pub async fn stop_accepting(&self) {
        let answers: Vec<_> =
            self.workers.iter().map(|worker| ask(worker, |answer| Command::StopAccepting { answer })).collect();
        let deadline = tokio::time::Instant::now() + limits::STOP_ACCEPTING_TIMEOUT;
        for answer in answers.into_iter().flatten() {
            // A worker that has ended accepts nothing.
            if tokio::time::timeout_at(deadline, answer).await.is_err() {
                tracing::error!("a worker does not let go of its listeners: it hangs");
            }
        }
    }

    /// Ends connections in good order: HTTP with its current request, others when they end by themselves; what is open after
    /// `within` is reset.
    pub async fn drain(&self, within: Duration) -> DrainReport {
        let deadline = Instant::now() + within + DRAIN_ANSWER;
        let mut report = DrainReport::default();
        let answers: Vec<_> =
            self.workers.iter().map(|worker| ask(worker, |answer| Command::Drain { within, answer })).collect();
        for answer in answers {
            let left = deadline.saturating_duration_since(Instant::now());
            match answer {
                Some(answer) => match tokio::time::timeout(left, answer).await {
                    Ok(Ok(part)) => report.add(part),
                    _ => report.workers_lost += 1,
                },
                None => report.workers_lost += 1,
            }
        }
        report
    }
}

/// How much longer than a drain itself its answer may take.
const DRAIN_ANSWER: Duration = Duration::from_secs(2);

fn ask<T>(worker: &Handle, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<oneshot::Receiver<T>> {
    let (answer, answered) = oneshot::channel();
    worker.commands.try_send(command(answer)).ok().map(|()| answered)
}

impl Handle {
    fn start(index: usize, parts: Parts, epoch: Instant) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (commands, received) = mpsc::channel(limits::COMMANDS_MAX);
        let heartbeat = Arc::new(Heartbeat::new(epoch));
        let shown = Arc::clone(&heartbeat);
        let thread = std::thread::Builder::new()
            .name(format!("weft-worker-{index}"))
            .spawn(move || worker::run(&runtime, index, parts, shown, received))?;
        Ok(Self { commands, heartbeat, thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for worker in &self.workers {
            // A full queue is no reason to stay: the worker ends when the last sender is gone, too.
            let _ = worker.commands.try_send(Command::Shutdown);
        }
        let deadline = Instant::now() + limits::SHUTDOWN_TIMEOUT;
        for worker in self.workers.drain(..) {
            let Handle { commands, thread, .. } = worker;
            drop(commands);
            let Some(thread) = thread else { continue };
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(JOIN_LOOK);
            }
            if !thread.is_finished() {
                tracing::error!("a worker does not end; its connections end with the process");
            } else if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// How often `Drop` looks whether a thread has ended.
const JOIN_LOOK: Duration = Duration::from_millis(2);
