//! HTTP/1.1 and HTTP/2 between a captured client and an endpoint, each side in its own version. hyper parses and frames both sides;
//! what is here decides what goes through.

pub(crate) mod body;
pub(crate) mod canonical;
pub(crate) mod client;
pub(crate) mod client2;
pub(crate) mod exchange;
pub(crate) mod frames;
pub(crate) mod grpc;
pub(crate) mod hop;
pub(crate) mod host;
pub(crate) mod link;
mod marks;
pub(crate) mod reserved;
pub(crate) mod rules;
pub(crate) mod scan;
pub(crate) mod server;
pub(crate) mod server2;
pub(crate) mod translate;
pub(crate) mod upgrade;
pub(crate) mod upstream;
pub(crate) mod wire;
pub(crate) mod wire2;
