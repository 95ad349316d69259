//! Named maxima of what is read.

/// How deep Lists may hold Lists.
pub const LIST_DEPTH_MAX: usize = 4;
/// Longest name of an object, in bytes (RFC 1123 subdomain, as the API server has it).
pub const NAME_BYTES_MAX: usize = 253;
/// Longest name of a namespace, a Service or a port, in bytes (RFC 1123 label).
pub const LABEL_BYTES_MAX: usize = 63;
