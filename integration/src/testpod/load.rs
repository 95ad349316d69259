//! The client: makes connections and tells what became of each.

use std::{
    cell::{Cell, RefCell},
    io::{ErrorKind, Write},
    net::SocketAddr,
    rc::Rc,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Barrier,
};

use super::LoadReport;

/// What is said on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// One HTTP/1.1 request with `Connection: close`.
    Http,
    /// One HTTP/1.1 request on a connection that stays open afterwards.
    KeepHttp,
    /// One byte; the answer is a line (the server's habit `ask`).
    Ask,
    /// Nothing; the answer is a line (the server's habit `greet`).
    Listen,
    /// Nothing; connecting is all.
    Connect,
}

impl FromStr for Speech {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "http" => Self::Http,
            "keep-http" => Self::KeepHttp,
            "ask" => Self::Ask,
            "listen" => Self::Listen,
            "connect" => Self::Connect,
            _ => bail!("{text:?} is not http, keep-http, ask, listen or connect"),
        })
    }
}

/// A range of ports, as in `40000-40999`.
#[derive(Clone, Copy, Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl FromStr for PortRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, last) = text.split_once('-').context("expected FIRST-LAST")?;
        let (first, last) = (first.parse()?, last.parse()?);
        if first == 0 || first > last {
            bail!("an empty range");
        }
        Ok(Self { first, last })
    }
}

/// What is to be done.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Where to connect to, in turn.
    #[arg(long = "to", value_name = "ADDR:PORT", required = true)]
    pub targets: Vec<SocketAddr>,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    pub connections: u64,
    /// How many at one time.
    #[arg(long, default_value_t = 1)]
    pub concurrency: u64,
    /// What is said: http, keep-http, ask, listen or connect.
    #[arg(long, default_value = "http")]
    pub speech: Speech,
    /// Method of the request.
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// Path of the request.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// Host header of the request.
    #[arg(long, default_value = "test")]
    pub host: String,
    /// Another header of the request, as in `cookie: usertype=tester`.
    #[arg(long = "header")]
    pub headers: Vec<String>,
    /// How long one connection may take, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
    /// At most so many new connections a second.
    #[arg(long)]
    pub rate: Option<u32>,
    /// Keep every connection open until all have been answered; needs concurrency for all.
    #[arg(long)]
    pub hold: bool,
    /// End connections with a reset, so that their ports can be used again at once.
    #[arg(long)]
    pub linger_zero: bool,
    /// Bind source ports from this range, in turn.
    #[arg(long)]
    pub source_ports: Option<PortRange>,
    /// Set this mark (SO_MARK) on every socket.
    #[arg(long)]
    pub mark: Option<u32>,
    /// Write a line `done N` for every N connections that have ended.
    #[arg(long)]
    pub progress: Option<u64>,
}

enum Outcome {
    Served { server: String, status: Option<u16> },
    Refused,
    Reset,
    TimedOut,
    Failed(String),
}

struct Load {
    args: LoadArgs,
    next: Cell<u64>,
    done: Cell<u64>,
    report: RefCell<LoadReport>,
    served_us: RefCell<Vec<u64>>,
    barrier: Barrier,
    start: Instant,
}

/// Makes the connections.
///
/// # Errors
/// When the arguments do not fit together.
pub async fn run(args: LoadArgs) -> Result<LoadReport> {
    if args.hold && args.concurrency < args.connections {
        bail!("--hold needs a concurrency of all {} connections", args.connections);
    }
    let workers = args.concurrency.min(args.connections);
    let barrier = Barrier::new(usize::try_from(workers)?);
    let load = Rc::new(Load {
        args,
        next: Cell::new(0),
        done: Cell::new(0),
        report: RefCell::default(),
        served_us: RefCell::default(),
        barrier,
        start: Instant::now(),
    });
    let local = tokio::task::LocalSet::new();
    let tasks: Vec<_> = (0..workers).map(|_| local.spawn_local(worker(Rc::clone(&load)))).collect();
    local
        .run_until(async {
            for task in tasks {
                task.await?;
            }
            anyhow::Ok(())
        })
        .await?;
    let mut report = load.report.take();
    let mut served = load.served_us.take();
    served.sort_unstable();
    let percentile =
        |percent: usize| served.get((served.len() * percent / 100).min(served.len().saturating_sub(1))).copied();
    report.served_us_p50 = percentile(50).unwrap_or(0);
    report.served_us_p99 = percentile(99).unwrap_or(0);
    report.served_us_max = served.last().copied().unwrap_or(0);
    report.elapsed_ms = u64::try_from(load.start.elapsed().as_millis())?;
    Ok(report)
}

async fn worker(load: Rc<Load>) {
    loop {
        let number = load.next.get();
        if number >= load.args.connections {
            return;
        }
        load.next.set(number + 1);
        if let Some(rate) = load.args.rate {
            let due = load.start + Duration::from_secs(1) / rate * u32::try_from(number).unwrap_or(u32::MAX);
            tokio::time::sleep_until(due.into()).await;
        }
        let begin = Instant::now();
        let limit = Duration::from_millis(load.args.timeout_ms);
        let mut stream = None;
        let outcome = match tokio::time::timeout(limit, converse(&load.args, number, &mut stream)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => failure(&error, stream.is_some()),
            Err(_) => Outcome::TimedOut,
        };
        load.count(outcome, begin.elapsed());
        if load.args.hold {
            load.barrier.wait().await;
        }
        if let Some(stream) = stream.filter(|_| load.args.linger_zero) {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok();
        }
    }
}

impl Load {
    fn count(&self, outcome: Outcome, elapsed: Duration) {
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let mut report = self.report.borrow_mut();
        report.connections += 1;
        match outcome {
            Outcome::Served { server, status } => {
                report.served += 1;
                *report.servers.entry(server).or_default() += 1;
                if let Some(status) = status {
                    *report.statuses.entry(status).or_default() += 1;
                }
                self.served_us.borrow_mut().push(elapsed_us);
            }
            Outcome::Refused => {
                report.refused += 1;
                report.refused_us_max = report.refused_us_max.max(elapsed_us);
            }
            Outcome::Reset => {
                report.reset += 1;
                report.reset_us_max = report.reset_us_max.max(elapsed_us);
            }
            Outcome::TimedOut => report.timed_out += 1,
            Outcome::Failed(error) => *report.failed.entry(error).or_default() += 1,
        }
        self.done.set(self.done.get() + 1);
        if self.args.progress.is_some_and(|step| step > 0 && self.done.get().is_multiple_of(step)) {
            let mut stdout = std::io::stdout().lock();
            // Whoever started this may have stopped to listen.
            writeln!(stdout, "done {}", self.done.get()).and_then(|()| stdout.flush()).ok();
        }
    }
}

fn failure(error: &std::io::Error, connected: bool) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused if !connected => Outcome::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Outcome::Reset,
        _ => Outcome::Failed(error.raw_os_error().map_or_else(
            || format!("{:?}", error.kind()),
            |code| rustix::io::Errno::from_raw_os_error(code).to_string(),
        )),
    }
}

async fn converse(args: &LoadArgs, number: u64, stream: &mut Option<TcpStream>) -> std::io::Result<Outcome> {
    let targets = u64::try_from(args.targets.len()).unwrap_or(1);
    let target = args.targets[usize::try_from(number % targets).unwrap_or(0)];
    let connected = stream.insert(connect(args, number, target).await?);
    connected.set_nodelay(true)?;
    let answer = match args.speech {
        Speech::Connect => return Ok(Outcome::Served { server: String::new(), status: None }),
        Speech::Http => {
            connected.write_all(request(args, "close").as_bytes()).await?;
            let mut answer = Vec::new();
            connected.read_to_end(&mut answer).await?;
            return http_outcome(&answer);
        }
        Speech::KeepHttp => {
            connected.write_all(request(args, "keep-alive").as_bytes()).await?;
            let mut answer = Vec::new();
            loop {
                if connected.read_buf(&mut answer).await? == 0 {
                    return http_outcome(&answer);
                }
                // Incomplete so far, unless it says otherwise.
                if let Ok(outcome) = http_outcome(&answer) {
                    return Ok(outcome);
                }
            }
        }
        Speech::Ask => {
            connected.write_all(b"?").await?;
            line(connected).await?
        }
        Speech::Listen => line(connected).await?,
    };
    Ok(Outcome::Served { server: answer.split(' ').next().unwrap_or_default().to_owned(), status: None })
}

async fn connect(args: &LoadArgs, number: u64, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = args.mark {
        socket.set_mark(mark)?;
    }
    if let Some(PortRange { first, last }) = args.source_ports {
        let port = first + u16::try_from(number % (u64::from(last - first) + 1)).unwrap_or(0);
        let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0u16; 8], port).into() };
        socket.set_reuse_address(true)?;
        socket.bind(&any.into())?;
    }
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(target).await
}

fn request(args: &LoadArgs, connection: &str) -> String {
    let headers: String = args.headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!(
        "{} {} HTTP/1.1\r\nHost: {}\r\n{headers}Connection: {connection}\r\n\r\n",
        args.method, args.path, args.host
    )
}

/// A complete response: the server's name is the first word of the body (or the name in `/who`'s JSON).
fn http_outcome(answer: &[u8]) -> std::io::Result<Outcome> {
    let text = String::from_utf8_lossy(answer);
    let broken = || std::io::Error::from(ErrorKind::UnexpectedEof);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    if length.is_some_and(|length| body.len() < length) {
        return Err(broken());
    }
    let server = match serde_json::from_str::<serde_json::Value>(body) {
        Ok(serde_json::Value::Object(who)) => {
            who.get("name").and_then(|name| name.as_str()).unwrap_or_default().to_owned()
        }
        _ => body.split_whitespace().next().unwrap_or_default().to_owned(),
    };
    Ok(Outcome::Served { server, status: Some(status) })
}

async fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            byte => line.push(byte),
        }
    }
}
