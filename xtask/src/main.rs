//! weft's own chores.
fn main() {}
