//! The kinds of the Service Mesh Interface, in every version that was published.
//!
//! Unlike Kubernetes' own kinds they are read strictly: a field that is not understood is an error, because a misspelt match or
//! weight would quietly send requests elsewhere.

pub mod http_route_group;
pub mod quantity;
pub mod traffic_split;
