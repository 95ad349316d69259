//! A Kubernetes API server on a node of the harness, and a cluster around it.
//!
//! The server is real: storage, watches, server-side apply, custom resources. Scheduler, controllers and kubelet are small stand-ins
//! that act when they are told to.

pub mod authority;
mod bulk;
pub mod cluster;
pub mod controllers;
pub mod door;
pub mod faults;
mod members;
pub mod mesh;
pub mod mirror;
pub mod mixed;
pub mod reviews;
pub mod server;
pub mod shop;
pub mod tools;

pub use authority::{Authority, AuthorityOptions};
pub use cluster::{Cluster, ClusterPod};
pub use door::{Door, Way};
pub use faults::{Fault, Faults};
pub use mesh::{Mesh, MeshOptions};
pub use reviews::Token;
pub use server::{Answer, ApiServer, Request};
