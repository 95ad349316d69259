//! The load generator. Open loop: requests are due by a schedule, and a latency begins when a request is due, also when there is no
//! free connection to send it on; so a stall shows in every request that it delayed (Tene, "How NOT to Measure Latency"). Closed
//! loop, for the best rate: every connection asks again as soon as it is answered.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    accounting::CpuTime,
    clock, limits, message,
    poll::{self, Poll, Timer},
    responder,
    schedule::{Backlog, Schedule},
};

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At a mean rate (requests a second), by a Poisson process.
    Open(u32),
    /// As soon as the answer to the one before is there.
    Closed,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where connections go.
    pub target: SocketAddr,
    /// How many there are.
    pub connections: usize,
    /// When requests are sent.
    pub pace: Pace,
    /// Not measured.
    pub warm_up: Duration,
    /// Measured.
    pub window: Duration,
    /// Ends the measured window earlier, after so many requests.
    pub requests_max: u64,
    /// Cgroups whose CPU time in the window is reported, in this order.
    pub cgroups: Vec<PathBuf>,
    /// Of the schedule.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests that were answered in the window (closed), or were due in it and answered (open).
    pub requests: u64,
    /// Length of the window, microseconds.
    pub window_us: u64,
    /// Latencies, microseconds.
    pub p50_us: u64,
    /// As `p50_us`.
    pub p99_us: u64,
    /// As `p50_us`.
    pub max_us: u64,
    /// Answers that were no answer, and connections that broke.
    pub errors: u64,
    /// Requests that were due in the window and never answered; they are in the latencies with the time that was waited.
    pub unanswered: u64,
    /// Answers by the letter of the backend.
    pub backends: BTreeMap<char, u64>,
    /// CPU time of each cgroup in the window.
    pub cpu: Vec<CpuTime>,
}

const TIMER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
    /// When the request was due that is being answered; `None` without one.
    due_ns: Option<u64>,
    connected: bool,
}

struct Run<'a> {
    load: &'a Load,
    poll: Poll,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    backlog: Backlog,
    schedule: Option<Schedule>,
    window: std::ops::Range<u64>,
    latencies: Histogram<u64>,
    report: LoadReport,
    buffer: Vec<u8>,
}

impl Load {
    /// Makes the run.
    ///
    /// # Errors
    /// When the target refuses, or the kernel does.
    pub fn run(&self) -> Result<LoadReport> {
        let mut run = Run::new(self)?;
        run.connect()?;
        let start_ns = clock::now_ns();
        let begin_ns = start_ns + nanoseconds(self.warm_up);
        run.window = begin_ns..begin_ns + nanoseconds(self.window);
        run.schedule = match self.pace {
            Pace::Open(rate) => Some(Schedule::new(rate, start_ns, self.seed)),
            Pace::Closed => None,
        };
        run.drive(begin_ns)?;
        let before = self.cpu()?;
        let measured_from_ns = clock::now_ns();
        run.drive(run.window.end)?;
        let measured_to_ns = clock::now_ns();
        run.report.cpu = self.cpu()?.into_iter().zip(before).map(|(after, before)| after.since(before)).collect();
        run.report.window_us = (measured_to_ns - measured_from_ns) / 1_000;
        run.wait_for_stragglers()?;
        Ok(run.finish())
    }

    fn cpu(&self) -> Result<Vec<CpuTime>> {
        self.cgroups.iter().map(|cgroup| CpuTime::of(cgroup)).collect()
    }
}

impl<'a> Run<'a> {
    fn new(load: &'a Load) -> Result<Self> {
        Ok(Self {
            load,
            poll: Poll::new()?,
            connections: Vec::with_capacity(load.connections),
            idle: Vec::with_capacity(load.connections),
            backlog: Backlog::default(),
            schedule: None,
            window: 0..0,
            latencies: Histogram::new_with_bounds(1, limits::LATENCY_US_MAX, limits::LATENCY_DIGITS)
                .context("no such histogram")?,
            report: LoadReport::default(),
            buffer: vec![0; limits::READ_BYTES],
        })
    }

    /// Opens all connections, and waits for them.
    fn connect(&mut self) -> Result<()> {
        for token in 0..self.load.connections {
            let stream =
                poll::connect(self.load.target).with_context(|| format!("cannot connect to {}", self.load.target))?;
            self.poll.watch_changes(&stream, token as u64)?;
            self.connections.push(Connection { stream, answer: Vec::new(), due_ns: None, connected: false });
        }
        let until_ns = clock::now_ns() + nanoseconds(limits::STRAGGLER_TIMEOUT);
        let mut events = Vec::new();
        while self.connections.iter().any(|connection| !connection.connected) {
            self.poll.wait(&mut events, Some(&clock::timespec(10_000_000)))?;
            for event in &events {
                let connection = &mut self.connections[usize::try_from(event.data.u64())?];
                if let Some(error) = connection.stream.take_error()? {
                    return Err(error).with_context(|| format!("cannot connect to {}", self.load.target));
                }
                connection.connected = true;
            }
            if clock::now_ns() > until_ns {
                bail!("{} does not take all {} connections", self.load.target, self.load.connections);
            }
        }
        self.idle = (0..self.load.connections).collect();
        Ok(())
    }

    /// Sends and receives until a moment, or until there were enough requests.
    fn drive(&mut self, until_ns: u64) -> Result<()> {
        let mut timer = Timer::new()?;
        self.poll.watch_readable(&timer, TIMER)?;
        let mut events = Vec::new();
        loop {
            let now_ns = clock::now_ns();
            if now_ns >= until_ns || self.report.requests >= self.load.requests_max {
                return Ok(());
            }
            self.send_due(now_ns)?;
            let next_ns = self.schedule.as_ref().map_or(until_ns, |schedule| schedule.next_ns().min(until_ns));
            timer.set(next_ns)?;
            self.poll.wait(&mut events, None)?;
            for event in &events {
                if event.data.u64() != TIMER {
                    self.receive(usize::try_from(event.data.u64())?)?;
                }
            }
        }
    }

    /// Sends all that is due, as far as there are connections.
    fn send_due(&mut self, now_ns: u64) -> Result<()> {
        let Some(schedule) = &mut self.schedule else {
            while let Some(index) = self.idle.pop() {
                self.send(index, now_ns)?;
            }
            return Ok(());
        };
        while let Some(due_ns) = schedule.take(now_ns) {
            self.backlog.push(due_ns);
        }
        while let Some(index) = self.idle.pop() {
            let Some(due_ns) = self.backlog.pop() else {
                self.idle.push(index);
                break;
            };
            self.send(index, due_ns)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize, due_ns: u64) -> Result<()> {
        self.connections[index].due_ns = Some(due_ns);
        match responder::send(&mut self.connections[index].stream, message::REQUEST) {
            // A request is far smaller than any send buffer, and the one before has been answered.
            Ok(sent) if sent == message::REQUEST.len() => Ok(()),
            _ => self.replace(index),
        }
    }

    /// Takes what a connection has, up to the end of its answer.
    fn receive(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        match connection.stream.read(&mut self.buffer) {
            Ok(0) => return self.replace(index),
            Ok(length) => connection.answer.extend_from_slice(&self.buffer[..length]),
            // One registration tells of room to write, too.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return self.replace(index),
        }
        let Some(end) = message::head_end(&connection.answer) else {
            return if connection.answer.len() > limits::MESSAGE_BYTES_MAX { self.replace(index) } else { Ok(()) };
        };
        let Some(length) = message::content_length(&connection.answer[..end]) else { return self.replace(index) };
        if connection.answer.len() < end + length {
            return Ok(());
        }
        let whole = connection.answer.len() == end + length;
        let good = whole && message::status(&connection.answer) == Some(200) && length == limits::BODY_BYTES;
        let backend = connection.answer.get(end).copied().map_or('?', char::from);
        connection.answer.clear();
        let Some(due_ns) = connection.due_ns.take().filter(|_| good) else { return self.replace(index) };
        self.count(due_ns, backend);
        self.idle.push(index);
        // Before the next event: what waits has waited long enough.
        self.send_due(clock::now_ns())
    }

    fn count(&mut self, due_ns: u64, backend: char) {
        let now_ns = clock::now_ns();
        let measured = if self.schedule.is_some() { due_ns } else { now_ns };
        if self.window.contains(&measured) {
            self.report.requests += 1;
            *self.report.backends.entry(backend).or_default() += 1;
            self.record(now_ns.saturating_sub(due_ns));
        }
    }

    fn record(&mut self, latency_ns: u64) {
        self.latencies.saturating_record((latency_ns / 1_000).max(1));
    }

    /// A connection that broke: its request was in vain, and a new one takes its place.
    fn replace(&mut self, index: usize) -> Result<()> {
        self.report.errors += 1;
        // A target that breaks every connection is told after the first few; going on would only be a loop.
        if self.report.errors > 10 * self.load.connections as u64 {
            bail!("{} breaks connections or answers wrongly, again and again", self.load.target);
        }
        let stream =
            TcpStream::connect(self.load.target).with_context(|| format!("cannot connect to {}", self.load.target))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        self.poll.watch_changes(&stream, index as u64)?;
        self.connections[index] = Connection { stream, answer: Vec::new(), due_ns: None, connected: true };
        self.idle.push(index);
        Ok(())
    }

    /// After the window, waits for the answers to requests that were due in it.
    fn wait_for_stragglers(&mut self) -> Result<()> {
        if self.schedule.take().is_none() {
            return Ok(());
        }
        let until_ns = self.window.end + nanoseconds(limits::STRAGGLER_TIMEOUT);
        // `count` asks whether requests are due by a schedule; one that is never due again says so.
        self.schedule = Some(Schedule::new(1, u64::MAX / 2, 0));
        let mut events = Vec::new();
        loop {
            let now_ns = clock::now_ns();
            let waiting = self.waiting();
            if waiting.is_empty() || now_ns >= until_ns {
                for due_ns in waiting {
                    self.report.unanswered += 1;
                    self.record(now_ns - due_ns);
                }
                return Ok(());
            }
            self.send_due(now_ns)?;
            self.poll.wait(&mut events, Some(&clock::timespec(10_000_000)))?;
            for event in &events {
                if event.data.u64() != TIMER {
                    self.receive(usize::try_from(event.data.u64())?)?;
                }
            }
        }
    }

    fn waiting(&self) -> Vec<u64> {
        let in_flight = self.connections.iter().filter_map(|connection| connection.due_ns);
        let mut waiting: Vec<u64> = in_flight.filter(|due_ns| self.window.contains(due_ns)).collect();
        waiting.extend(self.backlog.due_before(self.window.end));
        waiting
    }

    fn finish(mut self) -> LoadReport {
        self.report.p50_us = self.latencies.value_at_quantile(0.50);
        self.report.p99_us = self.latencies.value_at_quantile(0.99);
        self.report.max_us = self.latencies.max();
        self.report
    }
}

/// Opens `connections` connections, asks once on each, and gives them back, open.
///
/// # Errors
/// When the target refuses, or an answer is not as it should be.
pub fn hold(target: SocketAddr, connections: usize) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(connections);
    let mut buffer = vec![0; limits::READ_BYTES];
    while held.len() < connections {
        let mut batch = Vec::new();
        for _ in 0..limits::CONNECTING_MAX.min(connections - held.len()) {
            let mut stream = TcpStream::connect(target)
                .with_context(|| format!("cannot open connection {} to {target}", held.len() + batch.len() + 1))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(limits::STRAGGLER_TIMEOUT))?;
            std::io::Write::write_all(&mut stream, message::REQUEST)?;
            batch.push(stream);
        }
        for stream in &mut batch {
            let mut answer = Vec::new();
            while message::head_end(&answer).is_none_or(|end| answer.len() < end + limits::BODY_BYTES) {
                match stream.read(&mut buffer)? {
                    0 => bail!("{target} closed a connection instead of answering"),
                    length => answer.extend_from_slice(&buffer[..length]),
                }
            }
            if message::status(&answer) != Some(200) {
                bail!("{target} answered {:?}", message::status(&answer));
            }
        }
        held.append(&mut batch);
    }
    Ok(held)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
