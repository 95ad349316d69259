use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn one(path: Option<&str>, methods: &[&str], headers: &[(&str, &str)]) -> MatchIr {
    MatchIr {
        origin: ObjectRef::new("HTTPRouteGroup", "shop", "group"),
        name: "m".into(),
        path: path.map(|regex| PathIr::Begins(regex.into())),
        methods: methods.iter().map(|&method| method.into()).collect(),
        headers: headers.iter().map(|&(name, regex)| (name.into(), ValueIr::Search(regex.into()))).collect(),
        query: Vec::new(),
    }
}

fn table(rules: &[Vec<MatchIr>]) -> (RouteMatcher, Vec<RuleProblem>) {
    RouteMatcher::new(&rules.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn find(matcher: &RouteMatcher, method: &str, path: &str, headers: &[(&str, &[u8])]) -> Option<usize> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    matcher.find(&RequestHead {
        method: &Method::from_bytes(method.as_bytes()).unwrap(),
        path,
        query: None,
        headers: &map,
    })
}

#[test]
fn paths_are_anchored_at_the_start_only() {
    for (pattern, path, expected) in [
        ("/api", "/api", true),
        ("/api", "/apix/y", true),
        ("/api", "/v1/api", false),
        ("/api$", "/apix", false),
        ("/api$", "/api", true),
        ("^/api", "/api/1", true),
        ("/a|/b", "/b", true),
        // Without a group around the pattern only the first branch would be anchored.
        ("/a|/b", "/x/b", false),
        (".*", "/", true),
        ("", "/anything", true),
        ("/users/[0-9]+$", "/users/42", true),
        (r"/users/\d+$", "/users/x", false),
        ("(?i)/API", "/api", true),
        // A comment must not swallow what is put around a pattern.
        ("(?x) /a # slash a", "/a", true),
        ("/caf\u{e9}", "/caf\u{e9}/1", true),
        ("/[^/]+/x", "/\u{e9}/x", true),
    ] {
        let (matcher, problems) = table(&[vec![one(Some(pattern), &[], &[])]]);
        assert_eq!(problems, [], "{pattern}");
        assert_eq!(find(&matcher, "GET", path, &[]).is_some(), expected, "{pattern} on {path}");
    }
}

#[test]
fn paths_are_exact_prefixes_by_segment_or_regexes_of_the_whole() {
    let exact = |path: &str| PathIr::Exact(path.into());
    let prefix = |path: &str| PathIr::Prefix(path.into());
    let regex = |path: &str| PathIr::Regex(path.into());
    for (wanted, path, expected) in [
        (exact("/a"), "/a", true),
        (exact("/a"), "/a/", false),
        (exact("/a.b"), "/axb", false),
        (exact("/a|/b"), "/b", false),
        (exact("/caf\u{e9}"), "/caf\u{e9}", true),
        (prefix("/a"), "/a", true),
        (prefix("/a"), "/a/", true),
        (prefix("/a"), "/a/b", true),
        (prefix("/a"), "/ab", false),
        (prefix(""), "/anything", true),
        (prefix("/a+"), "/aa", false),
        (regex("/a|/b"), "/b", true),
        (regex("/a|/b"), "/bc", false),
        (regex("/users/[0-9]+"), "/users/42", true),
        (regex("/users/[0-9]+"), "/users/42/x", false),
        (regex("(?x) /a # slash a"), "/a", true),
        (regex("(?x) /a # slash a"), "/ab", false),
        (regex("(?i)/API"), "/api", true),
    ] {
        let one = MatchIr { path: Some(wanted.clone()), ..one(None, &[], &[]) };
        // Alone, and beside as many others as no automaton holds together.
        let (alone, problems) = table(&[vec![one.clone()]]);
        assert_eq!(problems, [], "{wanted}");
        assert_eq!(find(&alone, "GET", path, &[]).is_some(), expected, "{wanted} on {path}");
        let exploding = (0..4).map(|n| vec![self::one(Some(&exploding(n)), &[], &[])]);
        let (beside, _) = table(&[vec![one]].into_iter().chain(exploding).collect::<Vec<_>>());
        assert_eq!(find(&beside, "GET", path, &[]) == Some(0), expected, "{wanted} on {path}, one by one");
    }
}

#[test]
fn headers_and_parameters_are_compared_whole_or_by_a_regex_of_the_whole() {
    let exact = |value: &str| ValueIr::Exact(value.into());
    let regex = |value: &str| ValueIr::Regex(value.into());
    for (wanted, value, expected) in [
        (exact("v2"), "v2", true),
        (exact("v2"), "v22", false),
        (exact("V2"), "v2", false),
        (regex("v[0-9]"), "v2", true),
        (regex("v[0-9]"), "xv2", false),
        (regex("v[0-9]"), "v2x", false),
        (regex("a|b"), "b", true),
        (regex("a|b"), "bc", false),
    ] {
        let header = MatchIr { headers: vec![("x-v".into(), wanted.clone())], ..one(None, &[], &[]) };
        let query = MatchIr { query: vec![("v".into(), wanted.clone())], ..one(None, &[], &[]) };
        let (headers, _) = table(&[vec![header]]);
        assert_eq!(find(&headers, "GET", "/", &[("x-v", value.as_bytes())]).is_some(), expected, "{wanted} on {value}");
        let (parameters, _) = table(&[vec![query]]);
        for text in [format!("a=b&v={value}"), format!("v=%{:02x}{}", value.as_bytes()[0], &value[1..])] {
            let head = RequestHead { method: &Method::GET, path: "/", query: Some(&text), headers: &HeaderMap::new() };
            assert_eq!(parameters.find(&head).is_some(), expected, "{wanted} on {text}");
        }
        let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &HeaderMap::new() };
        assert_eq!(parameters.find(&head), None);
    }
}

#[test]
fn header_patterns_are_searched_in_every_value_as_bytes() {
    let cookie = "^(.*?;)?(usertype=tester)(;.*)?$";
    for (pattern, values, expected) in [
        (cookie, &[b"usertype=tester".as_slice()] as &[&[u8]], true),
        (cookie, &[b"a=b;usertype=tester;c=d"], true),
        (cookie, &[b"usertype=testers"], false),
        (cookie, &[b"a=b", b"usertype=tester"], true),
        ("Android", &[b"Mozilla (Linux; Android 14)"], true),
        (".*Android.*", &[b"Mozilla (Linux; Android 14)"], true),
        ("^Android", &[b"Mozilla (Linux; Android 14)"], false),
        ("^hello$", &[b"hello\xff"], false),
        ("hello", &[b"\xff\xfehello\x80"], true),
        ("^.hello", &[b"\xffhello"], true),
        ("", &[b""], true),
        ("x", &[], false),
        ("", &[], false),
    ] {
        let (matcher, problems) = table(&[vec![one(None, &[], &[("cookie", pattern)])]]);
        assert_eq!(problems, [], "{pattern}");
        let headers: Vec<(&str, &[u8])> = values.iter().map(|&value| ("Cookie", value)).collect();
        assert_eq!(find(&matcher, "GET", "/", &headers).is_some(), expected, "{pattern} on {values:?}");
    }
}

#[test]
fn fields_of_a_match_are_and_and_matches_are_or() {
    let (matcher, _) = table(&[vec![
        one(Some("/a"), &["GET", "HEAD"], &[("x-one", "^1$"), ("x-two", "^2$")]),
        one(None, &["DELETE"], &[]),
    ]]);
    let both: &[(&str, &[u8])] = &[("x-one", b"1"), ("x-two", b"2")];
    assert_eq!(find(&matcher, "GET", "/a", both), Some(0));
    assert_eq!(find(&matcher, "HEAD", "/a", both), Some(0));
    assert_eq!(find(&matcher, "POST", "/a", both), None);
    assert_eq!(find(&matcher, "GET", "/b", both), None);
    assert_eq!(find(&matcher, "GET", "/a", &both[..1]), None);
    assert_eq!(find(&matcher, "DELETE", "/b", &[]), Some(0));
}

#[test]
fn methods_are_exact_and_a_star_is_any() {
    for (methods, method, expected) in [
        (&["GET"] as &[&str], "GET", true),
        (&["GET"], "get", false),
        (&["*"], "PURGE", true),
        (&["GET", "*"], "POST", true),
        (&[], "PURGE", true),
        (&["PATCH"], "GET", false),
    ] {
        let (matcher, problems) = table(&[vec![one(None, methods, &[])]]);
        assert_eq!(problems, []);
        assert_eq!(find(&matcher, method, "/", &[]).is_some(), expected, "{methods:?} {method}");
    }
}

#[test]
fn the_first_rule_wins_and_empty_rules_hold_for_nothing() {
    let (matcher, _) =
        table(&[vec![], vec![one(Some("/a/b"), &[], &[])], vec![one(Some("/a"), &[], &[])], vec![one(None, &[], &[])]]);
    assert_eq!(find(&matcher, "GET", "/a/b/c", &[]), Some(1));
    assert_eq!(find(&matcher, "GET", "/a/c", &[]), Some(2));
    assert_eq!(find(&matcher, "GET", "/x", &[]), Some(3));
    assert_eq!(find(&RouteMatcher::default(), "GET", "/", &[]), None);
}

#[test]
fn what_cannot_be_used_matches_nothing_and_is_told() {
    let long = "a".repeat(limits::REGEX_PATTERN_BYTES_MAX + 1);
    for (bad, field, message) in [
        (one(Some("/a("), &[], &[]), "pathRegex", "the regex does not compile: unclosed group"),
        (one(Some("/a)(b"), &[], &[]), "pathRegex", "the regex does not compile: unopened group"),
        (one(Some(&long), &[], &[]), "pathRegex", "the regex has 1025 bytes, over the limit of 1024"),
        (one(Some("(?:a{1000}){1000}"), &[], &[]), "pathRegex", "the regex compiles to more than 1048576 bytes"),
        (one(None, &[], &[("cookie", "[")]), "headers.cookie", "the regex does not compile: unclosed character class"),
        (one(None, &[], &[("co okie", "x")]), "headers.co okie", "not an HTTP header name"),
        (one(None, &["G T"], &[]), "methods", "\"G T\" is not an HTTP method"),
        (one(Some(r"/\p{Greek}"), &[], &[]), "pathRegex", "the regex does not compile: Unicode not allowed here"),
    ] {
        let (matcher, problems) = table(&[vec![bad.clone()], vec![one(Some("/a"), &[], &[])]]);
        assert_eq!(problems.len(), 1, "{bad:?} {problems:?}");
        assert_eq!((problems[0].rule, problems[0].field.as_str()), (0, field));
        assert_eq!(problems[0].message, message);
        assert_eq!(find(&matcher, "GET", "/a(", &[("cookie", b"[")]), Some(1), "{bad:?}");
    }
}

#[test]
fn many_paths_share_one_automaton() {
    let rules: Vec<Vec<MatchIr>> =
        (0..64).map(|n| vec![one(Some(&format!("/api/v[0-9]+/service-{n}/.*")), &["GET"], &[])]).collect();
    let (matcher, problems) = table(&rules);
    assert_eq!(problems, []);
    assert!(matcher.engine(0).starts_with("path: dense DFA "), "{}", matcher.engine(0));
    assert!(matches!(matcher.table.paths, Paths::Together(_)));
    for n in 0..64 {
        assert_eq!(find(&matcher, "GET", &format!("/api/v2/service-{n}/x"), &[]), Some(n));
    }
    assert_eq!(find(&matcher, "GET", "/api/vx/service-1/x", &[]), None);
}

/// Patterns that no dense automaton of the allowed size holds together.
fn exploding(n: usize) -> String {
    format!("/(?:a|b)*a(?:a|b){{14}}{n}")
}

#[test]
fn paths_that_blow_up_together_are_tried_one_by_one() {
    let rules: Vec<Vec<MatchIr>> = (0..4).map(|n| vec![one(Some(&exploding(n)), &[], &[])]).collect();
    let (matcher, problems) = table(&rules);
    assert_eq!(problems, []);
    assert_eq!(matcher.engine(0), "path: per pattern");
    assert_eq!(find(&matcher, "GET", &format!("/ba{}3", "b".repeat(14)), &[]), Some(3));
    assert_eq!(find(&matcher, "GET", &format!("/ba{}3", "b".repeat(13)), &[]), None);
}

#[test]
fn a_table_has_a_budget_for_automata() {
    // About 100 KiB of automaton each, so that a few hundred are over the table's budget.
    let pattern = |n: usize| format!("{n}x{{4000}}");
    let rules: Vec<Vec<MatchIr>> = (0..250).map(|n| vec![one(None, &[], &[("x", &pattern(n))])]).collect();
    let (_, problems) = table(&rules);
    assert!(!problems.is_empty() && problems.len() < 250, "{}", problems.len());
    assert!(problems.iter().all(|problem| problem.message.contains("more than 16777216 bytes")), "{problems:?}");
}

#[test]
fn engines_and_conditions_read_well() {
    let (matcher, _) = table(&[
        vec![one(None, &[], &[("cookie", "^(.*?;)?(usertype=tester)(;.*)?$")])],
        vec![one(Some("/api"), &["GET", "POST"], &[])],
        vec![one(None, &[], &[])],
    ]);
    assert_eq!(matcher.text(0), ["header cookie ~ \"^(.*?;)?(usertype=tester)(;.*)?$\""]);
    assert_eq!(matcher.text(1), ["path ~ \"/api\" and method GET,POST"]);
    assert_eq!(matcher.text(2), ["any request"]);
    assert_eq!(matcher.engine(0), "header cookie: dense DFA 9 KiB");
    assert_eq!(matcher.engine(2), "no pattern");
    assert_eq!(matcher.text(9), [] as [&str; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_automaton_for_all_agrees_with_each_alone(
        patterns in proptest::collection::vec("(/[a-c]{0,2}(\\.\\*|\\[ab\\]|\\?|\\$|\\|/b)?){1,2}", 1..6),
        paths in proptest::collection::vec("(/[a-c]{0,3}){1,3}", 1..8),
    ) {
        let rules: Vec<Vec<MatchIr>> = patterns.iter().map(|p| vec![one(Some(p), &[], &[])]).collect();
        let (all, _) = table(&rules);
        for path in &paths {
            let alone = rules.iter().position(|rule| find(&table(std::slice::from_ref(rule)).0, "GET", path, &[]).is_some());
            let oracle = patterns.iter().position(|pattern| {
                let regex = regex_automata::meta::Regex::new(&format!("^(?:{pattern})"));
                regex.is_ok_and(|regex| regex.is_match(path.as_str()))
            });
            prop_assert_eq!(find(&all, "GET", path, &[]), alone);
            prop_assert_eq!(alone, oracle);
        }
    }

    #[test]
    fn arbitrary_patterns_and_text_never_panic(pattern in ".{0,40}", header in "[ -~]{0,20}", value in proptest::collection::vec(32u8..=255, 0..40)) {
        let (matcher, _) = table(&[vec![one(Some(&pattern), &[&header], &[(&header, &pattern)])], vec![one(None, &[], &[("x", &pattern)])]]);
        let value: Vec<u8> = value.into_iter().filter(|&byte| byte != 127).collect();
        let _ = find(&matcher, "GET", &pattern, &[("x", &value)]);
        let _ = (matcher.engine(0), matcher.text(0));
    }
}
