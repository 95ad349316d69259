//! What becomes of a connection after `101 Switching Protocols`: bytes both ways, on the two sockets that carried the request.

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::{
    access::Passage,
    balance::InFlight,
    dial,
    flows::{Flow, FlowProtocol, bump},
    http::client::Shared,
    tcp::{self, End, Scratch, Side},
};

/// An upgrade that the endpoint agreed to.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) upstream: Rc<Shared>,
    pub(crate) in_flight: InFlight,
    /// What it is for, if the endpoint says which pod it is.
    pub(crate) passage: Option<Box<Passage>>,
}

/// Carries the upgraded connection until it ends.
pub(crate) async fn run(upgrade: Upgrade, downstream: TcpStream, early: Bytes, flow: &Flow, scratch: &Scratch) -> End {
    flow.protocol.set(FlowProtocol::Upgraded);
    flow.deadline.set(None);
    *flow.passage.borrow_mut() = upgrade.passage;
    let Some((stream, read, lease)) = upgrade.upstream.take_upgraded().await else {
        dial::reset(downstream);
        return End::Reset;
    };
    bump(&flow.bytes_received, read.len());
    let end = tcp::splice(Side::new(downstream, early), Side::new(stream, read), flow, scratch).await;
    drop((lease, upgrade.in_flight));
    end
}
