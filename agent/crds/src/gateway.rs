//! The kinds of Gateway API (gateway.networking.k8s.io) that say something about a mesh: routes whose parents are Services
//! (GEP-1426), and grants of references between namespaces.
//!
//! They are read from our own documents, not with the types of the `gateway-api` crate: those refuse a whole route because of one filter
//! of a later version, and drop what they do not know without a word, where one rule has to fail by itself and aloud.

pub mod duration;
pub mod reference_grant;
pub mod route;

pub(crate) mod filters;
mod grpc_route;
mod http_route;
mod matches;
mod refs;

/// Group of all of them.
pub const GROUP: &str = "gateway.networking.k8s.io";
