//! weft's data path. Workers accept captured connections, look their plan up, choose a backend and an endpoint, and carry the
//! bytes. Everything it needs from the kernel comes through the two traits of [`socket`]; it knows neither Kubernetes nor BPF.

pub mod config;
pub mod drain;
pub mod flows;
pub mod learnt;
pub mod limits;
pub mod proxy;
pub mod reply;
pub mod socket;

mod access;
mod balance;
mod budget;
mod choose;
mod detect;
mod dial;
mod early;
mod hello;
mod http;
mod inbound;
mod listener;
mod metrics;
mod mutual;
mod outbound;
mod pool;
mod stream;
mod tcp;
mod transport;
mod worker;

pub use transport::Encryption;

/// What reads bytes of peers, as pure functions: for fuzzing only, no part of the interface.
#[doc(hidden)]
pub mod fuzzing {
    use http::Request;

    pub use crate::{
        detect::{Detected, classify},
        hello::{Hello, Progress, Reader},
    };
    use crate::{
        http::{canonical, hop},
        reply::Reason,
    };

    /// Makes a request what goes to an endpoint, as far as one request alone tells.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn canonical<B>(request: &mut Request<B>) -> Result<(), Reason> {
        let target = canonical::check(request, None).map_err(|reply| reply.reason)?;
        *request.uri_mut() = target.path;
        hop::request(request.headers_mut()).map(drop).map_err(|_| Reason::ConnectionInvalid)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use crate::{flows, http, inbound, outbound};

    fn size3<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn size4<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// What every connection and every request costs in memory beside hyper's buffers; an await too many shows here.
    #[test]
    fn futures_stay_small() {
        assert!(size3(http::exchange::exchange) <= 4096, "request: {} bytes", size3(http::exchange::exchange));
        assert!(size4(outbound::serve) <= 6144, "outbound connection: {} bytes", size4(outbound::serve));
        assert!(size4(inbound::serve) <= 2048, "inbound connection: {} bytes", size4(inbound::serve));
        assert!(size_of::<flows::Flow>() <= 512, "flow: {} bytes", size_of::<flows::Flow>());
    }
}
