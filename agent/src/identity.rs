//! The identities of this node's pods: one certificate for each service account in use, asked of an authority, renewed, and given to
//! the data path. Private keys are here, in rustls, and nowhere else.
//!
//! [`store`] is what the others see; [`book`] decides when what is asked for; [`manager`] asks; [`local`] and [`remote`] are the two
//! authorities: in this process, or a Deployment of the cluster.

pub mod authority;
pub mod book;
pub mod keep;
pub mod local;
pub mod manager;
pub mod metrics;
pub mod remote;
pub mod store;

pub use manager::Manager;
pub use store::Store;
