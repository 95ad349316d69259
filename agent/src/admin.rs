//! The node-local window into the agent: a Unix socket for the CLI and an HTTP port for probes and scrapes. Read-only, but for
//! `drain` and the log level on the Unix socket.

pub mod api;
pub mod client;
pub mod http;
mod mtls;
pub mod server;
pub mod view;
