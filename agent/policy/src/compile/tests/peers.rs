//! Pods of other nodes, and namespaces that refuse plaintext.

use super::*;
use crate::{
    inbound::Mtls,
    ir::PeerIr,
    names::{ServiceAccountKey, WorkloadId},
    peer::Peer,
};

fn peer(id: &str, ip: &str, serves: &[(&str, u16, u16)]) -> PeerIr {
    PeerIr {
        origin: ObjectRef::new("NodeWorkloads", "", "n2-0"),
        peer: Arc::new(Peer {
            workload: WorkloadId::new(id),
            account: ServiceAccountKey::new("shop", "web"),
            node: "n2".into(),
            addresses: [ip.parse().unwrap()].into(),
            namespace: "shop".into(),
            name: id.into(),
        }),
        serves: serves.iter().map(|&(service, port, target)| (key(service), port, target)).collect(),
    }
}

fn published(id: &str, peer: Option<PeerIr>) -> IrDelta {
    let mut delta = IrDelta::default();
    delta.peers.insert(WorkloadId::new(id), peer.map(Arc::new));
    delta
}

fn owner(compiled: &Compiled, ip: &str) -> Option<String> {
    compiled.snapshot.pods.get(&ip.parse::<IpAddr>().unwrap()).map(|plan| plan.workload.to_string())
}

fn findings(compiler: &Compiler) -> Vec<(String, &'static str)> {
    compiler.diagnostics().into_iter().map(|one| (one.object.to_string(), one.code)).collect()
}

#[test]
fn a_published_pod_is_a_destination_by_its_address_and_named_as_a_peer() {
    let mut compiler = Compiler::default();
    shop().to(&mut compiler);
    let headless = ServiceIr { addresses: vec![], ..service("db", None) };
    compiler.apply(published("p1", Some(peer("p1", "10.0.2.1", &[("db", 80, 5432)]))));
    let compiled = Change::default().service(headless).to(&mut compiler);
    // The Service came after the pod: its plan is the pod's, too.
    let plan = &compiled.snapshot.pods[&"10.0.2.1".parse::<IpAddr>().unwrap()];
    assert_eq!((plan.protocol(5432), plan.node.as_deref()), (AppProtocol::Http, Some("n2")));
    assert!(plan.headless(5432, "db").is_some());
    assert_eq!(&*compiled.snapshot.peers[&WorkloadId::new("p1")].node, "n2");
    let compiled = compiler.apply(published("p1", Some(peer("p1", "10.0.2.9", &[]))));
    assert_eq!(reach(&compiled), [("10.0.2.1".into(), None), ("10.0.2.9".into(), Some(Reach::Proxy))]);
    let compiled = compiler.apply(published("p1", None));
    assert_eq!(reach(&compiled), [("10.0.2.9".into(), None)]);
    assert!(compiled.snapshot.peers.is_empty() && compiled.snapshot.pods.is_empty());
}

#[test]
fn an_address_is_the_known_pods_before_a_published_one_that_serves_before_any_other() {
    let mut compiler = Compiler::default();
    shop().to(&mut compiler);
    let compiled = compiler.apply(published("a", Some(peer("a", "10.0.0.7", &[]))));
    assert_eq!(owner(&compiled, "10.0.0.7").as_deref(), Some("a"));
    let compiled = compiler.apply(published("b", Some(peer("b", "10.0.0.7", &[("web", 80, 8080)]))));
    assert_eq!(owner(&compiled, "10.0.0.7").as_deref(), Some("b"));
    assert_eq!(findings(&compiler), [("NodeWorkloads n2-0".to_owned(), "DuplicatePodIP")]);
    let compiled = Change::default().pod(pod("own", "10.0.0.7", &[])).to(&mut compiler);
    assert_eq!(owner(&compiled, "10.0.0.7").as_deref(), Some("own"));
    assert_eq!(findings(&compiler).len(), 2, "both claim it in vain");
    assert_eq!(compiled.snapshot.peers.len(), 2, "that they take mutual TLS is no matter of addresses");
    let compiled = Change::default().no_pod("own").to(&mut compiler);
    assert_eq!(owner(&compiled, "10.0.0.7").as_deref(), Some("b"));
    let compiled = compiler.apply(published("b", None));
    assert_eq!(owner(&compiled, "10.0.0.7").as_deref(), Some("a"));
    assert_eq!(findings(&compiler), []);
}

#[test]
fn a_pod_that_is_known_and_published_is_one_pod() {
    let mut compiler = Compiler::default();
    Change::default().pod(pod("own", "10.0.0.7", &[])).to(&mut compiler);
    let compiled = compiler.apply(published("own", Some(peer("own", "10.0.0.7", &[]))));
    assert_eq!((reach(&compiled), findings(&compiler)), (vec![], vec![]));
    let compiled = Change::default().no_pod("own").to(&mut compiler);
    assert_eq!(owner(&compiled, "10.0.0.7").as_deref(), Some("own"), "its publication outlives it by a moment");
}

#[test]
fn a_namespace_that_refuses_plaintext_closes_its_pods_and_those_alone() {
    let mut compiler = Compiler::default();
    let elsewhere = WorkloadIr { namespace: "else".into(), ..pod("e", "10.0.0.8", &[]) };
    Change::default().pod(pod("p", "10.0.0.7", &[])).pod(elsewhere).to(&mut compiler);
    let says = |by: Option<ObjectRef>| {
        let mut delta = IrDelta::default();
        delta.strict.insert("shop".into(), by);
        delta
    };
    let shop = ObjectRef::new("Namespace", "", "shop");
    let compiled = compiler.apply(says(Some(shop.clone())));
    assert_eq!(compiled.closed, [(WorkloadId::new("p"), true)]);
    assert_eq!(compiled.snapshot.inbound[&WorkloadId::new("p")].mtls, Mtls::Strict(shop.clone()));
    assert_eq!(compiled.snapshot.strict.get("shop"), Some(&shop));
    // One that is new there is closed from the beginning.
    let compiled = Change::default().pod(pod("q", "10.0.0.9", &[])).to(&mut compiler);
    assert_eq!(compiled.closed, [(WorkloadId::new("q"), true)]);
    let compiled = compiler.apply(says(None));
    assert_eq!(compiled.closed, [(WorkloadId::new("p"), false), (WorkloadId::new("q"), false)]);
    assert!(compiled.snapshot.strict.is_empty());
    let mut open = pod("r", "10.0.0.10", &[]);
    open.fail_open_by = Some(ObjectRef::new("Pod", "shop", "r"));
    Change::default().pod(open).to(&mut compiler);
    assert_eq!(findings(&compiler), []);
    compiler.apply(says(Some(shop)));
    assert_eq!(findings(&compiler), [("Pod shop/r".to_owned(), "FailModeRefused")]);
}
