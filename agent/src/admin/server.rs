//! The agent's side of the admin socket, and the metrics port.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::{TcpListener, UnixListener};

use super::{
    api::Done,
    http::{Reply, json, reply, serve, slots, text},
    view,
};
use crate::{limits, state::Shared, telemetry::LogLevel};

/// Name of the admin socket inside the run directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Why a socket or port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The run directory or a socket in it.
    #[error("cannot open the admin socket {path}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The metrics port.
    #[error("cannot listen on the metrics address {addr} (set another one with --metrics-addr, or \"none\")")]
    Port {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Binds a socket in the run directory for its owner alone, in place of one that an earlier agent left.
///
/// # Errors
/// When the directory cannot be written.
pub fn bind_socket(run_dir: &Path, name: &str) -> Result<UnixListener, AdminError> {
    let path = run_dir.join(name);
    let bind = || {
        // Under a name of its own first, so that the socket's mode is right before anyone can find it.
        let fresh = run_dir.join(format!(".{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, &path)?;
        Ok(listener)
    };
    bind().map_err(|source| AdminError::Socket { path: path.clone(), source })
}

/// Serves the admin socket until the task is dropped. `drain` is told when somebody asks for it.
pub async fn serve_admin(
    listener: UnixListener,
    shared: Arc<Shared>,
    log_level: LogLevel,
    drain: Arc<tokio::sync::Notify>,
) {
    let slots = slots();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (shared, log_level, drain) = (Arc::clone(&shared), log_level.clone(), Arc::clone(&drain));
        serve(stream, &slots, move |request| {
            admin(request, Arc::clone(&shared), log_level.clone(), Arc::clone(&drain))
        });
    }
}

async fn admin(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    log_level: LogLevel,
    drain: Arc<tokio::sync::Notify>,
) -> Reply {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => json(&view::status(&shared)),
        (&Method::GET, "/services") => json(&view::services(&shared, &shared.proxy.learnt().await)),
        (&Method::GET, "/routes") => json(&view::routes(&shared)),
        (&Method::GET, "/access") => json(&view::access(&shared)),
        (&Method::GET, "/identity") => json(&shared.identity.as_ref().map(|store| store.view()).unwrap_or_default()),
        (&Method::GET, "/flows") => json(&shared.proxy.flows(limits::FLOW_ROWS_MAX).await),
        (&Method::POST, "/explain") => explain(request, &shared).await,
        (&Method::POST, "/drain") => {
            drain.notify_one();
            json(&Done {
                message: "draining: new connections meet the fail mode, the agent ends when the open ones have".into(),
            })
        }
        (&Method::PUT, "/log-level") => {
            let body = Limited::new(request.into_body(), limits::ADMIN_BODY_BYTES_MAX).collect().await;
            let Ok(body) = body else { return text(StatusCode::PAYLOAD_TOO_LARGE, "the level is too long\n") };
            let body = body.to_bytes();
            let directives = String::from_utf8_lossy(&body);
            match log_level.set(directives.trim()) {
                Ok(()) => json(&Done { message: format!("log level is now {}", directives.trim()) }),
                Err(error) => text(StatusCode::BAD_REQUEST, format!("log level stays as it was: {error}\n")),
            }
        }
        (
            _,
            "/status" | "/services" | "/routes" | "/access" | "/identity" | "/flows" | "/explain" | "/drain"
            | "/log-level",
        ) => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Answers a question about the plans in force; 422 if it names what is not there.
async fn explain(request: Request<Incoming>, shared: &Shared) -> Reply {
    let body = Limited::new(request.into_body(), limits::ADMIN_QUESTION_BYTES_MAX).collect().await;
    let Ok(body) = body else { return text(StatusCode::PAYLOAD_TOO_LARGE, "the question is too long\n") };
    let question = match serde_json::from_slice(&body.to_bytes()) {
        Ok(question) => question,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("no question: {error}\n")),
    };
    match weft_policy::explain::explain(&shared.compiler(), &question) {
        Ok(answer) => json(&answer),
        Err(error) => text(StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")),
    }
}

/// Opens the metrics port.
///
/// # Errors
/// When it is in use or not this machine's.
pub async fn bind_metrics(addr: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(addr).await.map_err(|source| AdminError::Port { addr, source })
}

/// Serves `/metrics`, `/livez` and `/readyz` until the task is dropped.
pub async fn serve_metrics(listener: TcpListener, shared: Arc<Shared>, registry: Registry) {
    let slots = slots();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (shared, registry) = (Arc::clone(&shared), registry.clone());
        serve(stream, &slots, move |request| {
            let reply = metrics(&request, &shared, &registry);
            async move { reply }
        });
    }
}

/// Serves the metrics port while the agent waits for the API server: alive, and not ready. Never ends.
pub async fn serve_waiting(listener: Option<&TcpListener>, registry: &Registry) {
    let Some(listener) = listener else { return std::future::pending().await };
    let slots = slots();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let registry = registry.clone();
        serve(stream, &slots, move |request| {
            let reply = waiting(&request, &registry);
            async move { reply }
        });
    }
}

fn waiting(request: &Request<Incoming>, registry: &Registry) -> Reply {
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the API server has not listed every kind of object yet\n"),
        "/metrics" => exposition(registry),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn exposition(registry: &Registry) -> Reply {
    let mut body = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut body) {
        Ok(()) => reply(StatusCode::OK, prometheus::TEXT_FORMAT, body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn metrics(request: &Request<Incoming>, shared: &Shared, registry: &Registry) -> Reply {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    }
    match request.uri().path() {
        "/livez" => {
            let age = shared.proxy.heartbeat_age();
            if age.as_nanos() < u128::from(weft_abi::limits::HEARTBEAT_MAX_AGE_NS) {
                text(StatusCode::OK, "ok\n")
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("a worker has not moved for {} s\n", age.as_secs()))
            }
        }
        "/readyz" if shared.ready() => text(StatusCode::OK, "ok\n"),
        "/readyz" if shared.draining() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "manifests are not applied yet\n"),
        "/metrics" => exposition(registry),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}
