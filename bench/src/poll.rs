//! A thin layer over epoll, for programs that must cost next to nothing themselves.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{clock, limits};

/// An epoll instance.
#[derive(Debug)]
pub struct Poll(OwnedFd);

/// Events that were waited for.
pub type Events = Vec<Event>;

impl Poll {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches for something to read, as long as there is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch_readable(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Watches for every change, once each: room to write, something to read, the other end's close. One registration serves a
    /// connection for all its life.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch_changes(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.0, source, EventData::new_u64(token), flags)?)
    }

    /// Waits for events, for at most `timeout`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, events: &mut Events, timeout: Option<&Timespec>) -> io::Result<()> {
        events.clear();
        events.reserve(limits::EVENTS_MAX);
        match epoll::wait(&self.0, spare_capacity(events), timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A timer that wakes epoll. Its resolution is the clock's; epoll's own timeout has milliseconds.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    armed_ns: u64,
}

impl Timer {
    /// Makes one that is not set.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { fd, armed_ns: 0 })
    }

    /// Lets it go off at a moment. Setting it anew also takes back that it has gone off.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, at_ns: u64) -> io::Result<()> {
        if self.armed_ns == at_ns {
            return Ok(());
        }
        let at = Itimerspec { it_interval: Timespec::default(), it_value: clock::timespec(at_ns) };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &at)?;
        self.armed_ns = at_ns;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A listening socket that does not block.
///
/// # Errors
/// When the port is taken.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::BACKLOG)?;
    Ok(socket.into())
}

/// A connection that is being made; it is there when it becomes writable.
///
/// # Errors
/// When it is refused at once.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Accepts what waits; `None` when nothing does.
///
/// # Errors
/// When the kernel refuses.
pub fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(Some(stream))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
        Err(error) => Err(error),
    }
}
