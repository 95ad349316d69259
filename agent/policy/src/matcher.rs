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
    ir::{MatchIr, PathIr, ValueIr},
    limits,
    names::ObjectRef,
    pattern::{self, Anchor, Budget, Expression, Pattern, PatternError},
    query,
};

/// The parts of a request that rules look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path without the query.
    pub path: &'a str,
    /// What comes after the path's question mark.
    pub query: Option<&'a str>,
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
    /// Field inside the match: `path`, `headers.cookie`, `methods`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

#[derive(Debug, Default)]
struct Table {
    rules: Box<[Rule]>,
    paths: Paths,
    values: Box<[Pattern]>,
    built_bytes: usize,
    problems: Box<[RuleProblem]>,
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
    headers: Box<[(HeaderName, Value)]>,
    query: Box<[(Arc<str>, Value)]>,
}

/// What a header or a parameter must be.
#[derive(Debug)]
enum Value {
    Exact(Arc<str>),
    Pattern(usize),
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
        let problems = build.problems.clone().into();
        let table = Arc::new(Table { rules, paths, values: build.values.compiled.into(), built_bytes, problems });
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

    /// Matches that hold for no request.
    #[must_use]
    pub fn problems(&self) -> &[RuleProblem] {
        &self.table.problems
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
            let headers = condition.headers.iter().map(|(name, value)| ("header", name.as_str(), value));
            let query = condition.query.iter().map(|(name, value)| ("query", &**name, value));
            for (kind, name, value) in headers.chain(query) {
                push(match value {
                    Value::Exact(_) => format!("{kind} {name}: compared"),
                    Value::Pattern(index) => {
                        format!("{kind} {name}: {}", engine_text(self.table.values[*index].dense_bytes()))
                    }
                });
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
        let headers = self.headers.iter().all(|(name, wanted)| {
            head.headers.get_all(name).iter().any(|value| wanted.holds(table, Text::Plain(value.as_bytes())))
        });
        headers
            && self.query.iter().all(|(name, wanted)| {
                query::first(head.query.unwrap_or_default(), name)
                    .is_some_and(|value| wanted.holds(table, Text::Encoded(value)))
            })
    }
}

/// A value as it was sent.
#[derive(Clone, Copy)]
enum Text<'a> {
    Plain(&'a [u8]),
    /// Percent-encoded, as in a query.
    Encoded(&'a str),
}

impl Value {
    fn holds(&self, table: &Table, text: Text<'_>) -> bool {
        match (self, text) {
            (Self::Exact(wanted), Text::Plain(value)) => wanted.as_bytes() == value,
            (Self::Exact(wanted), Text::Encoded(value)) => query::decoded(value).eq(wanted.bytes()),
            (Self::Pattern(index), Text::Plain(value)) => table.values[*index].is_match(value),
            (Self::Pattern(index), Text::Encoded(value)) => {
                query::with_decoded(value, |value| table.values[*index].is_match(value))
            }
        }
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
    values: Patterns,
    budget: Budget,
    problems: Vec<RuleProblem>,
}

/// All the path patterns of a table in one automaton.
struct Joined {
    dfa: dense::DFA<Vec<u32>>,
    index: HashMap<Expression, usize>,
}

/// Different patterns, each compiled once.
#[derive(Default)]
struct Patterns {
    index: HashMap<Expression, Result<usize, PatternError>>,
    compiled: Vec<Pattern>,
}

impl Patterns {
    fn add(&mut self, expression: Expression, anchor: Anchor, budget: &mut Budget) -> Result<usize, PatternError> {
        if let Some(known) = self.index.get(&expression) {
            return known.clone();
        }
        let added = Pattern::new(&expression, anchor, budget).map(|pattern| {
            self.compiled.push(pattern);
            self.compiled.len() - 1
        });
        self.index.insert(expression, added.clone());
        added
    }
}

impl Joined {
    /// One automaton for all paths, if there are any, and it fits. Patterns that are refused are left out.
    fn new(rules: &[&[MatchIr]], built_bytes: &mut usize) -> Option<Self> {
        let mut seen = HashSet::new();
        let mut expressions: Vec<Expression> = Vec::new();
        let mut automata_bytes = 0;
        for path in rules.iter().flat_map(|matches| matches.iter()).filter_map(|one| one.path.as_ref()) {
            if !seen.insert(path) {
                continue;
            }
            let expression = path.expression();
            let nfa = pattern::nfa(&[&expression], limits::REGEX_AUTOMATON_BYTES_MAX);
            let bytes = pattern::built_bytes(&nfa);
            *built_bytes += bytes;
            automata_bytes += bytes;
            if automata_bytes > limits::TABLE_AUTOMATA_BYTES_MAX {
                return None;
            }
            if nfa.is_err() {
                continue;
            }
            expressions.push(expression);
            if expressions.len() > limits::PATH_DFA_PATTERNS_MAX {
                return None;
            }
        }
        if expressions.is_empty() {
            return None;
        }
        let nfa = pattern::nfa(&expressions.iter().collect::<Vec<_>>(), limits::TABLE_AUTOMATA_BYTES_MAX);
        *built_bytes += pattern::built_bytes(&nfa);
        let dfa = pattern::dense(&nfa.ok()?, StartKind::Anchored, limits::PATH_DFA_BYTES_MAX);
        *built_bytes += dfa.as_ref().map_or(limits::PATH_DFA_BYTES_MAX, dense::DFA::memory_usage);
        let dfa = dfa?;
        let index = expressions.into_iter().enumerate().map(|(index, expression)| (expression, index)).collect();
        Some(Self { dfa, index })
    }
}

impl Build {
    fn path(&mut self, path: &PathIr) -> Result<usize, PatternError> {
        let expression = path.expression();
        match &self.joined {
            Some(joined) => match joined.index.get(&expression) {
                Some(index) => Ok(*index),
                None => {
                    Err(expression.check().err().unwrap_or(PatternError::TooLarge { max: limits::PATH_DFA_BYTES_MAX }))
                }
            },
            None => self.paths.add(expression, Anchor::Start, &mut self.budget),
        }
    }

    fn value(&mut self, value: &ValueIr) -> Result<Value, PatternError> {
        match value {
            ValueIr::Exact(text) => Ok(Value::Exact(Arc::clone(text))),
            ValueIr::Search(_) | ValueIr::Regex(_) => {
                self.values.add(value.expression(), Anchor::Anywhere, &mut self.budget).map(Value::Pattern)
            }
        }
    }

    fn condition(&mut self, rule: usize, one: &MatchIr) -> Option<Condition> {
        let mut problems = Vec::new();
        let mut path = None;
        // Whatever is under the root is any path.
        let below_root = |path: &PathIr| matches!(path, PathIr::Prefix(prefix) if prefix.is_empty());
        if let Some(wanted) = one.path.as_ref().filter(|path| !below_root(path)) {
            let field = if matches!(wanted, PathIr::Begins(_)) { "pathRegex" } else { "path" };
            match self.path(wanted) {
                Ok(index) => path = Some(index),
                Err(error) => problems.push((field.to_owned(), error.to_string())),
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
        for (name, value) in &one.headers {
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                problems.push((format!("headers.{name}"), "not an HTTP header name".to_owned()));
                continue;
            };
            match self.value(value) {
                Ok(value) => headers.push((header, value)),
                Err(error) => problems.push((format!("headers.{name}"), error.to_string())),
            }
        }
        let mut query = Vec::new();
        for (name, value) in &one.query {
            match self.value(value) {
                Ok(value) => query.push((Arc::clone(name), value)),
                Err(error) => problems.push((format!("queryParams.{name}"), error.to_string())),
            }
        }
        let usable = problems.is_empty();
        self.problems.extend(problems.into_iter().map(|(field, message)| {
            let name = Arc::clone(&one.name);
            RuleProblem { rule, origin: one.origin.clone(), name, field, message }
        }));
        usable.then(|| Condition { path, methods: methods.into(), headers: headers.into(), query: query.into() })
    }
}

#[cfg(test)]
mod tests;
