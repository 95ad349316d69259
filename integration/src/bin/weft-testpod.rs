//! The application inside a test pod.
#![allow(clippy::print_stdout, reason = "standard output is how this program reports")]

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use weft_integration::testpod::{
    READY,
    conformance::{self, ConformanceArgs},
    control,
    control::Counters,
    flood::{self, FloodArgs},
    http_server,
    load::{self, LoadArgs},
    talk::{self, TalkArgs},
    tcp_server::{self, TcpPort},
    watch::{self, WatchArgs},
};

/// Connections that wait to be accepted; the kernel's own limit (net.core.somaxconn) is the same since Linux 5.4.
const BACKLOG: i32 = 4096;

/// A small server and client for tests.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve until killed.
    Serve {
        /// The name in every answer.
        #[arg(long)]
        name: String,
        /// Serve HTTP/1.1 here.
        #[arg(long, value_name = "PORT")]
        http: Vec<u16>,
        /// Serve TCP here: echo, greet, ask, sum, half-close, reset or stall.
        #[arg(long, value_name = "HABIT:PORT")]
        tcp: Vec<TcpPort>,
        /// Tell the counters on this Unix socket.
        #[arg(long)]
        control: Option<PathBuf>,
    },
    /// Make connections and report what became of them, as JSON.
    Load(Box<LoadArgs>),
    /// Have a scripted conversation and report it, as JSON.
    Talk(TalkArgs),
    /// Abuse HTTP/2 in one way and report how it was answered, as JSON.
    Flood(FloodArgs),
    /// Serve as the application of the SMI conformance suite does, until killed.
    Conformance(ConformanceArgs),
    /// Ask again and again, and tell when another server answers.
    Watch(WatchArgs),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.verb {
            Verb::Serve { name, http, tcp, control } => serve(&name, &http, &tcp, control).await,
            Verb::Load(args) => {
                println!("{}", serde_json::to_string(&load::run(*args).await?)?);
                Ok(())
            }
            Verb::Talk(args) => {
                println!("{}", serde_json::to_string(&talk::run(args).await?)?);
                Ok(())
            }
            Verb::Flood(args) => {
                println!("{}", serde_json::to_string(&flood::run(args).await?)?);
                Ok(())
            }
            Verb::Conformance(args) => {
                let listener = listen(args.port)?;
                println!("{READY}");
                conformance::serve(listener, args).await
            }
            Verb::Watch(args) => watch::run(args).await,
        }
    })
}

async fn serve(name: &str, http: &[u16], tcp: &[TcpPort], control: Option<PathBuf>) -> Result<()> {
    let counters = Counters::new(name);
    let mut tasks = tokio::task::JoinSet::new();
    for port in http {
        tasks.spawn(http_server::serve(listen(*port)?, counters.clone()));
    }
    for TcpPort { habit, port } in tcp {
        tasks.spawn(tcp_server::serve(listen(*port)?, *habit, counters.clone()));
    }
    if let Some(path) = control {
        tasks.spawn(control::serve(path, counters));
    }
    println!("{READY}");
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Both families on one socket, as most servers do.
fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from(([0u16; 8], port));
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot bind port {port}"))?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into())?)
}
