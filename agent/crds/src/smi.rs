//! The kinds of the Service Mesh Interface, in every version that was published.
//!
//! Unlike Kubernetes' own kinds they are read strictly: a field that is not understood is an error, because a misspelt match or
//! weight would quietly send requests elsewhere, and a misspelt rule let them in.

pub mod http_route_group;
pub mod identity_binding;
pub mod quantity;
pub mod tcp_route;
pub mod traffic_split;
pub mod traffic_target;
pub mod udp_route;

mod l4_route;
mod shape;
