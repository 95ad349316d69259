//! The application inside a test pod.
fn main() {}
