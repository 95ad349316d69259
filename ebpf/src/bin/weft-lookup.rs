//! The program of the `sk_lookup` hook, loaded once for each pod's network namespace.
#![no_std]
#![no_main]
// Only for atomic addition, see `count`. The build needs RUSTC_BOOTSTRAP for `-Z build-std` anyway.
#![feature(core_intrinsics)]
#![allow(internal_features)]

#[path = "../addr.rs"]
mod addr;
#[path = "../agent.rs"]
mod agent;
#[path = "../count.rs"]
mod count;
#[path = "../lookup.rs"]
mod lookup;
#[path = "../maps.rs"]
mod maps;
#[path = "../runtime.rs"]
mod runtime;
#[path = "../tuple.rs"]
mod tuple;
#[path = "../udp_access.rs"]
mod udp_access;
