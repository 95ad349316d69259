use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Method};

use super::*;
use crate::{
    endpoints::{Endpoint, EndpointSet},
    ir::{BackendIr, FailMode, MatchIr, PathIr, RouteIr, ServicePortIr, ValueIr, WorkloadState},
    matcher::RequestHead,
    names::ObjectRef,
    plan::{AppProtocol, Destination},
    rule::{Action, ActionIr, Refusal, RuleIr},
    split::{NoBackend, SplitState},
};

mod access;
mod peers;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name)
}

fn service(name: &str, ip: Option<&str>) -> ServiceIr {
    ServiceIr {
        key: key(name),
        addresses: ip.iter().map(|ip| ip.parse().unwrap()).collect(),
        headless: ip.is_none(),
        ports: vec![port(80, AppProtocol::Http)],
        routes: vec![],
    }
}

fn port(port: u16, protocol: AppProtocol) -> ServicePortIr {
    ServicePortIr { port, name: format!("p{port}").into(), protocol }
}

fn route(name: &str, cookie: Option<&str>, backends: &[(&str, u64)]) -> RouteIr {
    let origin = ObjectRef::new("TrafficSplit", "shop", name);
    let matches = cookie.map(|regex| {
        vec![MatchIr {
            origin: ObjectRef::new("HTTPRouteGroup", "shop", "group"),
            name: "m".into(),
            path: None,
            methods: vec![],
            headers: vec![("cookie".into(), ValueIr::Search(regex.into()))],
            query: vec![],
        }]
    });
    let backends = backends.iter().map(|&(name, weight)| BackendIr::new(key(name), weight, vec![(80, 80)])).collect();
    RouteIr::split(origin, matches, backends)
}

fn endpoints(addresses: &[&str]) -> Arc<EndpointSet> {
    let ready =
        addresses.iter().map(|address| Endpoint { address: address.parse().unwrap(), workload: None, node: None });
    Arc::new(EndpointSet { ready: ready.collect(), ..EndpointSet::default() })
}

fn pod(id: &str, ip: &str, serves: &[(&str, u16, u16)]) -> WorkloadIr {
    WorkloadIr {
        id: WorkloadId::new(id),
        namespace: "shop".into(),
        name: id.into(),
        owner: "web".into(),
        service_account: "default".into(),
        node: "n1".into(),
        ips: vec![ip.parse().unwrap()],
        host_network: false,
        state: WorkloadState::Ready,
        meshed: true,
        fail_mode: FailMode::Open,
        fail_open_by: None,
        netns: None,
        cgroup: None,
        serves: serves.iter().map(|&(service, port, target)| (key(service), port, target)).collect(),
        udp_ports: Vec::new(),
    }
}

#[derive(Default)]
struct Change(IrDelta);

impl Change {
    fn service(mut self, service: ServiceIr) -> Self {
        self.0.services.insert(service.key.clone(), Some(Arc::new(service)));
        self
    }

    fn no_service(mut self, name: &str) -> Self {
        self.0.services.insert(key(name), None);
        self
    }

    fn endpoints(mut self, name: &str, addresses: &[&str]) -> Self {
        self.0.endpoints.insert((key(name), 80), Some(endpoints(addresses)));
        self
    }

    fn no_endpoints(mut self, name: &str) -> Self {
        self.0.endpoints.insert((key(name), 80), None);
        self
    }

    fn pod(mut self, pod: WorkloadIr) -> Self {
        self.0.workloads.insert(pod.id.clone(), Some(Arc::new(pod)));
        self
    }

    fn no_pod(mut self, id: &str) -> Self {
        self.0.workloads.insert(WorkloadId::new(id), None);
        self
    }

    fn to(self, compiler: &mut Compiler) -> Compiled {
        compiler.apply(self.0)
    }
}

fn shop() -> Change {
    Change::default()
        .service(service("web", Some("10.96.0.1")))
        .service(service("v1", Some("10.96.0.2")))
        .service(service("v2", Some("10.96.0.3")))
        .endpoints("web", &["10.0.0.1:8080"])
        .endpoints("v1", &["10.0.0.1:8080"])
        .endpoints("v2", &["10.0.0.2:8080"])
}

fn plan(compiled: &Compiled, name: &str) -> Arc<OutboundPlan> {
    Arc::clone(&compiled.snapshot.services[&key(name)][0])
}

fn reach(compiled: &Compiled) -> Vec<(String, Option<Reach>)> {
    let show = |address: &CaptureAddr| match address.port {
        Some(port) => format!("{}:{port}", address.ip),
        None => address.ip.to_string(),
    };
    compiled.reach.iter().map(|(address, reach)| (show(address), *reach)).collect()
}

fn backend(plan: &OutboundPlan, cookie: &str) -> Result<String, NoBackend> {
    let mut headers = HeaderMap::new();
    headers.insert("cookie", HeaderValue::from_str(cookie).unwrap());
    let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &headers };
    plan.table("shop")
        .route(&head)
        .rule
        .split()
        .unwrap()
        .pick(&mut SplitState::default())
        .map(|backend| backend.service.name.to_string())
}

#[test]
fn requests_go_where_the_first_matching_split_says() {
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("cookie", Some("usertype=tester"), &[("v2", 1)]), route("rest", None, &[("v1", 1)])];
    let compiled = shop().service(web.clone()).to(&mut Compiler::default());
    let found = plan(&compiled, "web");
    assert_eq!(backend(&found, "usertype=tester"), Ok("v2".into()));
    assert_eq!(backend(&found, "other"), Ok("v1".into()));
    assert_eq!(found.route_connection().origin.name, "rest".into(), "opaque connections meet no match");
    web.routes.pop();
    let compiled = shop().service(web).to(&mut Compiler::default());
    assert_eq!(backend(&plan(&compiled, "web"), "other"), Ok("web".into()), "the root's own endpoints");
    assert_eq!(
        backend(&plan(&compiled, "v1"), "usertype=tester"),
        Ok("v1".into()),
        "a backend's own name is not split"
    );
}

#[test]
fn a_route_without_a_backend_for_a_port_answers_split_zero() {
    let mut web = service("web", Some("10.96.0.1"));
    web.ports.push(port(90, AppProtocol::Tcp));
    web.routes = vec![route("rest", None, &[("v1", 1)])];
    let compiled = shop().service(web).to(&mut Compiler::default());
    let plans = &compiled.snapshot.services[&key("web")];
    assert_eq!(backend(&plans[0], ""), Ok("v1".into()));
    assert_eq!(backend(&plans[1], ""), Err(NoBackend::SplitZero));
    assert_eq!((plans[1].port, plans[1].protocol), (90, AppProtocol::Tcp));
}

#[test]
fn only_touched_services_are_compiled() {
    let mut compiler = Compiler::default();
    let first = shop().to(&mut compiler);
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("rest", None, &[("v1", 9), ("v2", 1)])];
    let second = Change::default().service(web).to(&mut compiler);
    assert!(!Arc::ptr_eq(&plan(&first, "web"), &plan(&second, "web")));
    for name in ["v1", "v2"] {
        assert!(Arc::ptr_eq(&first.snapshot.services[&key(name)], &second.snapshot.services[&key(name)]));
    }
    let address: SocketAddr = "10.96.0.2:80".parse().unwrap();
    assert!(Arc::ptr_eq(&first.snapshot.addresses[&address], &second.snapshot.addresses[&address]));
    assert_eq!(second.snapshot.generation.0, first.snapshot.generation.0 + 1);
}

#[test]
fn endpoint_churn_compiles_nothing() {
    let mut compiler = Compiler::default();
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("rest", None, &[("v1", 1)])];
    let first = shop().service(web).to(&mut compiler);
    let second = Change::default().endpoints("v1", &["10.0.0.7:8080", "10.0.0.8:8080"]).to(&mut compiler);
    for name in ["web", "v1", "v2"] {
        assert!(Arc::ptr_eq(&first.snapshot.services[&key(name)], &second.snapshot.services[&key(name)]));
    }
    assert_eq!(reach(&second), []);
    let web = plan(&first, "web");
    assert_eq!(web.connection.backends[0].endpoints.load().ready.len(), 2, "plans of before see it too");
    assert!(Arc::ptr_eq(&web.connection.backends[0].endpoints, &plan(&first, "v1").connection.backends[0].endpoints));
}

#[test]
fn what_comes_out_the_same_is_the_same() {
    let mut compiler = Compiler::default();
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("cookie", Some("x"), &[("v2", 1)]), route("rest", None, &[("v1", 9), ("v2", 1)])];
    let first = shop().service(web.clone()).to(&mut compiler);
    // A change of something that plans do not hold: an address.
    web.addresses.push("192.0.2.1".parse().unwrap());
    let second = Change::default().service(web.clone()).to(&mut compiler);
    assert!(Arc::ptr_eq(&plan(&first, "web"), &plan(&second, "web")));
    // New weights: the other split keeps its progress, and no automaton is built again.
    web.routes[1] = route("rest", None, &[("v1", 8), ("v2", 2)]);
    let third = Change::default().service(web.clone()).to(&mut compiler);
    let (before, after) = (plan(&second, "web"), plan(&third, "web"));
    assert!(
        Arc::ptr_eq(&before.routes.matched[0].rule, &after.routes.matched[0].rule)
            && !Arc::ptr_eq(&before.routes.otherwise, &after.routes.otherwise)
    );
    assert!(before.routes.matcher.is_same(&after.routes.matcher));
    // New matches.
    web.routes[0] = route("cookie", Some("y"), &[("v2", 1)]);
    let fourth = Change::default().service(web).to(&mut compiler);
    assert!(!after.routes.matcher.is_same(&plan(&fourth, "web").routes.matcher));
    assert_eq!(backend(&plan(&fourth, "web"), "y"), Ok("v2".into()));
}

#[test]
fn a_backend_may_get_its_endpoints_later() {
    let mut compiler = Compiler::default();
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("rest", None, &[("v2", 1)])];
    let compiled = Change::default().service(web).endpoints("web", &["10.0.0.1:80"]).to(&mut compiler);
    assert_eq!(backend(&plan(&compiled, "web"), ""), Err(NoBackend::NoEndpoints));
    assert_eq!(reach(&compiled), [("10.96.0.1:80".into(), Some(Reach::Refuse))]);
    let later = Change::default().endpoints("v2", &["10.0.0.2:80"]).to(&mut compiler);
    assert_eq!(backend(&plan(&compiled, "web"), ""), Ok("v2".into()));
    assert_eq!(
        reach(&later),
        [("10.96.0.1:80".into(), Some(Reach::Proxy))],
        "told to the Service that only has it as a backend"
    );
    let gone = Change::default().no_endpoints("v2").to(&mut compiler);
    assert_eq!(reach(&gone), [("10.96.0.1:80".into(), Some(Reach::Refuse))]);
}

#[test]
fn reach_follows_services_and_pods() {
    let mut compiler = Compiler::default();
    let all = shop().pod(pod("p1", "10.0.0.1", &[])).to(&mut compiler);
    assert_eq!(
        reach(&all),
        [
            ("10.0.0.1".into(), Some(Reach::Proxy)),
            ("10.96.0.1:80".into(), Some(Reach::Proxy)),
            ("10.96.0.2:80".into(), Some(Reach::Proxy)),
            ("10.96.0.3:80".into(), Some(Reach::Proxy)),
        ]
    );
    let gone = Change::default().no_service("web").no_pod("p1").endpoints("v1", &[]).to(&mut compiler);
    assert_eq!(
        reach(&gone),
        [("10.0.0.1".into(), None), ("10.96.0.1:80".into(), None), ("10.96.0.2:80".into(), Some(Reach::Refuse))]
    );
    assert!(gone.snapshot.destination("10.96.0.1:80".parse().unwrap()).is_none());
    assert!(gone.snapshot.destination("10.0.0.1:80".parse().unwrap()).is_none());
}

#[test]
fn a_weight_of_zero_is_no_way_to_be_reached() {
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("rest", None, &[("v1", 0), ("gone", 1)])];
    let compiled = shop().service(web).to(&mut Compiler::default());
    assert!(reach(&compiled).contains(&("10.96.0.1:80".into(), Some(Reach::Refuse))));
}

#[test]
fn two_services_with_one_address_are_told_and_the_first_by_name_has_it() {
    let mut compiler = Compiler::default();
    let address: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let second =
        Change::default().service(service("b", Some("10.96.0.1"))).endpoints("b", &["10.0.0.1:80"]).to(&mut compiler);
    assert_eq!(*second.snapshot.addresses[&address].service.name, *"b");
    assert_eq!(compiler.diagnostics(), []);
    let both = Change::default().service(service("a", Some("10.96.0.1"))).to(&mut compiler);
    assert_eq!(*both.snapshot.addresses[&address].service.name, *"a");
    assert_eq!(reach(&both), [("10.96.0.1:80".into(), Some(Reach::Refuse))]);
    let found = compiler.diagnostics();
    assert_eq!(
        (found.len(), found[0].object.to_string(), found[0].code),
        (1, "Service shop/b".into(), "AddressConflict")
    );
    let back = Change::default().no_service("a").to(&mut compiler);
    assert_eq!(*back.snapshot.addresses[&address].service.name, *"b");
    assert_eq!(compiler.diagnostics(), []);
}

#[test]
fn two_pods_with_one_address_are_told_and_the_more_alive_has_it() {
    let state = |id: &str, state| WorkloadIr { state, ..pod(id, "10.0.0.1", &[]) };
    for (first, second, owner, conflicts) in [
        (WorkloadState::Ready, WorkloadState::Ready, Some("a"), 1),
        (WorkloadState::NotReady, WorkloadState::Ready, Some("b"), 1),
        (WorkloadState::NotReady, WorkloadState::NotReady, Some("a"), 1),
        (WorkloadState::Ended, WorkloadState::NotReady, Some("b"), 0),
        (WorkloadState::Ended, WorkloadState::Ended, None, 0),
    ] {
        for flipped in [false, true] {
            let mut compiler = Compiler::default();
            let mut pods = vec![state("a", first), state("b", second)];
            if flipped {
                pods.reverse();
            }
            let mut last = None;
            for pod in pods {
                last = Some(Change::default().pod(pod).to(&mut compiler));
            }
            let snapshot = last.unwrap().snapshot;
            let found = snapshot.pods.get(&"10.0.0.1".parse().unwrap()).map(|plan| plan.workload.to_string());
            assert_eq!(found.as_deref(), owner, "{first:?} {second:?}");
            assert_eq!(compiler.diagnostics().len(), conflicts, "{first:?} {second:?}");
        }
    }
}

#[test]
fn host_network_pods_do_not_stand_for_their_nodes_address() {
    let host = WorkloadIr { host_network: true, ..pod("p", "10.0.0.1", &[]) };
    let compiled = Change::default().pod(host).to(&mut Compiler::default());
    assert!(compiled.snapshot.pods.is_empty() && compiled.reach.is_empty());
    assert!(compiled.snapshot.inbound.contains_key(&WorkloadId::new("p")));
}

#[test]
fn pod_plans_follow_the_services_that_the_pod_serves() {
    let mut compiler = Compiler::default();
    let mut named = service("named", None);
    let first = shop()
        .service(named.clone())
        .pod(pod("p1", "10.0.0.1", &[("web", 80, 8080), ("named", 80, 8080)]))
        .pod(pod("p2", "10.0.0.2", &[("v2", 80, 8080)]))
        .to(&mut compiler);
    let of = |compiled: &Compiled, address: &str| match compiled.snapshot.destination(address.parse().unwrap()) {
        Some(Destination::Pod(plan)) => plan,
        other => panic!("{other:?}"),
    };
    let p1 = of(&first, "10.0.0.1:8080");
    assert_eq!((p1.protocol(8080), p1.protocol(1)), (AppProtocol::Http, AppProtocol::Detect));
    let headless = p1.headless(8080, "named.shop.svc.cluster.local:8080").unwrap();
    assert!(Arc::ptr_eq(headless, &plan(&first, "named")));
    assert!(p1.headless(8080, "web").is_none(), "only headless Services are known by Host");
    named.routes = vec![route("rest", None, &[("v1", 1)])];
    let second = Change::default().service(named).to(&mut compiler);
    assert!(Arc::ptr_eq(of(&second, "10.0.0.1:1").headless(8080, "named").unwrap(), &plan(&second, "named")));
    assert!(Arc::ptr_eq(&of(&first, "10.0.0.2:1"), &of(&second, "10.0.0.2:1")), "pods of other Services are untouched");
    let third = Change::default().no_service("named").to(&mut compiler);
    assert!(of(&third, "10.0.0.1:1").headless(8080, "named").is_none());
}

#[test]
fn cells_go_with_the_last_that_needs_them() {
    let mut compiler = Compiler::default();
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("rest", None, &[("gone", 1)])];
    let _ = shop().service(web).to(&mut compiler);
    assert_eq!(compiler.cells.len(), 4);
    let _ = Change::default().service(service("web", Some("10.96.0.1"))).to(&mut compiler);
    assert_eq!(compiler.cells.len(), 3);
    let _ = Change::default()
        .no_service("web")
        .no_service("v1")
        .no_service("v2")
        .no_endpoints("web")
        .no_endpoints("v1")
        .no_endpoints("v2")
        .to(&mut compiler);
    assert_eq!(compiler.cells.len(), 0);
    assert_eq!(compiler.snapshot().describe().services.len(), 0);
}

#[test]
fn an_automaton_over_its_limit_is_a_finding_and_matches_nothing() {
    let mut web = service("web", Some("10.96.0.1"));
    web.routes = vec![route("cookie", Some("(?:a{1000}){1000}"), &[("v2", 1)])];
    let mut compiler = Compiler::default();
    let compiled = shop().service(web.clone()).to(&mut compiler);
    assert_eq!(backend(&plan(&compiled, "web"), "aaa"), Ok("web".into()));
    let found = compiler.diagnostics();
    assert_eq!((found[0].code, found[0].field.as_str()), ("InvalidMatch", "matches[m].headers.cookie"));
    assert_eq!(found[0].object.to_string(), "HTTPRouteGroup shop/group");
    // It stays found when only weights change, and goes with its cause.
    web.routes = vec![route("cookie", Some("(?:a{1000}){1000}"), &[("v2", 2)])];
    let _ = Change::default().service(web).to(&mut compiler);
    assert_eq!(compiler.diagnostics().len(), 1);
    let _ = Change::default().service(service("web", Some("10.96.0.1"))).to(&mut compiler);
    assert_eq!(compiler.diagnostics(), []);
}

#[test]
fn rules_read_well() {
    let mut web = service("web", Some("10.96.0.1"));
    let cookie = "^(.*?;)?(usertype=tester)(;.*)?$";
    web.routes =
        vec![route("cookie-canary", Some(cookie), &[("v2", 1)]), route("rest", None, &[("v1", 90), ("v2", 10)])];
    let compiled = shop().service(web).to(&mut Compiler::default());
    let plan = plan(&compiled, "web");
    let lines: Vec<String> = plan
        .rules()
        .map(|rule| {
            let shares: Vec<String> = rule
                .rule
                .split()
                .unwrap()
                .shares()
                .map(|(one, share)| format!("{}:{share}%", one.service.name))
                .collect();
            format!("{}  {}  {}", rule.origin().name, rule.match_text(), shares.join(" "))
        })
        .collect();
    assert_eq!(
        lines,
        [
            r#"cookie-canary  header cookie ~ "^(.*?;)?(usertype=tester)(;.*)?$"  v2:100%"#,
            "rest  everything else  v1:90% v2:10%",
        ]
    );
}

/// The rule of an HTTPRoute.
fn http_rule(name: &str, action: ActionIr) -> Arc<RuleIr> {
    let origin = ObjectRef::new("HTTPRoute", "shop", "web");
    Arc::new(RuleIr { origin, name: name.into(), action, filters: None, mirrors: Vec::new() })
}

fn forward(backends: &[(&str, u64)]) -> ActionIr {
    let backends = backends.iter().map(|&(name, weight)| BackendIr::new(key(name), weight, vec![(80, 80)])).collect();
    ActionIr::Forward { backends, keeps_shares: true }
}

fn http_route(rule: &Arc<RuleIr>, path: Option<PathIr>) -> RouteIr {
    let matches = path.map(|path| vec![MatchIr { path: Some(path), ..MatchIr::any(rule.origin.clone(), "m") }]);
    RouteIr { matches, ports: None, clients: None, requests_only: true, rule: Arc::clone(rule) }
}

fn taken(plan: &OutboundPlan, clients: &str, path: &str) -> (String, Option<String>) {
    let headers = HeaderMap::new();
    let head = RequestHead { method: &Method::GET, path, query: None, headers: &headers };
    let routed = plan.table(clients).route(&head);
    (routed.rule.name(), routed.prefix.map(ToString::to_string))
}

#[test]
fn matches_of_one_rule_share_it_and_tell_the_prefix_that_was_matched() {
    let mut web = service("web", Some("10.96.0.1"));
    let (api, none) = (http_rule("api", forward(&[("v1", 1)])), http_rule("", ActionIr::Refuse(Refusal::NoRoute)));
    web.routes = vec![
        http_route(&api, Some(PathIr::Prefix("/a".into()))),
        http_route(&api, Some(PathIr::Exact("/b".into()))),
        http_route(&none, None),
    ];
    let plan = plan(&shop().service(web).to(&mut Compiler::default()), "web");
    assert_eq!(taken(&plan, "shop", "/a/x"), ("HTTPRoute shop/web, api".into(), Some("/a".into())));
    assert_eq!(taken(&plan, "shop", "/b"), ("HTTPRoute shop/web, api".into(), None));
    assert!(Arc::ptr_eq(&plan.routes.matched[0].rule, &plan.routes.matched[1].rule));
    assert!(matches!(plan.routes.otherwise.action, Action::Refuse(Refusal::NoRoute)));
    // Routes for requests leave connections of bytes to the Service itself.
    assert_eq!(plan.route_connection().origin.to_string(), "Service shop/web");
}

#[test]
fn routes_may_be_for_one_port_or_for_the_clients_of_one_namespace() {
    let mut web = service("web", Some("10.96.0.1"));
    web.ports.push(port(81, AppProtocol::Http));
    let (own, theirs) = (http_rule("own", forward(&[("v1", 1)])), http_rule("theirs", forward(&[("v2", 1)])));
    let any = PathIr::Prefix("".into());
    web.routes = vec![
        RouteIr { ports: Some(vec![80]), ..http_route(&own, Some(any.clone())) },
        RouteIr { clients: Some("lab".into()), ..http_route(&theirs, Some(any)) },
    ];
    let compiled = shop().service(web).to(&mut Compiler::default());
    let plans = &compiled.snapshot.services[&key("web")];
    assert_eq!(taken(&plans[0], "shop", "/").0, "HTTPRoute shop/web, own");
    assert_eq!(taken(&plans[1], "shop", "/").0, "Service shop/web");
    for plan in plans.iter() {
        assert_eq!(taken(plan, "lab", "/").0, "HTTPRoute shop/web, theirs");
    }
}

#[test]
fn what_did_not_change_of_routes_is_the_very_object_that_it_was() {
    let (api, other) = (http_rule("api", forward(&[("v1", 1), ("v2", 1)])), http_rule("other", forward(&[("v1", 1)])));
    let mut web = service("web", Some("10.96.0.1"));
    web.routes =
        vec![http_route(&api, Some(PathIr::Exact("/a".into()))), http_route(&other, Some(PathIr::Exact("/b".into())))];
    let mut compiler = Compiler::default();
    let before = plan(&shop().service(web.clone()).to(&mut compiler), "web");
    // The same rule, lowered anew; and one that changed.
    let (api, other) = (http_rule("api", forward(&[("v1", 1), ("v2", 1)])), http_rule("other", forward(&[("v2", 1)])));
    web.routes[0].rule = api;
    web.routes[1].rule = other;
    let after = plan(&Change::default().service(web).to(&mut compiler), "web");
    assert!(after.routes.matcher.is_same(&before.routes.matcher));
    assert!(Arc::ptr_eq(&before.routes.matched[0].rule, &after.routes.matched[0].rule));
    assert!(!Arc::ptr_eq(&before.routes.matched[1].rule, &after.routes.matched[1].rule));
}
