//! What finding a route costs for each request: with few routes and many, by path, and with a header to look at.
#![allow(missing_docs, reason = "a program, not a library")]

use std::{hint::black_box, sync::Arc};

use http::{HeaderMap, HeaderValue, Method};
use weft_policy::{
    ir::{MatchIr, PathIr, ValueIr},
    matcher::{RequestHead, RouteMatcher},
    names::ObjectRef,
};

mod counted;

use counted::{Case, Work};

const COUNTED_ROUNDS: u64 = 20_000;

fn rule(index: usize, headers: Vec<(Arc<str>, Arc<str>)>) -> Vec<MatchIr> {
    vec![MatchIr {
        origin: ObjectRef::new("HTTPRouteGroup", "shop", "group"),
        name: "match".into(),
        path: Some(PathIr::Begins(format!("/api/v{index}/items/.*").into())),
        methods: vec!["GET".into()],
        headers: headers.into_iter().map(|(name, regex)| (name, ValueIr::Search(regex))).collect(),
        query: Vec::new(),
    }]
}

/// Asks for the last of `routes` routes, the one that is found last.
fn last_of(routes: usize, with_header: bool) -> Work {
    let headers =
        |index| if with_header { vec![("x-tenant".into(), format!("tenant-{index}").into())] } else { vec![] };
    let rules: Vec<Vec<MatchIr>> = (0..routes).map(|index| rule(index, headers(index))).collect();
    let rules: Vec<&[MatchIr]> = rules.iter().map(Vec::as_slice).collect();
    let (matcher, problems) = RouteMatcher::new(&rules);
    assert!(problems.is_empty(), "{problems:?}");
    let path = format!("/api/v{}/items/42", routes - 1);
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "web.shop"), ("user-agent", "bench"), ("accept", "*/*")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("x-tenant", HeaderValue::from_str(&format!("tenant-{}", routes - 1)).expect("a header's value"));
    Box::new(move || {
        let head =
            RequestHead { method: &Method::GET, path: black_box(&path), query: None, headers: black_box(&headers) };
        assert_eq!(black_box(matcher.find(&head)), Some(routes - 1));
    })
}

fn main() {
    let mut cases = Vec::new();
    for routes in [1, 16, 256] {
        for (kind, with_header) in [("path", false), ("path and header", true)] {
            cases.push(Case {
                name: format!("route find by {kind}, {routes} routes"),
                rounds: COUNTED_ROUNDS,
                prepare: Box::new(move || last_of(routes, with_header)),
            });
        }
    }
    counted::main(&cases);
}
