use super::*;

fn namespace(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

#[test]
fn pods_are_meshed_by_namespace_and_may_opt_out() {
    let enabled = json!({"weft.dev/mesh": "enabled"});
    let plain = || pod("p", "x", &["10.0.0.1"]);
    for (labels, pod, meshed, warnings) in [
        (enabled.clone(), plain(), true, 0),
        (json!({}), plain(), false, 0),
        (json!({"weft.dev/mesh": "disabled"}), plain(), false, 0),
        (json!({"weft.dev/mesh": "true"}), plain(), false, 1),
        (enabled.clone(), with(plain(), "metadata.labels", json!({"weft.dev/mesh": "disabled"})), false, 0),
        (enabled.clone(), with(plain(), "metadata.annotations", json!({"weft.dev/mesh": "disabled"})), false, 0),
        (enabled.clone(), with(plain(), "metadata.labels", json!({"weft.dev/mesh": "off"})), true, 1),
        // A pod cannot mesh itself: that is its namespace's to say.
        (json!({}), with(plain(), "metadata.labels", json!({"weft.dev/mesh": "enabled"})), false, 0),
        (enabled.clone(), with(plain(), "status.phase", json!("Succeeded")), false, 0),
        (enabled, with(plain(), "status.phase", json!("Pending")), true, 0),
    ] {
        let ir = lowered(&[namespace(labels.clone()), pod.clone()]);
        assert_eq!((workload_of(&ir, "p").meshed, findings(&ir).len()), (meshed, warnings), "{labels} {pod}");
    }
    assert!(!workload_of(&lowered(&[plain()]), "p").meshed, "a namespace that is not known is not meshed");
}

#[test]
fn the_fail_mode_of_a_pod_goes_before_its_namespaces_and_nonsense_is_closed() {
    let label = |value: &str| json!({"weft.dev/fail-mode": value});
    for (of_namespace, of_pod, expected, warnings) in [
        (json!({}), json!({}), FailMode::Open, 0),
        (label("closed"), json!({}), FailMode::Closed, 0),
        (label("closed"), label("open"), FailMode::Open, 0),
        (label("open"), label("closed"), FailMode::Closed, 0),
        (label("open"), label("close"), FailMode::Closed, 1),
        (label("shut"), json!({}), FailMode::Closed, 1),
        (label("shut"), label("open"), FailMode::Open, 1),
    ] {
        let pod = with(pod("p", "x", &["10.0.0.1"]), "metadata.labels", of_pod.clone());
        let ir = lowered(&[namespace(of_namespace.clone()), pod]);
        assert_eq!(
            (workload_of(&ir, "p").fail_mode, findings(&ir).len()),
            (expected, warnings),
            "{of_namespace} {of_pod}"
        );
    }
}

#[test]
fn a_namespace_refuses_plaintext_if_it_says_so_or_nothing_that_is_understood() {
    for (labels, strict, found) in [
        (json!({}), false, 0),
        (json!({"weft.dev/mtls": "permissive"}), false, 0),
        (json!({"weft.dev/mtls": "strict"}), true, 0),
        (json!({"weft.dev/mtls": "STRICT"}), true, 1),
        (json!({"weft.dev/mtls": ""}), true, 1),
    ] {
        let ir = lowered(&[namespace(labels.clone())]);
        assert_eq!((ir.strict.contains_key("shop"), findings(&ir).len()), (strict, found), "{labels}");
    }
    // What holds where a namespace of the mesh does not say.
    let meshed = |mtls: Option<&str>| {
        let mut labels = json!({"weft.dev/mesh": "enabled"});
        if let Some(mtls) = mtls {
            labels["weft.dev/mtls"] = mtls.into();
        }
        namespace(labels)
    };
    let (option, own) = ("Option --mtls=strict", "Namespace shop");
    for (namespace, by) in [
        (meshed(None), Some(option)),
        (meshed(Some("permissive")), None),
        (meshed(Some("strict")), Some(own)),
        (meshed(Some("sloppy")), Some(own)),
        (namespace(json!({})), None),
        (namespace(json!({"weft.dev/mesh": "disabled"})), None),
        (namespace(json!({"weft.dev/mtls": "strict"})), Some(own)),
    ] {
        let mut store = ObjectStore::new(true);
        let objects = parse(&namespace).objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object));
        let dirty = store.apply(objects);
        let found = lower(&store, &dirty).strict.get("shop").cloned().flatten().map(|by| by.to_string());
        assert_eq!(found.as_deref(), by, "{namespace}");
    }
    let ir = lowered(&[namespace(json!({"weft.dev/mtls": "disable"}))]);
    assert_eq!(findings(&ir), [("Namespace shop".into(), "UnknownMtls", "metadata.labels.weft.dev/mtls".into())]);
}

#[test]
fn a_workload_is_named_after_what_it_belongs_to() {
    let controller = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true}]);
    let owned =
        |kind: &str, name: &str| with(pod("web-1", "app", &[]), "metadata.ownerReferences", controller(kind, name));
    for (pod, expected) in [
        (
            with(owned("ReplicaSet", "web-6d4cf56db6"), "metadata.labels", json!({"pod-template-hash": "6d4cf56db6"})),
            "web",
        ),
        (owned("ReplicaSet", "web-6d4cf56db6"), "web-6d4cf56db6"),
        (owned("StatefulSet", "db"), "db"),
        (owned("Job", "job"), "job"),
        (pod("web-1", "app", &[]), "app"),
        (with(pod("web-1", "app", &[]), "metadata.labels", json!({"app": "a", "app.kubernetes.io/name": "b"})), "b"),
        (with(pod("web-1", "app", &[]), "metadata.labels", json!({})), "web-1"),
        (with(pod("web-1", "app", &[]), "metadata.labels", json!({"app": ""})), "web-1"),
    ] {
        let ir = lowered(std::slice::from_ref(&pod));
        assert_eq!(&*ir.workloads.values().next().unwrap().owner, expected, "{pod}");
    }
}

#[test]
fn a_workload_says_all_that_capture_needs() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "shop", "uid": "u-1", "annotations": {"weft.dev/netns": "/run/netns/p", "weft.dev/cgroup": "/cg/p"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "sa", "hostNetwork": true},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "10.0.0.1"}]}});
    let ir = lowered(&[pod]);
    let workload = workload_of(&ir, "p");
    assert_eq!(*workload.id.0, *"u-1");
    assert_eq!((&*workload.node, &*workload.service_account, workload.host_network), ("n1", "sa", true));
    assert_eq!(workload.ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!(workload.netns.as_deref(), Some("/run/netns/p".as_ref()));
    assert_eq!(workload.cgroup.as_deref(), Some("/cg/p".as_ref()));
    assert_eq!(workload.state, WorkloadState::Ready);
}

#[test]
fn two_pods_with_one_uid_are_told_and_the_first_counts() {
    let twin = |name: &str| with(pod(name, "web", &["10.0.0.1"]), "metadata.uid", json!("same"));
    let ir = lowered(&[twin("b"), twin("a")]);
    assert_eq!(ir.workloads.len(), 1);
    assert_eq!(&*ir.workloads[&WorkloadId::new("same")].name, "a");
    assert_eq!(findings(&ir), [("Pod shop/b".into(), "DuplicateUID", "metadata.uid".into())]);
}
