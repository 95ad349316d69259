//! The node-local CLI.
fn main() {}
