//! A connection to an endpoint that was made before it was known what its client speaks.

use std::rc::Rc;

use crate::{
    access::Admitted,
    balance::{EndpointLoad, InFlight},
    dial::Dialled,
    worker::Worker,
};

/// A choice that was made for a whole connection, and the connection that it led to. If the client turns out to speak HTTP, its
/// first request takes both where its route leads to the same split: the split has counted the choice already, and a second one
/// would skew the shares. Otherwise it is closed unused.
#[derive(Debug)]
pub(crate) struct Early {
    /// The split, by [`Split::id`](weft_policy::split::Split::id); 0 for a pod's own address.
    pub(crate) split: u64,
    /// The backend, by its place in the split.
    pub(crate) index: usize,
    /// The endpoint.
    pub(crate) load: Rc<EndpointLoad>,
    pub(crate) in_flight: InFlight,
    pub(crate) dialled: Dialled,
    /// The endpoint is a pod that is captured on this node; its inbound step was taken for this connection, and let this through.
    pub(crate) admitted: Option<Admitted>,
}

impl Early {
    /// Closes it, because the first request goes elsewhere, and gives the choice back.
    pub(crate) fn unused(self, worker: &Worker) {
        worker.balancer.borrow_mut().give_back(self.split, self.index);
    }
}
