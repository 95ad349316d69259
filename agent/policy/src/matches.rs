//! Conditions on requests, as front ends give them.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{
    names::ObjectRef,
    pattern::{Expression, Extent},
};

/// One condition on a request: all that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MatchIr {
    /// The object that it came from.
    pub origin: ObjectRef,
    /// What its author calls it: the name of a match of an HTTPRouteGroup, the place of one in a route (`rules[0].matches[1]`).
    pub name: Arc<str>,
    /// The path; `None` for any.
    pub path: Option<PathIr>,
    /// Upper-case methods; empty, or with `*` among them, for any.
    pub methods: Vec<Arc<str>>,
    /// Lower-case header names and what any of their values must be; all must hold.
    pub headers: Vec<(Arc<str>, ValueIr)>,
    /// Names of query parameters and what the first value of each must be once it is decoded; all must hold.
    pub query: Vec<(Arc<str>, ValueIr)>,
}

/// What a path must be. It is compared in its canonical form and without the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum PathIr {
    /// A regex that matches at the start of the path, whatever follows (SMI).
    Begins(Arc<str>),
    /// A regex that matches the whole path.
    Regex(Arc<str>),
    /// The path itself.
    Exact(Arc<str>),
    /// The path, or one below it: `/a` holds for `/a`, `/a/` and `/a/b`, not for `/ab`. Without a slash at its end; empty for any path.
    Prefix(Arc<str>),
}

/// What a header or a query parameter must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ValueIr {
    /// A regex that is searched in it (SMI).
    Search(Arc<str>),
    /// A regex that matches the whole value.
    Regex(Arc<str>),
    /// The value itself.
    Exact(Arc<str>),
}

impl MatchIr {
    /// One that holds for every request.
    #[must_use]
    pub fn any(origin: ObjectRef, name: &str) -> Self {
        Self { origin, name: name.into(), path: None, methods: Vec::new(), headers: Vec::new(), query: Vec::new() }
    }
}

impl PathIr {
    pub(crate) fn expression(&self) -> Expression {
        let (text, extent) = match self {
            Self::Begins(regex) => (regex, Extent::Open),
            Self::Regex(regex) => (regex, Extent::Whole),
            Self::Exact(path) => (path, Extent::Literal),
            Self::Prefix(path) => (path, Extent::Under),
        };
        Expression { text: Arc::clone(text), extent }
    }
}

impl ValueIr {
    pub(crate) fn expression(&self) -> Expression {
        let (text, extent) = match self {
            Self::Search(regex) => (regex, Extent::Open),
            Self::Regex(regex) => (regex, Extent::Whole),
            Self::Exact(value) => (value, Extent::Literal),
        };
        Expression { text: Arc::clone(text), extent }
    }
}

impl fmt::Display for PathIr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begins(regex) => write!(f, "path ~ \"{regex}\""),
            Self::Regex(regex) => write!(f, "path matches \"{regex}\""),
            Self::Exact(path) => write!(f, "path = \"{path}\""),
            Self::Prefix(path) => write!(f, "path under \"{}\"", if path.is_empty() { "/" } else { path }),
        }
    }
}

impl fmt::Display for ValueIr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Search(regex) => write!(f, "~ \"{regex}\""),
            Self::Regex(regex) => write!(f, "matches \"{regex}\""),
            Self::Exact(value) => write!(f, "= \"{value}\""),
        }
    }
}

impl fmt::Display for MatchIr {
    /// The condition as a person would write it: `path ~ "/api" and method GET,HEAD and header cookie ~ "tester"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(path) = &self.path {
            write!(f, "{path}")?;
            separator = " and ";
        }
        if !self.methods.is_empty() {
            write!(f, "{separator}method {}", self.methods.join(","))?;
            separator = " and ";
        }
        for (kind, values) in [("header", &self.headers), ("query", &self.query)] {
            for (name, value) in values {
                write!(f, "{separator}{kind} {name} {value}")?;
                separator = " and ";
            }
        }
        if separator.is_empty() { f.write_str("any request") } else { Ok(()) }
    }
}
