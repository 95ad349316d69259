//! The smallest agent: accepts what capture sends, says what it knows of it, and dials where a test wants it to.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{PollFd, PollFlags, poll};
use weft_agent::capture::{Capture, CaptureSockets, PodAttachment, PodSpec};
use weft_proxy::socket::{Dial, DialSocket, FlowSource, LocalPod, PodListeners, SocketError, SocketFactory};

use crate::world::SOON;

/// Accepts for one pod until it is dropped.
pub(crate) struct Worker {
    pub(crate) pod: Arc<LocalPod>,
    /// Connections that came out of the inbound listeners.
    inbound: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Worker {
    /// Connections that came out of the inbound listeners. Exact, unlike the kernel's counters of look-ups: a late segment for a
    /// connection that is gone is looked up too.
    pub(crate) fn accepted(&self) -> u64 {
        self.inbound.load(Ordering::Relaxed)
    }

    /// Attaches a pod and serves it: outbound connections are answered with where they were going, inbound ones are passed on to the
    /// application with the client's address.
    pub(crate) fn attach(capture: &mut Capture, spec: &PodSpec) -> Self {
        let attachment = capture.attach_pod(spec, &mut Vec::new()).expect("attached");
        Self::serve(capture, attachment)
    }

    pub(crate) fn serve(capture: &Capture, attachment: PodAttachment) -> Self {
        let PodListeners { pod, outbound, inbound } = attachment.listeners;
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for (listener, is_outbound) in outbound
            .into_iter()
            .map(|listener| (listener, true))
            .chain(inbound.into_iter().map(|listener| (listener, false)))
        {
            let (sockets, pod, stop, accepted) =
                (capture.sockets(), Arc::clone(&pod), Arc::clone(&stop), Arc::clone(&accepted));
            threads.push(thread::spawn(move || {
                accept(&listener, &stop, |stream, peer| {
                    if !is_outbound {
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                    let (sockets, pod) = (Arc::clone(&sockets), Arc::clone(&pod));
                    thread::spawn(move || {
                        let done = if is_outbound {
                            say(&sockets, &pod, stream, peer)
                        } else {
                            pass_on(&sockets, &pod, stream, peer)
                        };
                        // A client that resets its connection is no defect, and what is one fails its test.
                        if let Err(error) = done
                            && error.kind() != io::ErrorKind::ConnectionReset
                        {
                            eprintln!("agent: {error}");
                        }
                    });
                });
            }));
        }
        Self { pod, inbound: accepted, stop, threads }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool, mut each: impl FnMut(TcpStream, SocketAddr)) {
    let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, Some(&wait)).is_err() {
            return;
        }
        while let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(false).expect("blocking");
            each(stream, peer);
        }
    }
}

fn say(sockets: &CaptureSockets, pod: &Arc<LocalPod>, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    match sockets.take(pod, stream.local_addr()?, peer) {
        Some(flow) => {
            stream.write_all(format!("agent: {} asked for {}\n", flow.source.name, flow.original_dst).as_bytes())?;
        }
        None => stream.write_all(b"agent: never captured\n")?,
    }
    // Until the client closes, for the reason that the application has.
    let _ended = io::copy(&mut stream, &mut io::sink());
    Ok(())
}

fn pass_on(sockets: &CaptureSockets, pod: &LocalPod, stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    let to = stream.local_addr()?;
    let (upstream, lease) = connect(sockets, &Dial::Inbound { pod, client, to }).map_err(io::Error::other)?;
    let (mut from_client, mut to_app) = (stream.try_clone()?, upstream.try_clone()?);
    let forward = thread::spawn(move || {
        let _ended = io::copy(&mut from_client, &mut to_app);
        let _ended = to_app.shutdown(std::net::Shutdown::Write);
    });
    let (mut from_app, mut to_client) = (upstream, stream);
    let _ended = io::copy(&mut from_app, &mut to_client);
    let _ended = to_client.shutdown(std::net::Shutdown::Write);
    let _panicked = forward.join();
    drop((from_app, lease));
    Ok(())
}

/// Dials as the proxy would.
pub(crate) fn connect(
    sockets: &CaptureSockets,
    dial: &Dial<'_>,
) -> Result<(TcpStream, weft_proxy::socket::Lease), SocketError> {
    let to = match *dial {
        Dial::Outbound { to, .. } | Dial::Inbound { to, .. } => to,
    };
    let kernel = |action| move |source| SocketError::Kernel { action, source };
    let made = sockets.socket(dial)?;
    match made.socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(source) => return Err(SocketError::Kernel { action: "connect", source }),
    }
    sockets.started(&made, dial)?;
    let DialSocket { socket, lease } = made;
    let wait = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
    let mut ready = [PollFd::new(&socket, PollFlags::OUT)];
    poll(&mut ready, Some(&wait)).map_err(|error| kernel("poll")(error.into()))?;
    if let Some(source) = socket.take_error().map_err(kernel("read the socket's error"))? {
        return Err(SocketError::Kernel { action: "connect", source });
    }
    socket.set_nonblocking(false).map_err(kernel("make the socket blocking"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).map_err(kernel("set a timeout"))?;
    Ok((stream, lease))
}
