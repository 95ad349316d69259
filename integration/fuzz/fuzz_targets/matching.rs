//! Route matching: the engines find the same first rule as a reference that knows what an expression means and nothing of how one is
//! searched. The input builds the rules and then requests.
#![no_main]

use std::{collections::BTreeSet, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use weft_policy::{
    ir::{MatchIr, PathIr, ValueIr},
    matcher::{RequestHead, RouteMatcher},
    names::ObjectRef,
};

/// Deepest nesting of an expression.
const DEPTH_MAX: usize = 4;
const RULES_MAX: usize = 6;
const REQUESTS_MAX: usize = 8;
/// Few, so that they meet.
const LETTERS: &[u8] = b"ab/-A";
const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "*"];
const HEADERS: [&str; 2] = ["cookie", "x-user"];

/// What the input still holds; zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn below(&mut self, end: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % end
    }

    fn letter(&mut self) -> u8 {
        LETTERS[self.below(LETTERS.len())]
    }
}

/// A regular expression.
enum Expression {
    Empty,
    Letter(u8),
    Any,
    /// Any of these letters, or any but these.
    Class(Vec<u8>, bool),
    Begin,
    End,
    Both(Box<Self>, Box<Self>),
    Either(Box<Self>, Box<Self>),
    /// So often at least; once at most, or without end.
    Repeat(Box<Self>, bool, bool),
}

impl Expression {
    fn read(input: &mut Input<'_>, depth: usize) -> Self {
        let inner = |input: &mut Input<'_>| Box::new(Self::read(input, depth + 1));
        match input.below(if depth < DEPTH_MAX { 10 } else { 6 }) {
            0 => Self::Empty,
            1 => Self::Any,
            2 => Self::Class(vec![input.letter(), input.letter()], input.below(2) == 1),
            3 => [Self::Begin, Self::End, Self::Empty].into_iter().nth(input.below(3)).unwrap(),
            4 | 5 => Self::Letter(input.letter()),
            6 | 7 => Self::Both(inner(input), inner(input)),
            8 => Self::Either(inner(input), inner(input)),
            _ => {
                let (from_one, once) = [(false, false), (true, false), (false, true)][input.below(3)];
                Self::Repeat(inner(input), from_one, once)
            }
        }
    }

    fn text(&self) -> String {
        let letters = |letters: &[u8]| -> String {
            letters.iter().map(|letter| format!("\\x{letter:02x}")).collect()
        };
        match self {
            Self::Empty => "(?:)".to_owned(),
            Self::Letter(letter) => char::from(*letter).to_string(),
            Self::Any => ".".to_owned(),
            Self::Class(class, without) => format!("[{}{}]", if *without { "^" } else { "" }, letters(class)),
            Self::Begin => "^".to_owned(),
            Self::End => "$".to_owned(),
            Self::Both(one, other) => format!("{}{}", one.text(), other.text()),
            Self::Either(one, other) => format!("(?:{}|{})", one.text(), other.text()),
            Self::Repeat(one, from_one, once) => {
                let sign = match (from_one, once) {
                    (true, _) => '+',
                    (false, true) => '?',
                    (false, false) => '*',
                };
                format!("(?:{}){sign}", one.text())
            }
        }
    }

    /// Where it can end in a text, of all the places where it may begin.
    fn ends(&self, text: &[u8], begins: &BTreeSet<usize>) -> BTreeSet<usize> {
        let step = |fits: &dyn Fn(u8) -> bool| {
            begins.iter().filter(|at| text.get(**at).is_some_and(|byte| fits(*byte))).map(|at| at + 1).collect()
        };
        match self {
            Self::Empty => begins.clone(),
            Self::Letter(letter) => step(&|byte| byte == *letter),
            Self::Any => step(&|byte| byte != b'\n'),
            Self::Class(class, without) => step(&|byte| class.contains(&byte) != *without),
            Self::Begin => begins.iter().copied().filter(|at| *at == 0).collect(),
            Self::End => begins.iter().copied().filter(|at| *at == text.len()).collect(),
            Self::Both(one, other) => other.ends(text, &one.ends(text, begins)),
            Self::Either(one, other) => &one.ends(text, begins) | &other.ends(text, begins),
            Self::Repeat(one, from_one, once) => {
                let mut all = if *from_one { one.ends(text, begins) } else { begins.clone() };
                if *once {
                    return &all | &one.ends(text, begins);
                }
                loop {
                    let more = &all | &one.ends(text, &all);
                    if more == all {
                        return all;
                    }
                    all = more;
                }
            }
        }
    }

    fn is_at_the_start_of(&self, text: &[u8]) -> bool {
        !self.ends(text, &BTreeSet::from([0])).is_empty()
    }

    fn is_anywhere_in(&self, text: &[u8]) -> bool {
        !self.ends(text, &(0..=text.len()).collect()).is_empty()
    }
}

/// One match, as the reference has it.
struct Rule {
    path: Option<Expression>,
    method: Option<&'static str>,
    headers: Vec<(&'static str, Expression)>,
}

impl Rule {
    fn read(input: &mut Input<'_>) -> Self {
        Self {
            path: (input.below(4) > 0).then(|| Expression::read(input, 0)),
            method: (input.below(3) == 0).then(|| METHODS[input.below(METHODS.len())]),
            headers: (0..input.below(3))
                .map(|_| (HEADERS[input.below(HEADERS.len())], Expression::read(input, 0)))
                .collect(),
        }
    }

    fn ir(&self) -> MatchIr {
        MatchIr {
            origin: ObjectRef::new("HTTPRouteGroup", "shop", "g"),
            name: "m".into(),
            path: self.path.as_ref().map(|path| PathIr::Begins(Arc::from(path.text()))),
            methods: self.method.iter().map(|method| Arc::from(*method)).collect(),
            headers: self.headers.iter().map(|(name, value)| (Arc::from(*name), ValueIr::Search(Arc::from(value.text())))).collect(),
            query: Vec::new(),
        }
    }

    fn holds(&self, head: &RequestHead<'_>) -> bool {
        self.path.as_ref().is_none_or(|path| path.is_at_the_start_of(head.path.as_bytes()))
            && self.method.is_none_or(|method| method == "*" || head.method.as_str() == method)
            && self.headers.iter().all(|(name, expression)| {
                head.headers.get_all(*name).iter().any(|value| expression.is_anywhere_in(value.as_bytes()))
            })
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let rules: Vec<Rule> = (0..=input.below(RULES_MAX)).map(|_| Rule::read(&mut input)).collect();
    let ir: Vec<[MatchIr; 1]> = rules.iter().map(|rule| [rule.ir()]).collect();
    let slices: Vec<&[MatchIr]> = ir.iter().map(<[MatchIr; 1]>::as_slice).collect();
    let (matcher, problems) = RouteMatcher::new(&slices);
    for _ in 0..=input.below(REQUESTS_MAX) {
        let text = |input: &mut Input<'_>| -> Vec<u8> { (0..input.below(8)).map(|_| input.letter()).collect() };
        let path = format!("/{}", String::from_utf8(text(&mut input)).unwrap());
        let method = Method::from_bytes(METHODS[input.below(3)].as_bytes()).unwrap();
        let mut headers = HeaderMap::new();
        for _ in 0..input.below(4) {
            let mut value = text(&mut input);
            if input.below(4) == 0 {
                value.push(0xe9);
            }
            let name = HeaderName::from_static(HEADERS[input.below(HEADERS.len())]);
            headers.append(name, HeaderValue::from_bytes(&value).unwrap());
        }
        let head = RequestHead { method: &method, path: &path, query: None, headers: &headers };
        // A rule that cannot be used matches nothing, and says so.
        let expect = rules
            .iter()
            .enumerate()
            .position(|(index, rule)| problems.iter().all(|problem| problem.rule != index) && rule.holds(&head));
        assert_eq!(matcher.find(&head), expect, "{head:?}: {ir:?}");
    }
});
