//! The program of the `sk_lookup` hook that stays for a while where a pod was captured.
#![no_std]
#![no_main]
// Only for atomic addition, see `count`. The build needs RUSTC_BOOTSTRAP for `-Z build-std` anyway.
#![feature(core_intrinsics)]
#![allow(internal_features)]

#[path = "../addr.rs"]
#[allow(dead_code, reason = "shared with the other objects")]
mod addr;
#[path = "../count.rs"]
#[allow(dead_code, reason = "shared with the other objects")]
mod count;
#[path = "../maps.rs"]
mod maps;
#[path = "../released.rs"]
mod released;
#[path = "../runtime.rs"]
mod runtime;
#[path = "../tuple.rs"]
#[allow(dead_code, reason = "shared with the other objects")]
mod tuple;
