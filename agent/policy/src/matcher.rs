//! Which rule a request meets.
//!
//! All path patterns of a table share one dense automaton that is walked once per request, if it fits its budget; header
//! patterns are kept one by one, because patterns that may start anywhere multiply when they are put together.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, Method};
use regex_automata::{
    Input,
    dfa::{Automaton, StartKind, dense},
    util::primitives::StateID,
};

use crate::{
    ir::MatchIr,
    limits,
    names::ObjectRef,
    pattern::{self, Anchor, Budget, Pattern, PatternError},
};

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

/// The rules of one Service, compiled. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct RouteMatcher {
    table: Arc<Table>,
}

/// A match that can hold for no request, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleProblem {
    /// Index of the rule.
    pub rule: usize,
    /// The object that the match came from.
    pub origin: ObjectRef,
    /// Name of the match.
    pub name: Arc<str>,
    /// Field inside the match: `pathRegex`, `headers.cookie`, `methods`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

#[derive(Debug, Default)]
struct Table {
    rules: Box<[Rule]>,
    paths: Paths,
    headers: Box<[Pattern]>,
    built_bytes: usize,
}

#[derive(Debug)]
struct Rule {
    conditions: Box<[Condition]>,
    text: Box<[String]>,
}

/// One match, compiled: all of it must hold.
#[derive(Debug)]
struct Condition {
    path: Option<usize>,
    methods: Box<[Method]>,
    headers: Box<[(HeaderName, usize)]>,
}

#[derive(Debug)]
enum Paths {
    /// All patterns in one automaton.
    Together(Box<dense::DFA<Vec<u32>>>),
    /// One by one.
    Each(Box<[Pattern]>),
}

impl Default for Paths {
    fn default() -> Self {
        Self::Each(Box::default())
    }
}

/// Which path patterns hold, one bit each.
type PathSet = [u64; limits::PATH_DFA_PATTERNS_MAX / 64];

impl RouteMatcher {
    /// Compiles rules, in order of precedence, each a list of matches of which any must hold. Never fails: a match with a
    /// pattern that cannot be used holds for nothing and is told.
    #[must_use]
    pub fn new(rules: &[&[MatchIr]]) -> (Self, Vec<RuleProblem>) {
        let mut build = Build::default();
        build.joined = Joined::new(rules, &mut build.budget.built_bytes);
        let conditions: Vec<Vec<Condition>> = rules
            .iter()
            .enumerate()
            .map(|(index, matches)| matches.iter().filter_map(|one| build.condition(index, one)).collect())
            .collect();
        let paths = match build.joined {
            Some(joined) => Paths::Together(Box::new(joined.dfa)),
            None => Paths::Each(build.paths.compiled.into()),
        };
        let rules = rules
            .iter()
            .zip(conditions)
            .map(|(matches, conditions)| Rule {
                conditions: conditions.into(),
                text: matches.iter().map(ToString::to_string).collect(),
            })
            .collect();
        let built_bytes = build.budget.built_bytes;
        let table = Arc::new(Table { rules, paths, headers: build.headers.compiled.into(), built_bytes });
        (Self { table }, build.problems)
    }

    /// The first rule, in order of precedence, that the request meets. Takes no lock, allocates nothing.
    #[must_use]
    pub fn find(&self, head: &RequestHead<'_>) -> Option<usize> {
        let table = &*self.table;
        let mut walked = None;
        table.rules.iter().position(|rule| rule.conditions.iter().any(|one| one.holds(table, head, &mut walked)))
    }

    /// Whether this is a clone of that.
    #[must_use]
    pub fn is_same(&self, that: &Self) -> bool {
        Arc::ptr_eq(&self.table, &that.table)
    }

    /// Bytes of all automata that were built for it, of those that were given up too: what compiling it took.
    #[must_use]
    pub fn built_bytes(&self) -> usize {
        self.table.built_bytes
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.rules.len()
    }

    /// Whether there is no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.rules.is_empty()
    }

    /// The matches of a rule as a person would write them, any of which is enough.
    #[must_use]
    pub fn text(&self, rule: usize) -> &[String] {
        self.table.rules.get(rule).map_or(&[], |rule| &rule.text)
    }

    /// Which engines search the patterns of a rule: `path: dense DFA 51 KiB; header cookie: per pattern`.
    #[must_use]
    pub fn engine(&self, rule: usize) -> String {
        let Some(rule) = self.table.rules.get(rule) else { return String::new() };
        let mut parts: Vec<String> = Vec::new();
        let mut push = |part: String| {
            if !parts.contains(&part) {
                parts.push(part);
            }
        };
        for condition in &rule.conditions {
            if let Some(path) = condition.path {
                let bytes = match &self.table.paths {
                    Paths::Together(dfa) => Some(dfa.memory_usage()),
                    Paths::Each(patterns) => patterns[path].dense_bytes(),
                };
                push(format!("path: {}", engine_text(bytes)));
            }
            for (name, header) in &condition.headers {
                push(format!("header {name}: {}", engine_text(self.table.headers[*header].dense_bytes())));
            }
        }
        if parts.is_empty() { "no pattern".to_owned() } else { parts.join("; ") }
    }
}

fn engine_text(dense_bytes: Option<usize>) -> String {
    dense_bytes.map_or_else(|| "per pattern".to_owned(), |bytes| format!("dense DFA {} KiB", bytes.div_ceil(1024)))
}

impl Condition {
    fn holds(&self, table: &Table, head: &RequestHead<'_>, walked: &mut Option<PathSet>) -> bool {
        if !self.methods.is_empty() && !self.methods.contains(head.method) {
            return false;
        }
        if let Some(path) = self.path {
            let holds = match &table.paths {
                Paths::Together(dfa) => {
                    let set = walked.get_or_insert_with(|| walk(dfa, head.path.as_bytes()));
                    set[path / 64] & (1 << (path % 64)) != 0
                }
                Paths::Each(patterns) => patterns[path].is_match(head.path.as_bytes()),
            };
            if !holds {
                return false;
            }
        }
        self.headers.iter().all(|(name, pattern)| {
            head.headers.get_all(name).iter().any(|value| table.headers[*pattern].is_match(value.as_bytes()))
        })
    }
}

/// Every pattern that matches at the start of the path, whatever follows.
fn walk(dfa: &dense::DFA<Vec<u32>>, path: &[u8]) -> PathSet {
    let mut set = [0; limits::PATH_DFA_PATTERNS_MAX / 64];
    let input = Input::new(path).anchored(Anchor::Start.mode());
    let Ok(mut state) = dfa.start_state_forward(&input) else { return set };
    let mut note = |state: StateID| {
        if dfa.is_match_state(state) {
            for index in 0..dfa.match_len(state) {
                let pattern = dfa.match_pattern(state, index).as_usize();
                set[pattern / 64] |= 1 << (pattern % 64);
            }
        }
    };
    for &byte in path {
        state = dfa.next_state(state, byte);
        if dfa.is_special_state(state) {
            if dfa.is_dead_state(state) || dfa.is_quit_state(state) {
                return set;
            }
            note(state);
        }
    }
    note(dfa.next_eoi_state(state));
    set
}

#[derive(Default)]
struct Build {
    joined: Option<Joined>,
    paths: Patterns,
    headers: Patterns,
    budget: Budget,
    problems: Vec<RuleProblem>,
}

/// All the path patterns of a table in one automaton.
struct Joined {
    dfa: dense::DFA<Vec<u32>>,
    index: HashMap<Arc<str>, usize>,
}

/// Different patterns, each compiled once.
#[derive(Default)]
struct Patterns {
    index: HashMap<Arc<str>, Result<usize, PatternError>>,
    compiled: Vec<Pattern>,
}

impl Patterns {
    fn add(&mut self, text: &Arc<str>, anchor: Anchor, budget: &mut Budget) -> Result<usize, PatternError> {
        if let Some(known) = self.index.get(text) {
            return known.clone();
        }
        let added = Pattern::new(text, anchor, budget).map(|pattern| {
            self.compiled.push(pattern);
            self.compiled.len() - 1
        });
        self.index.insert(Arc::clone(text), added.clone());
        added
    }
}

impl Joined {
    /// One automaton for all paths, if there are any, and it fits. Patterns that are refused are left out.
    fn new(rules: &[&[MatchIr]], built_bytes: &mut usize) -> Option<Self> {
        let mut seen = HashSet::new();
        let mut texts: Vec<&Arc<str>> = Vec::new();
        let mut automata_bytes = 0;
        for text in rules.iter().flat_map(|matches| matches.iter()).filter_map(|one| one.path_regex.as_ref()) {
            if !seen.insert(text) {
                continue;
            }
            let nfa = pattern::nfa(&[text], limits::REGEX_AUTOMATON_BYTES_MAX);
            let bytes = pattern::built_bytes(&nfa);
            *built_bytes += bytes;
            automata_bytes += bytes;
            if automata_bytes > limits::TABLE_AUTOMATA_BYTES_MAX {
                return None;
            }
            if nfa.is_err() {
                continue;
            }
            texts.push(text);
            if texts.len() > limits::PATH_DFA_PATTERNS_MAX {
                return None;
            }
        }
        if texts.is_empty() {
            return None;
        }
        let patterns: Vec<&str> = texts.iter().map(|text| &***text).collect();
        let nfa = pattern::nfa(&patterns, limits::TABLE_AUTOMATA_BYTES_MAX);
        *built_bytes += pattern::built_bytes(&nfa);
        let dfa = pattern::dense(&nfa.ok()?, StartKind::Anchored, limits::PATH_DFA_BYTES_MAX);
        *built_bytes += dfa.as_ref().map_or(limits::PATH_DFA_BYTES_MAX, dense::DFA::memory_usage);
        let dfa = dfa?;
        let index = texts.into_iter().enumerate().map(|(index, text)| (Arc::clone(text), index)).collect();
        Some(Self { dfa, index })
    }
}

impl Build {
    fn path(&mut self, text: &Arc<str>) -> Result<usize, PatternError> {
        match &self.joined {
            Some(joined) => match joined.index.get(text) {
                Some(index) => Ok(*index),
                None => Err(pattern::check(text)
                    .err()
                    .unwrap_or(PatternError::TooLarge { max: limits::PATH_DFA_BYTES_MAX })),
            },
            None => self.paths.add(text, Anchor::Start, &mut self.budget),
        }
    }

    fn condition(&mut self, rule: usize, one: &MatchIr) -> Option<Condition> {
        let mut problems = Vec::new();
        let mut path = None;
        if let Some(text) = &one.path_regex {
            match self.path(text) {
                Ok(index) => path = Some(index),
                Err(error) => problems.push(("pathRegex".to_owned(), error.to_string())),
            }
        }
        let mut methods = Vec::new();
        if !one.methods.iter().any(|method| &**method == "*") {
            for method in &one.methods {
                match Method::from_bytes(method.as_bytes()) {
                    Ok(method) => methods.push(method),
                    Err(_) => problems.push(("methods".to_owned(), format!("{method:?} is not an HTTP method"))),
                }
            }
        }
        let mut headers = Vec::new();
        for (name, text) in &one.headers {
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                problems.push((format!("headers.{name}"), "not an HTTP header name".to_owned()));
                continue;
            };
            match self.headers.add(text, Anchor::Anywhere, &mut self.budget) {
                Ok(index) => headers.push((header, index)),
                Err(error) => problems.push((format!("headers.{name}"), error.to_string())),
            }
        }
        let usable = problems.is_empty();
        self.problems.extend(problems.into_iter().map(|(field, message)| {
            let name = Arc::clone(&one.name);
            RuleProblem { rule, origin: one.origin.clone(), name, field, message }
        }));
        usable.then(|| Condition { path, methods: methods.into(), headers: headers.into() })
    }
}

#[cfg(test)]
mod tests;
