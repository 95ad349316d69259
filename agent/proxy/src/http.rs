//! HTTP/1.1 between a captured client and an endpoint. hyper parses and frames both sides; what is here decides what goes through.

pub(crate) mod body;
pub(crate) mod canonical;
pub(crate) mod client;
pub(crate) mod exchange;
pub(crate) mod hop;
pub(crate) mod scan;
pub(crate) mod server;
pub(crate) mod upgrade;
pub(crate) mod wire;
