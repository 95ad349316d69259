//! One regular expression of a route: what is accepted, and how it is searched without allocating.
//!
//! Patterns work on bytes, never on characters: request paths and header values need not be UTF-8. As in RE2's Latin-1 mode
//! `\d`, `\w`, `\s` and `\b` are ASCII, and `\p{..}` is refused. Every engine is linear in the length of its input.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use regex_automata::{
    Anchored, Input, MatchKind,
    dfa::{Automaton, StartKind, dense},
    meta,
    nfa::thompson::{self, NFA},
    util::syntax,
};
use regex_syntax::hir::{Hir, Look};

use crate::limits;

/// Where a pattern may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Anchor {
    /// At the start of the text, with any rest: paths.
    Start,
    /// Anywhere: header values.
    Anywhere,
}

impl Anchor {
    pub(crate) fn mode(self) -> Anchored {
        match self {
            Self::Start => Anchored::Yes,
            Self::Anywhere => Anchored::No,
        }
    }
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Expression {
    pub(crate) text: Arc<str>,
    pub(crate) extent: Extent,
}

/// How much of a text an expression stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Extent {
    /// A regex, which may leave a rest.
    Open,
    /// A regex, for the whole text.
    Whole,
    /// No regex: the text itself.
    Literal,
    /// No regex: the text itself, or with a slash and a rest behind it.
    Under,
}

impl Expression {
    /// Whether it is accepted by itself.
    pub(crate) fn check(&self) -> Result<(), PatternError> {
        nfa(&[self], limits::REGEX_AUTOMATON_BYTES_MAX).map(drop)
    }

    fn hir(&self) -> Result<Hir, PatternError> {
        if self.text.len() > limits::REGEX_PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong { bytes: self.text.len(), max: limits::REGEX_PATTERN_BYTES_MAX });
        }
        let parsed = || {
            syntax::parse_with(&self.text, &syntax())
                .map_err(|error| PatternError::Syntax(last_line(&error.to_string())))
        };
        let literal = || Hir::literal(self.text.as_bytes());
        let (start, end) = (Hir::look(Look::Start), Hir::look(Look::End));
        Ok(match self.extent {
            Extent::Open => parsed()?,
            Extent::Whole => Hir::concat(vec![start, parsed()?, end]),
            Extent::Literal => Hir::concat(vec![start, literal(), end]),
            Extent::Under => {
                let rest = Hir::alternation(vec![Hir::literal(*b"/"), end]);
                Hir::concat(vec![start, literal(), rest])
            }
        })
    }
}

/// Why a pattern is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Its text is too long.
    #[error("the regex has {bytes} bytes, over the limit of {max}")]
    TooLong {
        /// Bytes of pattern.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// It compiles to too much.
    #[error("the regex compiles to more than {max} bytes")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// It is no regular expression.
    #[error("the regex does not compile: {0}")]
    Syntax(String),
}

/// Whether a pattern is accepted: the same rule at admission and at compilation.
///
/// # Errors
/// When it does not compile or is over a limit.
pub fn check(pattern: &str) -> Result<(), PatternError> {
    Checks::default().check(pattern)
}

/// Whether the patterns of one object are accepted, in bounded time.
#[derive(Debug)]
pub struct Checks {
    known: HashMap<String, Result<(), PatternError>>,
    bytes_left: usize,
}

impl Default for Checks {
    fn default() -> Self {
        Self { known: HashMap::new(), bytes_left: limits::TABLE_AUTOMATA_BYTES_MAX }
    }
}

impl Checks {
    /// Whether a further pattern is accepted. A pattern that is given again costs nothing; one that comes after as much as a table may
    /// have is not looked at, because its match holds for nothing, as compilation tells.
    ///
    /// # Errors
    /// When it does not compile or is over a limit.
    pub fn check(&mut self, pattern: &str) -> Result<(), PatternError> {
        if let Some(known) = self.known.get(pattern) {
            return known.clone();
        }
        if self.bytes_left == 0 {
            return Ok(());
        }
        let expression = Expression { text: pattern.into(), extent: Extent::Open };
        let nfa = nfa(&[&expression], limits::REGEX_AUTOMATON_BYTES_MAX);
        self.bytes_left = self.bytes_left.saturating_sub(built_bytes(&nfa));
        let accepted = nfa.map(drop);
        self.known.insert(pattern.to_owned(), accepted.clone());
        accepted
    }
}

/// What building an automaton took, in its bytes.
pub(crate) fn built_bytes(nfa: &Result<NFA, PatternError>) -> usize {
    match nfa {
        Ok(nfa) => nfa.memory_usage(),
        Err(PatternError::TooLarge { max }) => *max,
        // The parser has read it, and no automaton was begun.
        Err(PatternError::TooLong { .. } | PatternError::Syntax(_)) => 0,
    }
}

pub(crate) fn syntax() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

/// The Thompson NFA of expressions that are searched together.
pub(crate) fn nfa(expressions: &[&Expression], bytes_max: usize) -> Result<NFA, PatternError> {
    let patterns = expressions.iter().map(|expression| expression.hir()).collect::<Result<Vec<_>, _>>()?;
    let config = thompson::Config::new()
        .utf8(false)
        .nfa_size_limit(Some(bytes_max))
        .which_captures(thompson::WhichCaptures::None);
    thompson::Compiler::new().configure(config).build_many_from_hir(&patterns).map_err(|error| {
        if error.size_limit().is_some() {
            PatternError::TooLarge { max: bytes_max }
        } else {
            PatternError::Syntax(last_line(&error.to_string()))
        }
    })
}

/// What is wrong: the parser draws its messages over several lines.
fn last_line(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// A dense automaton for an NFA, if it is no larger than `bytes_max`.
pub(crate) fn dense(nfa: &NFA, kind: StartKind, bytes_max: usize) -> Option<dense::DFA<Vec<u32>>> {
    let config = dense::Config::new()
        .match_kind(MatchKind::All)
        .start_kind(kind)
        .accelerate(false)
        .dfa_size_limit(Some(bytes_max))
        // Building needs more than the result; four times as much ends a blow-up early.
        .determinize_size_limit(Some(bytes_max.saturating_mul(4)));
    dense::Builder::new().configure(config).build_from_nfa(nfa).ok().filter(|dfa| dfa.memory_usage() <= bytes_max)
}

/// One compiled pattern.
pub(crate) struct Pattern {
    anchor: Anchor,
    engine: Engine,
}

enum Engine {
    Dense(Box<dense::DFA<Vec<u32>>>),
    Lazy(Lazy),
}

/// A regex that builds its automaton as it goes, with caches of its own: the pool inside [`meta::Regex`] allocates when threads
/// meet in it. A cache is only ever tried, never waited for.
struct Lazy {
    regex: meta::Regex,
    caches: Box<[Mutex<meta::Cache>]>,
}

/// What is left of a table's budgets.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) automata_bytes: usize,
    pub(crate) dense_bytes: usize,
    /// Bytes of automata that were built, or built and given up: what building took, in a unit that is the same on every machine.
    pub(crate) built_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        let (automata_bytes, dense_bytes) = (limits::TABLE_AUTOMATA_BYTES_MAX, limits::TABLE_DFA_BYTES_MAX);
        Self { automata_bytes, dense_bytes, built_bytes: 0 }
    }
}

impl Pattern {
    /// Compiles a pattern within its table's budget.
    pub(crate) fn new(expression: &Expression, anchor: Anchor, budget: &mut Budget) -> Result<Self, PatternError> {
        if budget.automata_bytes == 0 {
            return Err(PatternError::TooLarge { max: limits::TABLE_AUTOMATA_BYTES_MAX });
        }
        let nfa = nfa(&[expression], limits::REGEX_AUTOMATON_BYTES_MAX);
        let bytes = built_bytes(&nfa);
        budget.built_bytes += bytes;
        // One that grew too large has cost as much as one that just fits.
        let left = budget.automata_bytes.checked_sub(bytes);
        budget.automata_bytes = left.unwrap_or_default();
        let nfa = nfa?;
        left.ok_or(PatternError::TooLarge { max: limits::TABLE_AUTOMATA_BYTES_MAX })?;
        let kind = match anchor {
            Anchor::Start => StartKind::Anchored,
            Anchor::Anywhere => StartKind::Unanchored,
        };
        let dense_bytes_max = budget.dense_bytes.min(limits::PATTERN_DFA_BYTES_MAX);
        let dense = dense(&nfa, kind, dense_bytes_max);
        // An attempt that gave up has cost the time of a full one.
        let dense_bytes = dense.as_ref().map_or(dense_bytes_max, dense::DFA::memory_usage);
        budget.dense_bytes -= dense_bytes;
        budget.built_bytes += dense_bytes;
        let engine = match dense {
            Some(dfa) => Engine::Dense(Box::new(dfa)),
            None => Engine::Lazy(Lazy::new(expression)?),
        };
        Ok(Self { anchor, engine })
    }

    /// Whether the pattern matches. Waits for nothing; allocates nothing once the automaton has met similar text.
    pub(crate) fn is_match(&self, text: &[u8]) -> bool {
        let input = Input::new(text).anchored(self.anchor.mode()).earliest(true);
        match &self.engine {
            // The search of a dense automaton fails only at bytes that it was built to give up on, and it has none.
            Engine::Dense(dfa) => matches!(dfa.try_search_fwd(&input), Ok(Some(_))),
            Engine::Lazy(lazy) => lazy.is_match(&input),
        }
    }

    /// The size of its dense automaton in bytes, if it has one.
    pub(crate) fn dense_bytes(&self) -> Option<usize> {
        match &self.engine {
            Engine::Dense(dfa) => Some(dfa.memory_usage()),
            Engine::Lazy(_) => None,
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern").field("anchor", &self.anchor).field("dense_bytes", &self.dense_bytes()).finish()
    }
}

impl Lazy {
    fn new(expression: &Expression) -> Result<Self, PatternError> {
        let config = meta::Config::new()
            .utf8_empty(false)
            .dfa(false)
            .onepass(false)
            // The pattern's automaton is within its limit already; this one holds a reverse one and captures besides.
            .nfa_size_limit(None)
            .hybrid_cache_capacity(limits::LAZY_DFA_BYTES_MAX);
        let regex = meta::Builder::new()
            .configure(config)
            .build_from_hir(&expression.hir()?)
            .map_err(|_| PatternError::TooLarge { max: limits::REGEX_AUTOMATON_BYTES_MAX })?;
        let caches = (0..limits::LAZY_DFA_CACHES).map(|_| Mutex::new(regex.create_cache())).collect();
        Ok(Self { regex, caches })
    }

    fn is_match(&self, input: &Input<'_>) -> bool {
        let first = home_slot();
        for offset in 0..self.caches.len() {
            let mut cache = match self.caches[(first + offset) % self.caches.len()].try_lock() {
                Ok(cache) => cache,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            return self.regex.search_half_with(&mut cache, input).is_some();
        }
        // More threads than caches are inside this very pattern: right rather than free of allocation.
        self.regex.is_match(input.clone())
    }
}

/// The cache that this thread tries first: threads that come one after the other get different ones.
fn home_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SLOT: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    SLOT.with(|slot| *slot)
}
