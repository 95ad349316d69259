//! A client that asks again and again on connections that it keeps, and tells when the answer changes.

use std::{io::Write, net::SocketAddr};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::monotonic_ns;

/// What is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct WatchArgs {
    /// Where to connect to.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// Host header of the requests.
    #[arg(long, default_value = "test")]
    host: String,
    /// How many connections; each is asked in turn.
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

/// What it says: a connection has another answer than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which connection.
    pub connection: usize,
    /// When the answer was complete, on [`monotonic_ns`].
    pub at_ns: u64,
    /// The first part of the answer's name, up to a dash: `v1` of `v1-2`; or `403`, where the mesh denies.
    pub version: String,
}

impl Change {
    /// Reads a line of output.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("change ")?.split(' ');
        Some(Self {
            connection: words.next()?.parse().ok()?,
            at_ns: words.next()?.parse().ok()?,
            version: words.next()?.to_owned(),
        })
    }
}

/// Asks until killed. Writes `change CONNECTION NANOSECONDS VERSION` whenever a connection's answer changes.
///
/// # Errors
/// When a connection or a request fails, or an answer is neither 200 nor 403.
pub async fn run(args: WatchArgs) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..args.connections {
        let stream = TcpStream::connect(args.to).await.with_context(|| format!("cannot connect to {}", args.to))?;
        stream.set_nodelay(true)?;
        connections.push((BufReader::new(stream), String::new()));
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", args.host);
    loop {
        for (number, (stream, last)) in connections.iter_mut().enumerate() {
            stream.get_mut().write_all(request.as_bytes()).await?;
            let answer = answer(stream).await?;
            let version = answer.trim().split('-').next().unwrap_or_default();
            if version != last {
                let mut stdout = std::io::stdout().lock();
                writeln!(stdout, "change {number} {} {version}", monotonic_ns())?;
                stdout.flush()?;
                version.clone_into(last);
            }
        }
    }
}

async fn answer(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut length = None;
    let mut status = String::new();
    stream.read_line(&mut status).await?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            bail!("the connection ended");
        }
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let mut body = vec![0; length.context("an answer without content-length")?];
    stream.read_exact(&mut body).await?;
    match status.split(' ').nth(1) {
        Some("200") => Ok(String::from_utf8_lossy(&body).into_owned()),
        Some(code @ "403") => Ok(code.to_owned()),
        _ => bail!("{}: {}", status.trim(), String::from_utf8_lossy(&body).trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_back() {
        let change = Change { connection: 3, at_ns: 17, version: "v2".to_owned() };
        assert_eq!(Change::parse("change 3 17 v2"), Some(change));
        assert_eq!(Change::parse("ready"), None);
    }
}
