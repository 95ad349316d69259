//! The data path against real servers on loopback addresses: captured connections are played by a [`mesh::Mesh`], which implements
//! both socket traits over plain sockets. Needs no privileges.

#![allow(clippy::unwrap_used, reason = "test support outside of test functions")]

mod bounds;
mod detection;
mod lifecycle;
mod mesh;
mod opaque;
mod origin;
mod requests;
mod routing;
mod streaming;
mod upgrades;
mod wire;
