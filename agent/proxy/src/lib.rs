//! weft's data path. Workers accept captured connections, look their plan up, choose a backend and an endpoint, and carry the
//! bytes. Everything it needs from the kernel comes through the two traits of [`socket`]; it knows neither Kubernetes nor BPF.

pub mod config;
pub mod drain;
pub mod flows;
pub mod limits;
pub mod proxy;
pub mod reply;
pub mod socket;

mod balance;
mod choose;
mod dial;
mod http;
mod inbound;
mod listener;
mod metrics;
mod outbound;
mod pool;
mod sniff;
mod tcp;
mod worker;
