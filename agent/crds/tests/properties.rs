//! What holds for every history of objects: the order of events does not matter, a change leads where starting over would lead,
//! and nothing that a document can say makes lowering or compilation panic.

#![allow(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_crds::{
    lower::{lower, lower_all},
    object::{Kind, Object, ObjectKey},
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::{CaptureAddr, Compiler, Reach},
    diagnostic::Diagnostic,
    ir::IrDelta,
    names::WorkloadId,
    plan::OutboundPlan,
    view::SnapshotView,
};

const SPLIT_VERSIONS: [&str; 3] = ["v1alpha2", "v1alpha3", "v1alpha4"];

fn pick(values: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    proptest::sample::select(values)
}

fn name(prefix: &'static str, count: usize) -> impl Strategy<Value = String> + Clone {
    (0..count).prop_map(move |n| format!("{prefix}{n}"))
}

fn namespace_name() -> impl Strategy<Value = &'static str> + Clone {
    prop_oneof![4 => Just("shop"), 1 => Just("else")]
}

fn ip() -> impl Strategy<Value = String> + Clone {
    prop_oneof![4 => (1u8..5).prop_map(|n| format!("10.0.0.{n}")), 1 => (1u8..3).prop_map(|n| format!("fd00::{n}"))]
}

fn time() -> impl Strategy<Value = Value> + Clone {
    prop_oneof![2 => Just(Value::Null), 1 => (1u8..4).prop_map(|n| json!(format!("2026-01-0{n}T00:00:00Z")))]
}

fn namespace() -> impl Strategy<Value = Value> {
    let labels =
        (pick(&["enabled", "disabled", "x"]), pick(&["open", "closed", "x"]), pick(&["allow", "deny", "x", ""]));
    (namespace_name(), labels, pick(&["permissive", "strict", "x", ""])).prop_map(
        |(name, (mesh, fail, default), mtls)| {
            let mut labels = json!({"weft.dev/mesh": mesh, "weft.dev/fail-mode": fail});
            if !mtls.is_empty() {
                labels["weft.dev/mtls"] = json!(mtls);
            }
            if !default.is_empty() {
                labels["weft.dev/default"] = json!(default);
            }
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        },
    )
}

fn pod() -> impl Strategy<Value = Value> {
    let identity = (namespace_name(), name("p", 4), proptest::option::weighted(0.5, name("u", 3)));
    let labels = (pick(&["web", "v1", "v2"]), pick(&["open", "closed", "x"]), any::<bool>());
    let ips = proptest::collection::vec(ip(), 0..3);
    let status =
        (pick(&["Running", "Pending", "Succeeded"]), pick(&["True", "False", "none"]), proptest::bool::weighted(0.2));
    (identity, labels, ips, status, (proptest::bool::weighted(0.1), pick(&["sa", "sb"]))).prop_map(
        |((namespace, name, uid), (app, fail, named), ips, (phase, ready, deleting), (host, account))| {
            let ips: Vec<Value> = ips.into_iter().map(|ip| json!({"ip": ip})).collect();
            let conditions = if ready == "none" { json!([]) } else { json!([{"type": "Ready", "status": ready}]) };
            let ports = if named { json!([{"name": "main", "containerPort": 9000}]) } else { json!([]) };
            json!({"apiVersion": "v1", "kind": "Pod",
                   "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": {"app": app, "weft.dev/fail-mode": fail},
                                "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z")},
                   "spec": {"nodeName": "n1", "serviceAccountName": account, "hostNetwork": host, "containers": [{"name": "c", "ports": ports}]},
                   "status": {"phase": phase, "podIPs": ips, "conditions": conditions}})
        },
    )
}

fn service() -> impl Strategy<Value = Value> {
    let ports = proptest::sample::subsequence(
        vec![(80, "http", "8080"), (81, "tcp", "main"), (90, "x", "90"), (53, "dns", "5353")],
        0..=4,
    );
    let cluster_ip = pick(&["10.96.0.1", "10.96.0.2", "fd96::1", "None", ""]);
    let balance = pick(&["round-robin", "least-request", "x"]);
    let kind = prop_oneof![6 => Just("ClusterIP"), 1 => Just("ExternalName")];
    (namespace_name(), pick(&["web", "v1", "v2"]), pick(&["web", "v1", "none"]), ports, cluster_ip, balance, kind, any::<bool>()).prop_map(
        |(namespace, name, app, ports, cluster_ip, balance, kind, publish)| {
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(port, name, target)| {
                    let target = target.parse::<u16>().map_or_else(|_| json!(target), |number| json!(number));
                    let protocol = if name == "dns" { "UDP" } else { "TCP" };
                    json!({"port": port, "name": name, "targetPort": target, "protocol": protocol})
                })
                .collect();
            let selector = if app == "none" { json!({}) } else { json!({"app": app}) };
            json!({"apiVersion": "v1", "kind": "Service",
                   "metadata": {"name": name, "namespace": namespace, "annotations": {"weft.dev/load-balancing": balance}},
                   "spec": {"clusterIP": cluster_ip, "selector": selector, "ports": ports, "type": kind, "publishNotReadyAddresses": publish}})
        },
    )
}

fn slice() -> impl Strategy<Value = Value> {
    let target = prop_oneof![
        Just(Value::Null),
        (name("p", 4), proptest::option::of(name("u", 3)))
            .prop_map(|(name, uid)| json!({"kind": "Pod", "name": name, "uid": uid})),
    ];
    let node = prop_oneof![2 => Just(Value::Null), 1 => pick(&["n1", "n2"]).prop_map(Value::from)];
    let endpoint =
        (1u8..5, any::<[bool; 3]>(), target, node).prop_map(|(ip, [ready, serving, terminating], target, node)| {
            json!({"addresses": [format!("10.0.0.{ip}")], "targetRef": target, "nodeName": node,
               "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        });
    (namespace_name(), name("s", 2), pick(&["web", "v1"]), proptest::collection::vec(endpoint, 0..4)).prop_map(
        |(namespace, name, service, endpoints)| {
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                   "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
                   "ports": [{"name": "http", "port": 7070}, {"name": "x", "port": 7071}], "endpoints": endpoints})
        },
    )
}

fn split() -> impl Strategy<Value = Value> {
    let backends = proptest::collection::vec((pick(&["web", "v1", "v2", "gone"]), 0u64..4), 1..4);
    let groups = proptest::collection::vec(name("g", 3), 0..3);
    (namespace_name(), name("t", 4), pick(&["web", "v1", "gone"]), backends, groups, time(), pick(&SPLIT_VERSIONS))
        .prop_map(|(namespace, name, root, backends, groups, time, version)| {
            let mut backends: Vec<Value> =
                backends.into_iter().map(|(service, weight)| json!({"service": service, "weight": weight})).collect();
            backends[0]["weight"] = json!(1);
            let mut spec = json!({"service": root, "backends": backends});
            if version != "v1alpha2" {
                spec["matches"] =
                    groups.into_iter().map(|name| json!({"kind": "HTTPRouteGroup", "name": name})).collect();
            }
            json!({"apiVersion": format!("split.smi-spec.io/{version}"), "kind": "TrafficSplit",
                   "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time}, "spec": spec})
        })
}

fn group() -> impl Strategy<Value = Value> {
    let one = (pick(&["/a", "/b.*", "/(x|y)"]), pick(&["GET", "*"]), pick(&["^a$", "tester"]), any::<[bool; 3]>());
    (namespace_name(), name("g", 3), proptest::collection::vec(one, 1..3)).prop_map(|(namespace, name, matches)| {
        let matches: Vec<Value> = matches
            .into_iter()
            .enumerate()
            .map(|(index, (path, method, header, [a, b, c]))| {
                let mut one = json!({"name": format!("m{index}")});
                if a {
                    one["pathRegex"] = json!(path);
                }
                if b {
                    one["methods"] = json!([method]);
                }
                if c {
                    one["headers"] = json!({"cookie": header});
                }
                one
            })
            .collect();
        json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
               "metadata": {"name": name, "namespace": namespace}, "spec": {"matches": matches}})
    })
}

fn gateway_route() -> impl Strategy<Value = Value> {
    let parent = (pick(&["web", "v1", "gone"]), namespace_name(), prop_oneof![3 => Just(None), 1 => Just(Some(80)), 1 => Just(Some(81))])
        .prop_map(|(name, namespace, port)| json!({"group": "", "kind": "Service", "name": name, "namespace": namespace, "port": port}));
    let kind = prop_oneof![3 => Just("HTTPRoute"), 1 => Just("GRPCRoute")];
    let rules = proptest::collection::vec(gateway_rule(), 1..4);
    (namespace_name(), name("r", 3), kind, proptest::collection::btree_map(name("p", 3), parent, 1..3), rules, time())
        .prop_map(|(namespace, name, kind, parents, rules, time)| {
            let refs: BTreeMap<String, Value> = parents.into_values().map(|one| (one.to_string(), one)).collect();
            let refs: Vec<Value> = refs.into_values().collect();
            let rules: Vec<Value> = rules
                .into_iter()
                .map(|mut rule| {
                    if kind == "GRPCRoute" {
                        rule["matches"] = json!([{"method": {"service": "a.B"}}]);
                        rule.as_object_mut().unwrap().remove("timeouts");
                    }
                    rule
                })
                .collect();
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
                   "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time},
                   "spec": {"parentRefs": refs, "rules": rules}})
        })
}

fn gateway_rule() -> impl Strategy<Value = Value> {
    let one = (pick(&["/a", "/b/", "/"]), pick(&["Exact", "PathPrefix", "RegularExpression"]), any::<[bool; 2]>())
        .prop_map(|(path, kind, [header, method])| {
            let mut one = json!({"path": {"type": kind, "value": path}});
            if header {
                one["headers"] = json!([{"name": "User", "value": "x"}]);
            }
            if method {
                one["method"] = json!("GET");
            }
            one
        });
    let backend = (pick(&["web", "v1", "v2", "gone"]), namespace_name(), 0u64..3, pick(&["80", "90"])).prop_map(
        |(name, namespace, weight, port)| {
            json!({"name": name, "namespace": namespace, "weight": weight, "port": port.parse::<u16>().unwrap()})
        },
    );
    let filter = prop_oneof![
        Just(json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}})),
        pick(&["web", "v2", "gone"]).prop_map(
            |name| json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": name, "port": 80}, "percent": 50}})
        ),
        Just(json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}})),
        Just(json!({"type": "ExtensionRef", "extensionRef": {"group": "weft.dev", "kind": "FaultInjection", "name": "f"}})),
        Just(json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "x.example"}})),
        Just(json!({"type": "Later"})),
    ];
    let lists = (
        proptest::collection::vec(one, 0..3),
        proptest::collection::vec(backend, 0..3),
        proptest::collection::vec(filter, 0..2),
    );
    (lists, any::<bool>()).prop_map(|((matches, backends, filters), timeouts)| {
        let mut rule = json!({"matches": matches, "backendRefs": backends, "filters": filters});
        if timeouts {
            rule["timeouts"] = json!({"request": "1s"});
        }
        rule
    })
}

fn grant() -> impl Strategy<Value = Value> {
    let to = proptest::option::of(pick(&["web", "v1"]));
    (namespace_name(), name("g", 2), namespace_name(), pick(&["HTTPRoute", "GRPCRoute"]), to).prop_map(
        |(namespace, name, from, kind, to)| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
                   "metadata": {"name": name, "namespace": namespace},
                   "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": from}],
                            "to": [{"group": "", "kind": "Service", "name": to}]}})
        },
    )
}

fn l4_route() -> impl Strategy<Value = Value> {
    let ports = proptest::sample::subsequence(vec![80, 81], 0..=2);
    (namespace_name(), name("r", 2), pick(&["TCPRoute", "UDPRoute"]), ports).prop_map(|(namespace, name, kind, ports)| {
        json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": kind, "metadata": {"name": name, "namespace": namespace},
               "spec": {"matches": {"ports": ports}}})
    })
}

fn subject() -> impl Strategy<Value = Value> + Clone {
    prop_oneof![
        2 => pick(&["sa", "sb"]).prop_map(|name| json!({"kind": "ServiceAccount", "name": name})),
        1 => name("b", 2).prop_map(|name| json!({"kind": "IdentityBinding", "name": name})),
    ]
}

fn target() -> impl Strategy<Value = Value> {
    let rule = prop_oneof![
        (pick(&["TCPRoute", "UDPRoute"]), name("r", 3)).prop_map(|(kind, name)| json!({"kind": kind, "name": name})),
        (name("g", 4), proptest::option::of(proptest::collection::vec(name("m", 3), 0..2))).prop_map(
            |(name, matches)| {
                let rule = json!({"kind": "HTTPRouteGroup", "name": name});
                matches.map_or_else(
                    || rule.clone(),
                    |matches| json!({"kind": "HTTPRouteGroup", "name": name, "matches": matches}),
                )
            }
        ),
    ];
    let said = (proptest::collection::vec(subject(), 1..3), proptest::collection::vec(rule, 1..4));
    (namespace_name(), name("t", 4), subject(), said, time(), proptest::bool::weighted(0.15)).prop_map(
        |(namespace, name, destination, (sources, rules), time, broken)| {
            let mut spec = json!({"destination": destination, "sources": sources, "rules": rules});
            if broken {
                spec["ruls"] = json!([]);
            }
            json!({"apiVersion": "access.smi-spec.io/v1alpha4", "kind": "TrafficTarget",
                   "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time}, "spec": spec})
        },
    )
}

fn binding() -> impl Strategy<Value = Value> {
    let schemes = prop_oneof![
        pick(&["sa", "sb"]).prop_map(|name| json!({"serviceAccount": name, "spiffeIdentities": ["x/ns/shop/sa/sb"]})),
        proptest::collection::vec(pick(&["web", "v1", "v2"]), 1..3).prop_map(|apps| {
            let selectors: Vec<Value> = apps.into_iter().map(|app| json!({"matchLabels": {"app": app}})).collect();
            json!({"podLabelSelectors": selectors})
        }),
    ];
    (namespace_name(), name("b", 2), schemes).prop_map(|(namespace, name, schemes)| {
        json!({"apiVersion": "access.smi-spec.io/v1alpha4", "kind": "IdentityBinding",
               "metadata": {"name": name, "namespace": namespace}, "spec": {"schemes": schemes}})
    })
}

fn node_workloads() -> impl Strategy<Value = Value> {
    let pods = proptest::collection::btree_map(
        name("u", 4),
        (namespace_name(), name("p", 4), pick(&["sa", "sb"]), proptest::collection::vec(ip(), 1..3)),
        0..4,
    );
    (pick(&["n1", "n2", "n3"]), 0..2u8, pods, time()).prop_map(|(node, shard, pods, time)| {
        let pods: Vec<Value> = pods
            .into_iter()
            .map(|(uid, (namespace, name, account, ips))| {
                json!({"uid": uid, "namespace": namespace, "name": name, "serviceAccount": account, "ips": ips})
            })
            .collect();
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads",
               "metadata": {"name": format!("{node}-{shard}"), "creationTimestamp": time},
               "spec": {"node": node, "pods": pods}})
    })
}

fn backend_policy() -> impl Strategy<Value = Value> {
    let target =
        (pick(&["web", "v1", "gone"]), prop_oneof![2 => Just(Value::Null), 1 => Just(json!(80)), 1 => Just(json!(99))]);
    let targets = proptest::collection::btree_map(target.0, target.1, 1..3);
    let balance = pick(&["Random", "RoundRobin", "Maglev"]);
    (namespace_name(), name("bp", 3), targets, balance, time()).prop_map(|(namespace, name, targets, balance, time)| {
        let targets: Vec<Value> = targets
            .into_iter()
            .map(|(service, port)| json!({"kind": "Service", "name": service, "port": port}))
            .collect();
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "BackendPolicy",
               "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time},
               "spec": {"targetRefs": targets, "loadBalancing": {"type": balance}}})
    })
}

fn fault_injection() -> impl Strategy<Value = Value> {
    let targets = proptest::sample::subsequence(vec!["web", "v1", "gone"], 0..3);
    (namespace_name(), name("f", 3), targets, 200..600_u16, time()).prop_map(
        |(namespace, name, targets, status, time)| {
            let targets: Vec<Value> =
                targets.into_iter().map(|service| json!({"kind": "Service", "name": service})).collect();
            json!({"apiVersion": "weft.dev/v1alpha1", "kind": "FaultInjection",
                   "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time},
                   "spec": {"targetRefs": targets, "abort": {"httpStatus": status}}})
        },
    )
}

fn document() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => namespace(),
        4 => pod(),
        3 => service(),
        2 => slice(),
        3 => split(),
        2 => group(),
        1 => l4_route(),
        3 => target(),
        1 => binding(),
        3 => node_workloads(),
        2 => backend_policy(),
        2 => fault_injection(),
        4 => gateway_route(),
        1 => grant(),
    ]
}

fn object() -> impl Strategy<Value = Object> {
    document().prop_map(|document| {
        let parsed = parse(&document);
        assert_eq!(parsed.errors, [], "{document}");
        parsed.objects[0].0.clone()
    })
}

/// Objects of which no two have the same key.
fn objects() -> impl Strategy<Value = Vec<Object>> {
    proptest::collection::vec(object(), 0..24).prop_map(|objects| {
        let by_key: BTreeMap<ObjectKey, Object> = objects.into_iter().map(|object| (object.key(), object)).collect();
        by_key.into_values().collect()
    })
}

/// Batches of events: an object is applied, or the one of the same key is deleted.
fn history() -> impl Strategy<Value = Vec<Vec<ObjectEvent>>> {
    let event = (object(), proptest::bool::weighted(0.25)).prop_map(|(object, delete)| {
        if delete { ObjectEvent::Delete(object.key()) } else { ObjectEvent::Apply(object) }
    });
    proptest::collection::vec(proptest::collection::vec(event, 1..6), 1..10)
}

/// A store with a compiler behind it, as an agent has them.
#[derive(Default)]
struct World {
    store: ObjectStore,
    compiler: Compiler,
    reach: BTreeMap<CaptureAddr, Reach>,
    closed: BTreeMap<WorkloadId, bool>,
}

/// Everything that can be seen of a world from outside.
#[derive(Debug, PartialEq)]
struct Seen {
    snapshot: SnapshotView,
    diagnostics: Vec<Diagnostic>,
    reach: BTreeMap<CaptureAddr, Reach>,
}

impl World {
    fn apply(&mut self, events: Vec<ObjectEvent>) {
        let dirty = self.store.apply(events);
        let delta = lower(&self.store, &dirty);
        self.compile(delta);
    }

    fn compile(&mut self, delta: IrDelta) {
        let compiled = self.compiler.apply(delta);
        for (id, closed) in compiled.closed {
            let old = self.closed.insert(id.clone(), closed);
            assert_ne!(old.unwrap_or_default(), closed, "{id} was told without having changed");
        }
        self.closed.retain(|id, closed| *closed && compiled.snapshot.inbound.contains_key(id));
        for (id, plan) in &compiled.snapshot.inbound {
            assert_eq!(self.closed.contains_key(id), plan.is_closed(), "what was told of {id} adds up to what holds");
        }
        for (address, reach) in compiled.reach {
            let old = match reach {
                Some(reach) => self.reach.insert(address, reach),
                None => self.reach.remove(&address),
            };
            assert_ne!(old, reach, "{address:?} was told without having changed");
        }
    }

    fn from_scratch(store: &ObjectStore) -> Self {
        let mut world = Self { store: store.clone(), ..Self::default() };
        world.compile(lower(store, &store.all()));
        world
    }

    fn seen(&self) -> Seen {
        let reach: BTreeMap<CaptureAddr, Reach> = self.compiler.reach().collect();
        assert_eq!(reach, self.reach, "what was told adds up to what holds");
        Seen { snapshot: self.compiler.snapshot().describe(), diagnostics: self.compiler.diagnostics(), reach }
    }
}

/// The plans of a world agree with its model: cells hold its endpoints, and equal cells are one cell.
fn check_cells(world: &World) {
    let ir = world.compiler.ir();
    let mut cells = BTreeMap::new();
    for plan in world.compiler.snapshot().services.values().flat_map(|plans| plans.iter()) {
        for backend in plan.rules().flat_map(|rule| rule.backends()) {
            let key = (backend.service.clone(), backend.port);
            let wanted = ir.endpoints.get(&key).cloned().unwrap_or_default();
            assert_eq!(**backend.endpoints.load(), *wanted, "{key:?}");
            let first = cells.entry(key).or_insert_with(|| Arc::clone(&backend.endpoints));
            assert!(Arc::ptr_eq(first, &backend.endpoints));
        }
    }
}

fn check_reach(world: &World) {
    let snapshot = world.compiler.snapshot();
    let of = |plan: &OutboundPlan| if plan.has_ready() { Reach::Proxy } else { Reach::Refuse };
    let services = snapshot
        .addresses
        .iter()
        .map(|(address, plan)| (CaptureAddr { ip: address.ip(), port: Some(address.port()) }, of(plan)));
    let pods = snapshot.pods.keys().map(|ip| (CaptureAddr { ip: *ip, port: None }, Reach::Proxy));
    assert_eq!(world.reach, services.chain(pods).collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn incremental_equals_from_scratch(history in history()) {
        let mut world = World::default();
        for (step, events) in history.into_iter().enumerate() {
            world.apply(events);
            prop_assert_eq!(world.compiler.ir(), &lower_all(&world.store));
            prop_assert_eq!(world.compiler.snapshot().generation.0, step as u64 + 1);
            check_cells(&world);
            check_reach(&world);
        }
        prop_assert_eq!(world.seen(), World::from_scratch(&world.store).seen());
    }

    #[test]
    fn any_order_of_events_gives_the_same_snapshot(
        (objects, shuffled) in objects().prop_flat_map(|objects| (Just(objects.clone()), Just(objects).prop_shuffle())),
        batch in 1usize..8,
        detour in proptest::collection::vec(object(), 0..6),
    ) {
        let mut straight = World::default();
        straight.apply(objects.iter().cloned().map(ObjectEvent::Apply).collect());
        let mut other = World::default();
        // Other versions of the same objects, and objects that go again, come before.
        let keys: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
        other.apply(detour.iter().cloned().map(ObjectEvent::Apply).collect());
        for events in shuffled.chunks(batch) {
            other.apply(events.iter().cloned().map(ObjectEvent::Apply).collect());
        }
        other.apply(detour.iter().map(Object::key).filter(|key| !keys.contains(key)).map(ObjectEvent::Delete).collect());
        prop_assert_eq!(straight.seen(), other.seen());
    }

    #[test]
    fn deleting_everything_leaves_nothing(objects in objects()) {
        let mut world = World::default();
        world.apply(objects.iter().cloned().map(ObjectEvent::Apply).collect());
        world.apply(objects.iter().map(|object| ObjectEvent::Delete(object.key())).collect());
        prop_assert_eq!(world.seen(), World::default().seen());
        prop_assert!(world.store.all().is_empty());
    }

    #[test]
    fn arbitrary_documents_never_panic_and_break_nothing_else(documents in proptest::collection::vec(mutated(), 1..12)) {
        let mut world = World::default();
        for document in documents {
            let parsed = parse(&document);
            world.apply(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)).collect());
        }
        prop_assert_eq!(world.compiler.ir(), &lower_all(&world.store));
        let total: usize = Kind::ALL.into_iter().map(|kind| world.store.count(kind)).sum();
        prop_assert!(total <= 12);
    }
}

/// A good document with something else in place of one of its values.
fn mutated() -> impl Strategy<Value = Value> {
    let other = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (-2i64..70000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        "[a-z.()*\\[/{}0-9]{0,16}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ];
    (document(), any::<prop::sample::Index>(), other).prop_map(|(mut document, at, other)| {
        let places = count(&document);
        *place(&mut document, &mut at.index(places)).unwrap() = other;
        document
    })
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

fn place<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| place(item, left)),
        Value::Object(fields) => fields.values_mut().find_map(|field| place(field, left)),
        _ => None,
    }
}
