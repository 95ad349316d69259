//! The data path against real servers on loopback addresses: captured connections are played by a [`mesh::Mesh`], which implements
//! both socket traits over plain sockets. Needs no privileges.

#![allow(clippy::unwrap_used, reason = "test support outside of test functions")]

mod access;
mod backend_policy;
mod bounds;
mod canonical;
mod conformance;
mod deadlines;
mod detection;
mod every_byte;
mod floods;
mod goaway;
mod grpc;
mod http2;
mod lifecycle;
mod mesh;
mod mirrors;
mod mutual;
mod mutual_refusals;
mod nodes;
mod opaque;
mod origin;
mod peers2;
mod raw;
mod requests;
mod retries;
mod routing;
mod rules;
mod streaming;
mod tls;
mod translation;
mod upgrades;
mod wire;
