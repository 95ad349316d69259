//! A scripted conversation on one connection, byte by byte: for what curl does not do.

use std::{io::ErrorKind, net::SocketAddr, str::FromStr, time::Duration};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A write that makes no progress for so long is stuck.
const STUCK: Duration = Duration::from_millis(500);

/// One step of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this. `\\r`, `\\n` and `\\xNN` stand for bytes.
    Send(Vec<u8>),
    /// Write so many bytes of `x`.
    Fill(usize),
    /// Read until this has arrived (after what the step before has read).
    Until(Vec<u8>),
    /// Half-close.
    Shutdown,
    /// Read to the end.
    End,
    /// Write until nothing more is taken.
    Flood,
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once(':') {
            Some(("send", text)) => Self::Send(unescape(text)),
            Some(("fill", size)) => Self::Fill(size.parse()?),
            Some(("until", text)) => Self::Until(unescape(text)),
            None if text == "shutdown" => Self::Shutdown,
            None if text == "end" => Self::End,
            None if text == "flood" => Self::Flood,
            _ => bail!("{text:?} is no step: send:TEXT, fill:SIZE, until:TEXT, shutdown, end or flood"),
        })
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.as_bytes());
        let hex =
            after.strip_prefix('x').and_then(|hex| Some((u8::from_str_radix(hex.get(..2)?, 16).ok()?, &hex[2..])));
        let (byte, beyond) = match after.chars().next() {
            Some('r') => (b'\r', &after[1..]),
            Some('n') => (b'\n', &after[1..]),
            _ => hex.unwrap_or((b'\\', after)),
        };
        bytes.push(byte);
        rest = beyond;
    }
    bytes.extend(rest.as_bytes());
    bytes
}

/// A step that writes these bytes, whatever they are.
#[must_use]
pub fn send(bytes: &[u8]) -> String {
    let mut step = "send:".to_owned();
    for byte in bytes {
        match byte {
            b' '..=b'~' if *byte != b'\\' => step.push(char::from(*byte)),
            _ => step.push_str(&format!("\\x{byte:02x}")),
        }
    }
    step
}

/// What is to be done.
#[derive(Clone, Debug, clap::Args)]
pub struct TalkArgs {
    /// Where to connect to.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// The steps, in this order.
    #[arg(long = "step", required = true)]
    steps: Vec<Step>,
    /// How long one step may take, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcript {
    /// All that was read.
    pub received: String,
    /// How it ended: `refused`, `eof`, `reset`, `timeout`, or `open` after the last step.
    pub end: String,
    /// How many steps were done in full.
    pub steps_done: usize,
    /// Bytes that a flood could write.
    pub flooded: u64,
    /// When each step that was done in full had been done: milliseconds since the connection was made.
    pub done_ms: Vec<u64>,
}

/// Talks.
///
/// # Errors
/// When the connection fails in a way that a transcript has no word for.
pub async fn run(args: TalkArgs) -> Result<Transcript> {
    let mut transcript = Transcript::default();
    let limit = Duration::from_millis(args.timeout_ms);
    let mut stream = match timeout(limit, TcpStream::connect(args.to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            "refused".clone_into(&mut transcript.end);
            return Ok(transcript);
        }
        // Accepted, and reset before this client could look.
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => {
            "reset".clone_into(&mut transcript.end);
            return Ok(transcript);
        }
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => {
            "timeout".clone_into(&mut transcript.end);
            return Ok(transcript);
        }
    };
    stream.set_nodelay(true)?;
    let start = std::time::Instant::now();
    let mut received = Vec::new();
    let mut end = "open";
    let mut read_from = 0;
    for step in &args.steps {
        let done =
            timeout(limit, perform(&mut stream, step, &mut received, &mut read_from, &mut transcript.flooded)).await;
        match done {
            Ok(Ok(Progress::Done)) => {
                transcript.steps_done += 1;
                transcript.done_ms.push(u64::try_from(start.elapsed().as_millis())?);
            }
            Ok(Ok(Progress::Ended)) => {
                end = "eof";
                // An end that was waited for is a step done.
                if *step == Step::End {
                    transcript.steps_done += 1;
                    transcript.done_ms.push(u64::try_from(start.elapsed().as_millis())?);
                    continue;
                }
                break;
            }
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                end = "reset";
                break;
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                end = "timeout";
                break;
            }
        }
    }
    end.clone_into(&mut transcript.end);
    transcript.received = String::from_utf8_lossy(&received).into_owned();
    Ok(transcript)
}

enum Progress {
    Done,
    Ended,
}

async fn perform(
    stream: &mut TcpStream,
    step: &Step,
    received: &mut Vec<u8>,
    read_from: &mut usize,
    flooded: &mut u64,
) -> std::io::Result<Progress> {
    match step {
        Step::Send(bytes) => stream.write_all(bytes).await?,
        Step::Fill(size) => stream.write_all(&vec![b'x'; *size]).await?,
        Step::Shutdown => stream.shutdown().await?,
        Step::Until(text) => loop {
            let found = received[*read_from..].windows(text.len()).position(|window| window == text);
            if let Some(position) = found {
                *read_from += position + text.len();
                break;
            }
            if stream.read_buf(received).await? == 0 {
                return Ok(Progress::Ended);
            }
        },
        Step::End => while stream.read_buf(received).await? > 0 {},
        Step::Flood => {
            let chunk = vec![b'x'; 65_536];
            while let Ok(written) = timeout(STUCK, stream.write(&chunk)).await {
                *flooded += written? as u64;
            }
        }
    }
    Ok(if *step == Step::End { Progress::Ended } else { Progress::Done })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read() {
        assert_eq!("send:GET / HTTP/1.1\\r\\n".parse::<Step>().unwrap(), Step::Send(b"GET / HTTP/1.1\r\n".to_vec()));
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(send(&bytes).parse::<Step>().unwrap(), Step::Send(bytes));
        assert_eq!("send:a\\b\\x4".parse::<Step>().unwrap(), Step::Send(b"a\\b\\x4".to_vec()));
        assert_eq!("end".parse::<Step>().unwrap(), Step::End);
        assert!("sleep:1".parse::<Step>().is_err());
    }
}
