//! A minimal HTTP client for the agent's own endpoints. Requests of tests are made by curl and by the test application, in pods.

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::limits;

/// `GET path`, with a fresh connection; status and body.
///
/// # Errors
/// When there is no answer, or it is not HTTP.
pub fn fetch(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    send(address, "GET", path, None, limits::HTTP_TIMEOUT)
}

/// A request with a body (its type and text), with a fresh connection; status and body of the answer.
///
/// # Errors
/// When there is no answer in time, or it is not HTTP.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<(&str, &str)>,
    timeout: Duration,
) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    // HTTP/1.0: the body ends with the connection and is never chunked.
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n");
    if let Some((kind, text)) = body {
        write!(request, "Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
    } else {
        request += "\r\n";
    }
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP response")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
