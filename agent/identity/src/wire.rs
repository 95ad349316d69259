//! The authority's protocol, as `proto/authority.proto` has it.

#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]

tonic::include_proto!("weft.authority.v1");
