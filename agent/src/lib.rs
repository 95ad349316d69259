//! weft's node agent: everything that touches the world. The data path is in weft-proxy, the model in weft-policy, the kinds in
//! weft-crds; here are the kernel, the sources of truth, and the wiring.

pub mod admin;
pub mod app;
pub mod ca;
pub mod capture;
pub mod cli;
pub mod cni;
pub mod config;
pub mod identity;
pub mod limits;
pub mod locate;
pub mod metrics;
pub mod older;
pub mod pods;
pub mod probe;
pub mod prove;
pub mod readiness;
pub mod reconcile;
pub mod removal;
pub mod report;
pub mod state;
pub mod status;
pub mod successor;
pub mod telemetry;
pub mod udp;
pub mod uninstall;
pub mod watch;
