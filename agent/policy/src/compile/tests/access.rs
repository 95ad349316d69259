//! Inbound plans.

use super::*;
use crate::{
    inbound::{Basis, ConnectionVerdict, Source, Verdict},
    ir::{AccessIr, BindingIr, GrantIr},
    names::ServiceAccountKey,
};

fn account(name: &str) -> ServiceAccountKey {
    ServiceAccountKey::new("shop", name)
}

fn of_account(id: &str, name: &str) -> WorkloadIr {
    WorkloadIr { service_account: name.into(), ips: vec![], ..pod(id, "10.0.0.1", &[]) }
}

fn target(name: &str) -> ObjectRef {
    ObjectRef::new("TrafficTarget", "shop", name)
}

fn grant(name: &str, source: &str, path: Option<&str>) -> GrantIr {
    let matches = path.map(|path| {
        vec![MatchIr {
            origin: ObjectRef::new("HTTPRouteGroup", "shop", "group"),
            name: "m".into(),
            path: Some(PathIr::Begins(path.into())),
            methods: vec![],
            headers: vec![],
            query: vec![],
        }]
    });
    GrantIr {
        origin: target(name),
        accounts: vec![account(source)],
        workloads: vec![],
        tcp_ports: Some(vec![80]),
        udp_ports: Some(vec![53]),
        requests: matches,
    }
}

fn access(destination: &str, grants: Vec<GrantIr>) -> IrDelta {
    let selected_by = if grants.is_empty() { vec![target("broken")] } else { vec![] };
    let selected_by = grants.iter().map(|grant| grant.origin.clone()).chain(selected_by).collect();
    let access = AccessIr { account: account(destination), selected_by, grants };
    let mut delta = IrDelta::default();
    delta.access.insert(account(destination), Some(Arc::new(access)));
    delta
}

fn stance(deny: bool) -> Stance {
    Stance { deny, origin: Some(Arc::new(ObjectRef::new("Namespace", "", "shop"))) }
}

fn stances(value: Option<Stance>) -> IrDelta {
    let mut delta = IrDelta::default();
    delta.stances.insert("shop".into(), value);
    delta
}

fn plan<'a>(compiler: &'a Compiler, id: &str) -> &'a Arc<crate::inbound::InboundPlan> {
    &compiler.snapshot().inbound[&WorkloadId::new(id)]
}

fn ids(closed: &[(WorkloadId, bool)]) -> Vec<(&str, bool)> {
    closed.iter().map(|(id, closed)| (&*id.0, *closed)).collect()
}

fn world() -> Compiler {
    let mut compiler = Compiler::default();
    let pods = ["w1", "w2"].map(|id| of_account(id, "web")).into_iter().chain([of_account("c", "client")]);
    let change = pods.fold(Change::default(), Change::pod);
    assert_eq!(compiler.apply(change.0).closed, []);
    compiler
}

#[test]
fn workloads_of_one_account_share_a_plan_and_only_those_that_are_touched_get_another() {
    let mut compiler = world();
    assert!(Arc::ptr_eq(plan(&compiler, "w1"), plan(&compiler, "w2")));
    let (web, client) = (Arc::clone(plan(&compiler, "w1")), Arc::clone(plan(&compiler, "c")));
    let compiled = compiler.apply(access("web", vec![grant("t", "client", Some("/api"))]));
    assert_eq!(ids(&compiled.closed), [("w1", true), ("w2", true)]);
    assert!(Arc::ptr_eq(plan(&compiler, "w1"), plan(&compiler, "w2")));
    assert!(!Arc::ptr_eq(plan(&compiler, "w1"), &web));
    assert!(Arc::ptr_eq(plan(&compiler, "c"), &client));
    // What is new among the grants leaves the automata of the others as they are.
    let matcher = plan(&compiler, "w1").grants[0].requests.clone().unwrap();
    let grants = vec![grant("t", "other", Some("/api")), grant("u", "client", None)];
    assert_eq!(compiler.apply(access("web", grants)).closed, []);
    assert!(plan(&compiler, "w1").grants[0].requests.as_ref().unwrap().is_same(&matcher));
    let mut gone = IrDelta::default();
    gone.access.insert(account("web"), None);
    assert_eq!(ids(&compiler.apply(gone).closed), [("w1", false), ("w2", false)]);
}

#[test]
fn a_pod_that_comes_later_is_told_as_closed_and_one_that_goes_is_not_told() {
    let mut compiler = world();
    compiler.apply(access("web", vec![]));
    let compiled = compiler.apply(Change::default().pod(of_account("w3", "web")).0);
    assert_eq!(ids(&compiled.closed), [("w3", true)]);
    let compiled = compiler.apply(Change::default().no_pod("w3").0);
    assert_eq!(compiled.closed, []);
    assert!(!compiled.snapshot.inbound.contains_key(&WorkloadId::new("w3")));
    // Another account under the same UID has that account's plan.
    let compiled = compiler.apply(Change::default().pod(of_account("w1", "client")).0);
    assert_eq!(ids(&compiled.closed), [("w1", false)]);
    assert!(Arc::ptr_eq(plan(&compiler, "w1"), plan(&compiler, "c")));
}

#[test]
fn the_stance_of_the_namespace_goes_before_the_agents_and_holds_where_nothing_selects() {
    let mut compiler = world();
    let basis = |compiler: &Compiler, id: &str| plan(compiler, id).connection(None, 80);
    let namespace = Some(Arc::new(ObjectRef::new("Namespace", "", "shop")));
    assert_eq!(basis(&compiler, "c"), ConnectionVerdict::Allow(Basis::StanceAllow(None)));
    compiler.set_default_stance(Stance { deny: true, origin: None });
    let compiled = compiler.apply(IrDelta::default());
    assert_eq!(ids(&compiled.closed), [("c", true), ("w1", true), ("w2", true)]);
    assert_eq!(basis(&compiler, "c"), ConnectionVerdict::Deny(Basis::StanceDeny(None)));
    compiler.apply(stances(Some(stance(false))));
    assert_eq!(basis(&compiler, "c"), ConnectionVerdict::Allow(Basis::StanceAllow(namespace.clone())));
    let compiled = compiler.apply(access("web", vec![]));
    assert_eq!(ids(&compiled.closed), [("w1", true), ("w2", true)]);
    let selected = Arc::from([target("broken")]);
    assert_eq!(basis(&compiler, "w1"), ConnectionVerdict::Deny(Basis::Unidentified(selected)));
    assert_eq!(ids(&compiler.apply(stances(Some(stance(true)))).closed), [("c", true)]);
    assert_eq!(basis(&compiler, "c"), ConnectionVerdict::Deny(Basis::StanceDeny(namespace)));
    assert_eq!(compiler.apply(stances(None)).closed, [], "the agent's own stance denies too");
    assert_eq!(basis(&compiler, "c"), ConnectionVerdict::Deny(Basis::StanceDeny(None)));
}

#[test]
fn a_binding_adds_to_what_holds_for_the_account_of_its_pods() {
    let mut compiler = world();
    compiler.apply(access("web", vec![grant("t", "client", None)]));
    let binding = |workloads: &[&str]| {
        let origin = ObjectRef::new("IdentityBinding", "shop", "b");
        let grants = vec![GrantIr { workloads: vec![WorkloadId::new("p")], ..grant("u", "other", None) }];
        let workloads = workloads.iter().map(|id| WorkloadId::new(id)).collect();
        let mut delta = IrDelta::default();
        let binding = BindingIr { origin: origin.clone(), workloads, selected_by: vec![target("u")], grants };
        delta.bindings.insert(origin, Some(Arc::new(binding)));
        delta
    };
    assert_eq!(ids(&compiler.apply(binding(&["c", "w1"])).closed), [("c", true)]);
    let names = |compiler: &Compiler, id: &str| -> Vec<String> {
        plan(compiler, id).selected_by.iter().map(|one| one.name.to_string()).collect()
    };
    assert_eq!(names(&compiler, "w1"), ["t", "u"]);
    assert_eq!(names(&compiler, "w2"), ["t"]);
    assert_eq!(names(&compiler, "c"), ["u"]);
    let (stranger, pod) = (account("stranger"), WorkloadId::new("p"));
    let ask = |compiler: &Compiler, account: &ServiceAccountKey, workload: Option<&WorkloadId>| {
        let verdict = plan(compiler, "w1").connection(Some(Source { account, workload }), 80);
        matches!(verdict, ConnectionVerdict::Allow(_))
    };
    assert!(ask(&compiler, &account("client"), None));
    assert!(ask(&compiler, &account("other"), None));
    assert!(ask(&compiler, &stranger, Some(&pod)));
    assert!(!ask(&compiler, &stranger, None));
    assert_eq!(ids(&compiler.apply(binding(&["w1"])).closed), [("c", false)]);
    let mut gone = IrDelta::default();
    gone.bindings.insert(ObjectRef::new("IdentityBinding", "shop", "b"), None);
    compiler.apply(gone);
    assert_eq!(names(&compiler, "w1"), ["t"]);
    assert!(Arc::ptr_eq(plan(&compiler, "w1"), plan(&compiler, "w2")));
}

#[test]
fn datagrams_need_a_grant_of_their_own() {
    let mut compiler = world();
    compiler.apply(access("web", vec![grant("t", "client", None)]));
    let source = account("client");
    let known = Some(Source { account: &source, workload: None });
    for (source, port, allowed) in [(known, 53, true), (known, 80, false), (None, 53, false)] {
        assert_eq!(matches!(plan(&compiler, "w1").udp(source, port), Verdict::Allow(_)), allowed, "{source:?} {port}");
    }
    assert!(matches!(plan(&compiler, "c").udp(None, 53), Verdict::Allow(_)));
}

#[test]
fn open_is_refused_for_a_pod_that_is_denied_by_default_and_patterns_that_fail_are_told() {
    let mut compiler = world();
    let by = ObjectRef::new("Pod", "shop", "w1");
    compiler.apply(Change::default().pod(WorkloadIr { fail_open_by: Some(by.clone()), ..of_account("w1", "web") }).0);
    let told = |compiler: &Compiler| -> Vec<(ObjectRef, &'static str)> {
        compiler.diagnostics().into_iter().map(|one| (one.object, one.code)).collect()
    };
    assert_eq!(told(&compiler), []);
    compiler.apply(access("web", vec![]));
    assert_eq!(told(&compiler), [(by.clone(), "FailModeRefused")]);
    compiler.apply(access("web", vec![grant("t", "client", Some("("))]));
    let group = ObjectRef::new("HTTPRouteGroup", "shop", "group");
    assert_eq!(told(&compiler), [(group, "InvalidMatch"), (by, "FailModeRefused")]);
}
