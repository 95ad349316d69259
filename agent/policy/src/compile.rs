//! From the model to plans.

use std::{net::IpAddr, sync::Arc};

use crate::{
    ir::{IrDelta, MeshIr},
    snapshot::Snapshot,
};

/// Keeps the model and the plans made from it; each change recompiles only what it touches.
#[derive(Debug, Default)]
pub struct Compiler {
    ir: MeshIr,
}

/// What a change led to.
#[derive(Debug)]
pub struct Compiled {
    /// All plans, old and new.
    pub snapshot: Arc<Snapshot>,
    /// Addresses whose treatment by capture changed: the new one, or `None` where nothing is known any more.
    pub reach: Vec<(CaptureAddr, Option<Reach>)>,
}

/// An address as capture sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaptureAddr {
    /// Address.
    pub ip: IpAddr,
    /// Port; `None` stands for every port.
    pub port: Option<u16>,
}

/// How capture treats an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Through the proxy.
    Proxy,
    /// Refused at once: nothing could take the connection.
    Refuse,
}

impl Compiler {
    /// The model as it stands.
    #[must_use]
    pub fn ir(&self) -> &MeshIr {
        &self.ir
    }

    /// Takes a change in and compiles what it touches. Never fails: what cannot work becomes a plan that says so.
    pub fn apply(&mut self, _delta: IrDelta) -> Compiled {
        Compiled { snapshot: Arc::default(), reach: Vec::new() }
    }
}
