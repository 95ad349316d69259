//! A Kubernetes node on one Linux machine, for tests and the demo: pods are network namespaces with a cgroup each, routed through a
//! namespace that stands for the node, with an nft table in kube-proxy's place. The real agent runs on it, fed from a
//! directory of manifests.
//!
//! Nothing here touches the machine's own network: the node is a namespace too, so sysctls, routes and nft tables are its own.
//! Nothing here knows how the agent works; it starts the binary and looks at what comes out.

pub mod agent;
pub mod cni;
pub mod command;
pub mod container;
pub mod effect;
pub mod http;
pub mod kube;
pub mod kube_proxy;
pub mod limits;
pub mod link;
pub mod manifests;
pub mod namespace;
pub mod node;
pub mod objects;
pub mod pod;
pub mod process;
pub mod programs;
pub mod shop;
pub mod slot;
pub mod status;
pub mod testpod;
pub mod wait;

pub use agent::{Agent, AgentOptions};
pub use kube::{ApiServer, Cluster};
pub use manifests::Manifests;
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use process::Process;
pub use shop::Shop;
