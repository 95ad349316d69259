//! TCP servers, each with one habit that a proxy must keep.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::control::{Counters, peer_ip};

/// How a TCP port behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Writes back what it reads; half-closes after the client did.
    Echo,
    /// Speaks first: one line with its name and the peer's address, then closes.
    Greet,
    /// Waits for a first byte, then answers one line with its name and the peer's address, then goes on as `Echo`.
    Ask,
    /// Reads to the end, then answers one line with the number of bytes.
    Sum,
    /// Half-closes at once, then reads to the end and counts nothing.
    HalfClose,
    /// Resets after the first byte.
    Reset,
    /// Reads nothing, so that back-pressure shows.
    Stall,
}

impl FromStr for Habit {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "echo" => Self::Echo,
            "greet" => Self::Greet,
            "ask" => Self::Ask,
            "sum" => Self::Sum,
            "half-close" => Self::HalfClose,
            "reset" => Self::Reset,
            "stall" => Self::Stall,
            _ => bail!("{text:?} is no habit (echo, greet, ask, sum, half-close, reset, stall)"),
        })
    }
}

/// A port and its habit, as in `echo:9000`.
#[derive(Clone, Copy, Debug)]
pub struct TcpPort {
    /// The habit.
    pub habit: Habit,
    /// The port.
    pub port: u16,
}

impl FromStr for TcpPort {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (habit, port) = text.split_once(':').context("expected HABIT:PORT, as in echo:9000")?;
        Ok(Self { habit: habit.parse()?, port: port.parse().context("not a port")? })
    }
}

/// How long a stalled connection is kept.
const STALL: Duration = Duration::from_secs(600);

/// Serves one port.
///
/// # Errors
/// When accepting fails.
pub async fn serve(listener: TcpListener, habit: Habit, counters: Counters) -> Result<()> {
    let port = listener.local_addr()?.port();
    loop {
        let (stream, peer) = listener.accept().await?;
        counters.connection(port, peer);
        let counters = counters.clone();
        tokio::spawn(async move {
            // What goes wrong on a connection is for the client to see.
            converse(stream, peer, habit, &counters).await.ok();
        });
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, habit: Habit, counters: &Counters) -> Result<()> {
    stream.set_nodelay(true)?;
    let line = format!("{} {} {}\n", counters.name, peer_ip(peer), stream.local_addr()?.ip().to_canonical());
    match habit {
        Habit::Echo => {
            look(&stream, counters).await?;
            echo(&mut stream).await?;
        }
        Habit::Greet => {
            stream.write_all(line.as_bytes()).await?;
            stream.shutdown().await?;
            look(&stream, counters).await?;
            drain(&mut stream).await?;
        }
        Habit::Ask => {
            let mut first = [0];
            stream.read_exact(&mut first).await?;
            stream.write_all(line.as_bytes()).await?;
            echo(&mut stream).await?;
        }
        Habit::Sum => {
            look(&stream, counters).await?;
            let total = drain(&mut stream).await?;
            stream.write_all(format!("{total}\n").as_bytes()).await?;
            stream.shutdown().await?;
        }
        Habit::HalfClose => {
            stream.shutdown().await?;
            drain(&mut stream).await?;
        }
        Habit::Reset => {
            let mut first = [0];
            stream.read_exact(&mut first).await?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        Habit::Stall => tokio::time::sleep(STALL).await,
    }
    Ok(())
}

/// Waits for the first bytes, and notes if they are those of a TLS handshake.
async fn look(stream: &TcpStream, counters: &Counters) -> Result<()> {
    /// Type of a record that is part of a handshake; no word of a test begins with this byte.
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    if stream.peek(&mut first).await? > 0 && first[0] == HANDSHAKE {
        counters.client_hello(stream.local_addr()?.port());
    }
    Ok(())
}

async fn echo(stream: &mut TcpStream) -> Result<()> {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await?;
    Ok(())
}

async fn drain(stream: &mut TcpStream) -> Result<u64> {
    Ok(tokio::io::copy(stream, &mut tokio::io::sink()).await?)
}
