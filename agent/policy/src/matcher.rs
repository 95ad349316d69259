//! Which rule a request meets.

use http::{HeaderMap, Method};

/// The parts of a request that rules look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path without the query.
    pub path: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
}

/// The rules of one Service port, compiled.
#[derive(Debug, Default)]
pub struct RouteMatcher {}

impl RouteMatcher {
    /// The first rule, in order of precedence, that the request meets. Takes no lock, allocates nothing.
    #[must_use]
    pub fn find(&self, _head: &RequestHead<'_>) -> Option<usize> {
        None
    }
}
