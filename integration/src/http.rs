//! A minimal HTTP client for the agent's own endpoints. Requests of tests are made by curl and by the test application, in pods.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result};

use crate::limits;

/// `GET path`, with a fresh connection; status and body.
///
/// # Errors
/// When there is no answer, or it is not HTTP.
pub fn fetch(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, limits::HTTP_TIMEOUT)?;
    stream.set_read_timeout(Some(limits::HTTP_TIMEOUT))?;
    // HTTP/1.0: the body ends with the connection and is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP response")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
