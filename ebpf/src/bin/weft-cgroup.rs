//! The programs of the cgroup hooks: they see what sockets do, in the namespace of the process that does it.
#![no_std]
#![no_main]
// Only for atomic addition, see `count`. The build needs RUSTC_BOOTSTRAP for `-Z build-std` anyway.
#![feature(core_intrinsics)]
#![allow(internal_features)]

#[path = "../addr.rs"]
mod addr;
#[path = "../agent.rs"]
mod agent;
#[path = "../cgroup_maps.rs"]
mod cgroup_maps;
#[path = "../connect.rs"]
mod connect;
#[path = "../count.rs"]
mod count;
#[path = "../flows.rs"]
mod flows;
#[path = "../getpeername.rs"]
mod getpeername;
#[path = "../maps.rs"]
mod maps;
#[path = "../redirect_port.rs"]
mod redirect_port;
#[path = "../runtime.rs"]
mod runtime;
#[path = "../sendmsg.rs"]
mod sendmsg;
#[path = "../sock_ops.rs"]
mod sock_ops;
#[path = "../udp.rs"]
mod udp;
#[path = "../udp_access.rs"]
mod udp_access;
