//! Named maxima of the policy model. What exceeds one is refused with a diagnostic that names it.

/// Longest regular expression that is accepted, in bytes of pattern (RE2-style engines are linear; the automaton is not small).
pub const REGEX_PATTERN_BYTES_MAX: usize = 1024;
/// Largest automaton that one pattern may compile to, in bytes.
pub const REGEX_AUTOMATON_BYTES_MAX: usize = 1 << 20;
/// Largest dense automaton for all the anchored paths of one route table, in bytes; above it patterns are tried one by one.
pub const PATH_DFA_BYTES_MAX: usize = 1 << 20;
/// Most backends of one split.
pub const SPLIT_BACKENDS_MAX: usize = 128;
/// Most splits with matches on one root Service.
pub const ROUTES_PER_SERVICE_MAX: usize = 256;
/// Most matches of one route.
pub const MATCHES_PER_ROUTE_MAX: usize = 256;
/// Largest weight of one backend, after scaling; keeps sums inside 64 bits with room for smooth selection.
pub const WEIGHT_MAX: u64 = 1 << 40;
