//! Accepts from a pod's listeners. Several workers accept from the same queue, each with a descriptor of its own.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit},
    task::JoinHandle,
};

use crate::{
    dial,
    flows::{Direction, Flow},
    inbound, limits,
    metrics::Limit,
    outbound,
    worker::{Pod, Worker},
};

/// How a listener ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// At once; what waits in the queue is left to whoever else listens.
    Now,
    /// After everything that waits in the queue was taken.
    WhenEmpty,
}

#[derive(Debug, Default)]
struct Signal {
    stop: Cell<Option<Stop>>,
    changed: Notify,
}

/// A pod's listeners in one worker.
#[derive(Debug, Default)]
pub(crate) struct Listeners(RefCell<Vec<(Rc<Signal>, JoinHandle<()>)>>);

impl Listeners {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub(crate) fn stop(&self, how: Stop) {
        for (signal, _) in self.0.borrow().iter() {
            if signal.stop.get().is_none() {
                signal.stop.set(Some(how));
                signal.changed.notify_one();
            }
        }
    }

    /// Waits until every listener was let go of.
    pub(crate) async fn stopped(&self) {
        let tasks = self.0.take();
        for (_, task) in tasks {
            // A task that panicked has let go of its listener too.
            let _ = task.await;
        }
    }
}

/// What is needed to serve connections of one listener.
struct Accepting {
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    direction: Direction,
    /// Where the listener itself is bound.
    own: Option<SocketAddr>,
}

/// Serves a listener until it is stopped.
pub(crate) fn listen(worker: &Rc<Worker>, pod: &Rc<Pod>, socket: TcpListener, direction: Direction) {
    let signal = Rc::new(Signal::default());
    let accepting =
        Accepting { worker: Rc::clone(worker), pod: Rc::clone(pod), direction, own: socket.local_addr().ok() };
    let task = tokio::task::spawn_local(accepting.run(socket, Rc::clone(&signal)));
    pod.listeners.0.borrow_mut().push((signal, task));
}

impl Accepting {
    async fn run(self, socket: TcpListener, signal: Rc<Signal>) {
        while signal.stop.get().is_none() {
            let Some(room) = self.room(&signal).await else { break };
            tokio::select! {
                biased;
                () = signal.changed.notified() => {}
                accepted = socket.accept() => match accepted {
                    Ok((stream, peer)) => self.serve(stream, peer, room),
                    Err(error) => self.failed(&error).await,
                },
            }
        }
        if signal.stop.get() == Some(Stop::WhenEmpty) {
            self.empty(socket);
        }
    }

    /// Room for one more connection; without it, connections wait in the accept queue and not here.
    async fn room(&self, signal: &Signal) -> Option<Option<OwnedSemaphorePermit>> {
        if let Ok(room) = Arc::clone(&self.worker.connections).try_acquire_owned() {
            return Some(Some(room));
        }
        self.worker.limit_reached(
            Limit::DownstreamConnections,
            "this worker has as many downstream connections as it may have",
        );
        tokio::select! {
            biased;
            () = signal.changed.notified() => None,
            room = Arc::clone(&self.worker.connections).acquire_owned() => room.ok().map(Some),
        }
    }

    /// Takes what waits, without regard to the bound: the queue itself is bounded, and nobody else will take it.
    fn empty(&self, socket: TcpListener) {
        let Ok(socket) = socket.into_std() else { return };
        loop {
            let accepted = socket.accept().and_then(|(stream, peer)| {
                stream.set_nonblocking(true)?;
                Ok((TcpStream::from_std(stream)?, peer))
            });
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer, None),
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.worker.metrics.accept_errors.inc();
                    tracing::warn!(pod = %self.pod.pod.name, %error, "what waits in an accept queue cannot be taken");
                    return;
                }
            }
        }
    }

    async fn failed(&self, error: &io::Error) {
        // These concern the one connection that came and went.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
        ) {
            return;
        }
        self.worker.metrics.accept_errors.inc();
        self.worker.limit_reached(Limit::FileDescriptors, "connections cannot be accepted");
        tracing::debug!(pod = %self.pod.pod.name, %error, "accept failed");
        // The connection stays in the queue and would fail again at once.
        tokio::time::sleep(limits::ACCEPT_BACKOFF).await;
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr, room: Option<OwnedSemaphorePermit>) {
        let Ok(local) = stream.local_addr() else { return };
        dial::tune(&SockRef::from(&stream));
        let (worker, pod, own) = (Rc::clone(&self.worker), Rc::clone(&self.pod), self.own);
        match self.direction {
            Direction::Outbound => {
                let Some(captured) = worker.captured.take(&pod.pod, local, peer) else {
                    worker.metrics.resets.inc();
                    tracing::debug!(pod = %pod.pod.name, %local, %peer, "connection to the outbound listener itself");
                    dial::reset(stream);
                    return;
                };
                let pod = if captured.source.id == pod.pod.id { pod } else { worker.pod(&captured.source) };
                let flow = Flow::new(Direction::Outbound, Arc::clone(&pod.pod), peer, captured.original_dst);
                let entry = worker.flows.insert(flow);
                tokio::task::spawn_local(async move {
                    outbound::serve(worker, pod, stream, entry).await;
                    drop(room);
                });
            }
            Direction::Inbound => {
                // Only the kernel brings connections for other addresses here.
                if own == Some(local) {
                    worker.metrics.resets.inc();
                    tracing::debug!(pod = %pod.pod.name, %local, %peer, "connection to the inbound listener itself");
                    dial::reset(stream);
                    return;
                }
                let entry = worker.flows.insert(Flow::new(Direction::Inbound, Arc::clone(&pod.pod), peer, local));
                tokio::task::spawn_local(async move {
                    inbound::serve(worker, pod, stream, entry).await;
                    drop(room);
                });
            }
        }
    }
}
