//! The CLI's side of the admin socket.

use std::{io, path::Path};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::limits;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers on {socket} (is weft-agent running, with this --run-dir?)")]
    Connect {
        /// The socket's path.
        socket: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent does not answer in time.
    #[error("the agent does not answer within {} s", limits::ADMIN_CLIENT_TIMEOUT.as_secs())]
    Timeout,
    /// The conversation broke.
    #[error("the agent's answer broke off")]
    Http(#[source] hyper::Error),
    /// The agent refused.
    #[error("{message}")]
    Refused {
        /// Status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// The answer is not what this CLI expects.
    #[error("the agent's answer cannot be understood (CLI and agent of different versions?)")]
    Answer(#[source] serde_json::Error),
}

/// Asks the agent whose admin socket is in `run_dir`.
///
/// # Errors
/// When there is no agent, or it does not answer or refuses.
pub async fn ask<T: DeserializeOwned>(
    run_dir: &Path,
    method: Method,
    path: &str,
    body: &str,
) -> Result<T, ClientError> {
    tokio::time::timeout(limits::ADMIN_CLIENT_TIMEOUT, ask_unbounded(run_dir, method, path, body))
        .await
        .map_err(|_| ClientError::Timeout)?
}

async fn ask_unbounded<T: DeserializeOwned>(
    run_dir: &Path,
    method: Method,
    path: &str,
    body: &str,
) -> Result<T, ClientError> {
    let socket = run_dir.join(super::server::ADMIN_SOCKET);
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(|source| ClientError::Connect { socket: socket.display().to_string(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Http)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("weft"));
    let response = sender.send_request(request).await.map_err(ClientError::Http)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(ClientError::Http)?.to_bytes();
    connection.abort();
    if !status.is_success() {
        return Err(ClientError::Refused { status, message: String::from_utf8_lossy(&body).trim().to_owned() });
    }
    serde_json::from_slice(&body).map_err(ClientError::Answer)
}
