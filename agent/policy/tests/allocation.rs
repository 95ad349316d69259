//! Looking policy up allocates nothing, whatever the engine, on any thread. The counter is the
//! allocator of this test binary and counts for each thread by itself.

#![allow(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::sync::{Arc, Barrier};

use http::{HeaderMap, HeaderValue, Method};
use weft_policy::{
    compile::Compiler,
    endpoints::{Endpoint, EndpointSet},
    ir::{BackendIr, IrDelta, MatchIr, PathIr, RouteIr, ServiceIr, ServicePortIr, ValueIr},
    matcher::RequestHead,
    names::{ObjectRef, ServiceKey},
    plan::{AppProtocol, Destination},
    snapshot::{PlanHandle, SnapshotCell},
    split::SplitState,
};

fn allocations(work: impl FnOnce()) -> u64 {
    let counted = allocation_counter::measure(work);
    // What is freed on the hot path was allocated somewhere: both count.
    counted.count_total + counted.count_current.unsigned_abs()
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name)
}

fn route(index: usize, path: &str, cookie: &str) -> RouteIr {
    let one = MatchIr {
        origin: ObjectRef::new("HTTPRouteGroup", "shop", "g"),
        name: "m".into(),
        path: Some(PathIr::Begins(path.into())),
        methods: vec!["GET".into()],
        headers: vec![("cookie".into(), ValueIr::Search(cookie.into()))],
        query: vec![],
    };
    let backends = [("v1", 90), ("v2", 10)].map(|(name, weight)| BackendIr::new(key(name), weight, vec![(80, 80)]));
    RouteIr::split(ObjectRef::new("TrafficSplit", "shop", &format!("s{index}")), Some(vec![one]), backends.into())
}

/// A pattern that no dense automaton of any allowed size can hold.
const EXPLODING: &str = "[ab]*a[ab]{18}z";

fn delta(routes: Vec<RouteIr>) -> IrDelta {
    let mut delta = IrDelta::default();
    let service = ServiceIr {
        key: key("web"),
        addresses: vec!["10.96.0.1".parse().unwrap()],
        headless: false,
        ports: vec![ServicePortIr { port: 80, name: "http".into(), protocol: AppProtocol::Http }],
        routes,
    };
    delta.services.insert(key("web"), Some(Arc::new(service)));
    for (name, address) in [("web", "10.0.0.1:80"), ("v1", "10.0.0.1:80"), ("v2", "10.0.0.2:80")] {
        let ready = Box::new([Endpoint { address: address.parse().unwrap(), workload: None, node: None }]);
        delta.endpoints.insert((key(name), 80), Some(Arc::new(EndpointSet { ready, ..EndpointSet::default() })));
    }
    delta
}

/// One request: plan, rule, backend, endpoints.
fn look_up(handle: &mut PlanHandle, head: &RequestHead<'_>, state: &mut SplitState) -> usize {
    let Some(Destination::Service(plan)) = handle.current() else { panic!("no plan") };
    let plan = Arc::clone(plan);
    let split = plan.table("shop").route(head).rule.split().unwrap();
    let backend = split.pick(state).unwrap();
    backend.endpoints.load().ready.len() + plan.route_connection().backends.len()
}

fn steady_state_is_free(routes: Vec<RouteIr>, engine: &str) {
    let mut compiler = Compiler::default();
    let cell = Arc::new(SnapshotCell::default());
    cell.publish(compiler.apply(delta(routes)).snapshot);
    let plan = Arc::clone(&cell.load().services[&key("web")][0]);
    assert!(
        plan.routes.matcher.engine(plan.routes.matcher.len() - 1).contains(engine),
        "{}",
        plan.routes.matcher.engine(plan.routes.matcher.len() - 1)
    );
    // More threads than cores, so that they meet inside the same patterns.
    let threads = 6;
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (cell, barrier) = (Arc::clone(&cell), &barrier);
                scope.spawn(move || {
                    let mut handle = PlanHandle::new(cell, "10.96.0.1:80".parse().unwrap());
                    let mut hit = HeaderMap::new();
                    hit.append(
                        "cookie",
                        HeaderValue::from_static("a=b; usertype=tester; ababababababababababababaz=1"),
                    );
                    hit.append("cookie", HeaderValue::from_bytes(b"session=\xff\xfe").unwrap());
                    let miss = HeaderMap::new();
                    let heads = [
                        RequestHead { method: &Method::GET, path: "/api/v7/items/42", query: None, headers: &hit },
                        RequestHead {
                            method: &Method::GET,
                            path: "/aababababababababababaz",
                            query: None,
                            headers: &hit,
                        },
                        RequestHead { method: &Method::GET, path: "/nothing", query: None, headers: &miss },
                        RequestHead { method: &Method::POST, path: "/api/v1/items/1", query: None, headers: &hit },
                    ];
                    let mut states: Vec<SplitState> = heads.iter().map(|_| SplitState::default()).collect();
                    let mut work = |rounds: usize| {
                        for _ in 0..rounds {
                            for (head, state) in heads.iter().zip(&mut states) {
                                assert!(look_up(&mut handle, head, state) > 0);
                            }
                        }
                    };
                    // Caches of lazily built automata fill, and each thread visits several of them when they are contended.
                    work(2_000);
                    barrier.wait();
                    let warm = allocations(|| work(5_000));
                    assert_eq!(warm, 0, "thread {thread} allocated");
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn dense_automata_allocate_nothing() {
    let mut routes: Vec<RouteIr> =
        (0..32).map(|n| route(n, &format!("/api/v{n}/.*"), "^(.*?;)?(usertype=nobody)(;.*)?$")).collect();
    routes.push(route(32, "/api/v[0-9]+/items", "usertype=tester"));
    steady_state_is_free(routes, "dense DFA");
}

#[test]
fn engines_per_pattern_allocate_nothing() {
    let routes = vec![route(0, "/[ab]*b[ab]{20}y", EXPLODING), route(1, &format!("/{EXPLODING}"), EXPLODING)];
    steady_state_is_free(routes, "per pattern");
}

#[test]
fn an_unsplit_service_allocates_nothing() {
    let mut compiler = Compiler::default();
    let cell = Arc::new(SnapshotCell::default());
    cell.publish(compiler.apply(delta(vec![])).snapshot);
    let mut handle = PlanHandle::new(Arc::clone(&cell), "10.96.0.1:80".parse().unwrap());
    let (headers, mut state) = (HeaderMap::new(), SplitState::default());
    let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &headers };
    assert!(look_up(&mut handle, &head, &mut state) > 0);
    assert_eq!(allocations(|| (0..1000).for_each(|_| assert!(look_up(&mut handle, &head, &mut state) > 0))), 0);
    // A new generation that leaves the plan alone costs a lookup and still allocates nothing.
    cell.publish(compiler.apply(IrDelta::default()).snapshot);
    assert_eq!(allocations(|| assert!(look_up(&mut handle, &head, &mut state) > 0)), 0);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))), 1);
    let kept = vec![1u8; 100];
    assert_eq!(allocations(move || drop(kept)), 1);
}
