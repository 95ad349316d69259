//! Named maxima of the policy model. What exceeds one is refused with a diagnostic that names it.

/// Longest regular expression that is accepted, in bytes of pattern (RE2-style engines are linear; the automaton is not small).
pub const REGEX_PATTERN_BYTES_MAX: usize = 1024;
/// Largest automaton (Thompson NFA) that one pattern may compile to, in bytes.
pub const REGEX_AUTOMATON_BYTES_MAX: usize = 1 << 20;
/// Largest sum of the automata of one route table, in bytes; matches whose patterns come after it is used up match nothing.
pub const TABLE_AUTOMATA_BYTES_MAX: usize = 16 << 20;
/// Largest dense automaton for all the anchored paths of one route table, in bytes; above it patterns are tried one by one.
pub const PATH_DFA_BYTES_MAX: usize = 1 << 20;
/// Most different path patterns in that automaton; the set of those that hold lives on the stack, one bit each.
pub const PATH_DFA_PATTERNS_MAX: usize = 1024;
/// Largest dense automaton for one pattern by itself, in bytes; above it the pattern keeps a lazily built one.
pub const PATTERN_DFA_BYTES_MAX: usize = 64 << 10;
/// Largest sum of the dense automata that are tried for single patterns of one route table, in bytes. It bounds the time to
/// compile a table: building takes about 70 ms a MiB, whether it succeeds or gives up.
pub const TABLE_DFA_BYTES_MAX: usize = 1 << 20;
/// Largest lazily built automaton of one pattern and cache, in bytes; it starts over when full.
pub const LAZY_DFA_BYTES_MAX: usize = 256 << 10;
/// Caches of one lazily built automaton: more than there are proxy workers by default (4), so that none waits or allocates.
pub const LAZY_DFA_CACHES: usize = 8;
/// Most backends of one split.
pub const SPLIT_BACKENDS_MAX: usize = 128;
/// Most splits with matches on one root Service.
pub const ROUTES_PER_SERVICE_MAX: usize = 256;
/// Most matches of all the routes of Gateway API at one port of a Service for the same clients; those that come last by precedence hold for
/// no request. It bounds the time to compile a table.
pub const GATEWAY_MATCHES_PER_TABLE_MAX: usize = 1024;
/// Most matches of one route.
pub const MATCHES_PER_ROUTE_MAX: usize = 256;
/// Most headers of one match: each is looked for in every request that gets so far.
pub const HEADERS_PER_MATCH_MAX: usize = 64;
/// Most sources of one TrafficTarget, and most SPIFFE identities of one IdentityBinding.
pub const ACCESS_SOURCES_MAX: usize = 4096;
/// Most rules of one TrafficTarget.
pub const ACCESS_RULES_MAX: usize = 256;
/// Most ports of one TCPRoute or UDPRoute.
pub const ACCESS_PORTS_MAX: usize = 1024;
/// Most label selectors of one IdentityBinding.
pub const ACCESS_SELECTORS_MAX: usize = 64;
/// Most TrafficTargets that grant something at one destination; those after it, by age and name, select and grant nothing.
pub const GRANTS_PER_DESTINATION_MAX: usize = 1024;
/// Most bytes of automata, those that are given up included, that are built for the HTTP rules of all TrafficTargets of one destination;
/// rules of those after it grant nothing. It bounds the time to compile a destination, as it takes about 70 ms a MiB, to some two seconds.
pub const DESTINATION_AUTOMATA_BYTES_MAX: usize = 32 << 20;
/// Choices of one split that may have been given back by one worker and not been made again: as many connections at once as would
/// show in the shares.
pub const RETURNED_CHOICES_MAX: usize = 64;
/// Largest weight of one backend, after scaling; keeps sums inside 64 bits with room for smooth selection.
pub const WEIGHT_MAX: u64 = 1 << 40;
