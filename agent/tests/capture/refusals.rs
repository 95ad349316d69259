//! Bad input: each is told by name, and nothing else is disturbed.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use weft_agent::capture::{Capture, CaptureConfig, CaptureError, PodError, check_cgroup};
use weft_proxy::socket::{Dial, SocketError};

use crate::{
    agent::{Worker, connect},
    outbound::fill,
    world::World,
};

#[test]
fn a_pod_that_is_not_as_it_says_is_refused_and_left_as_it_was() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let stranger: IpAddr = "203.0.113.7".parse().expect("address");
    let taken =
        world.b.run(|| std::net::TcpListener::bind(("127.0.0.1", weft_abi::ports::LISTENER_INBOUND)).expect("bound"));

    let mut missing = world.a.spec();
    missing.netns = Some(PathBuf::from("/run/netns/nowhere"));
    let mut not_a_namespace = world.a.spec();
    not_a_namespace.netns = Some(PathBuf::from("/proc/self/ns/mnt"));
    let mut host = world.a.spec();
    host.netns = Some(PathBuf::from("/proc/self/ns/net"));
    let mut elsewhere = world.a.spec();
    elsewhere.ips.push(stranger);
    let mut nowhere = world.a.spec();
    nowhere.ips.clear();
    let mut no_cgroup = world.a.spec();
    no_cgroup.netns = None;
    for (spec, reason, said) in [
        (&missing, "netns_missing", "/run/netns/nowhere"),
        (&not_a_namespace, "netns_missing", "/proc/self/ns/mnt"),
        (&host, "netns_is_host", "host's own"),
        (&elsewhere, "address_not_in_netns", "203.0.113.7"),
        (&nowhere, "no_address", "no address"),
        (&no_cgroup, "cgroup_missing", "cgroup"),
        (&world.b.spec(), "port_in_use", "65097"),
    ] {
        let error = capture.attach_pod(spec, &mut Vec::new()).expect_err(reason);
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    // The last one failed half-way: nothing of it is left.
    assert_eq!(world.b.sysctl("net/ipv4/tcp_fwmark_accept"), "0");
    assert_eq!(world.b.sysctl("net/ipv4/ip_local_reserved_ports"), "");
    assert!(!world.b.ip("rule").contains("0x77656674"));
    assert_eq!(fill(&capture, "LOCAL_ADDRS"), 0);
    assert_eq!(world.a.ask(SocketAddr::new(world.b.v4, 8080)).expect("direct"), format!("app sees {}", world.a.v4));
    drop(taken);
    drop(capture.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached once the port is free"));
}

#[test]
fn a_namespace_is_only_one_pods() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    let error = capture.attach_pod(&world.a.spec(), &mut Vec::new()).expect_err("twice");
    assert!(matches!(error, PodError::Attached(_)), "{error}");
    let mut twin = world.a.spec();
    twin.id = world.b.id();
    let error = capture.attach_pod(&twin, &mut Vec::new()).expect_err("taken");
    assert!(error.to_string().contains(&format!("test/{}", world.a.name)), "{error}");
    let error = capture.release_pod(&world.b.id()).expect_err("not captured");
    assert!(matches!(error, PodError::NotAttached(_)), "{error}");
}

#[test]
fn a_pin_directory_that_is_not_as_weft_left_it_is_refused_by_name() {
    let Some(world) = World::new() else { return };
    drop(world.open());
    let dir = world.config.bpf_dir.join(format!("v{}", weft_abi::ABI_VERSION));
    let refused = |what: &str| {
        let error = Capture::open(&world.config).expect_err(what);
        assert!(matches!(error, CaptureError::Pins { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(what) && text.contains("weft-agent cleanup"), "{text}");
    };
    fs::create_dir(dir.join("stranger")).expect("made");
    refused("stranger");
    fs::remove_dir(dir.join("stranger")).expect("removed");

    fs::rename(dir.join("HOST_PODS"), dir.join("kept")).expect("renamed");
    refused("kept");
    // Another map under a name of ours.
    fs::rename(dir.join("DESTINATIONS"), dir.join("HOST_PODS")).expect("renamed");
    refused("key size");
    fs::rename(dir.join("HOST_PODS"), dir.join("DESTINATIONS")).expect("renamed");
    fs::rename(dir.join("kept"), dir.join("HOST_PODS")).expect("renamed");

    // A map where a link should be.
    fs::rename(dir.join("link_connect6"), dir.join("link_kept")).expect("renamed");
    fs::rename(dir.join("HOST_PODS"), dir.join("link_connect6")).expect("renamed");
    refused("link_connect6");
    fs::rename(dir.join("link_connect6"), dir.join("HOST_PODS")).expect("renamed");
    fs::rename(dir.join("link_kept"), dir.join("link_connect6")).expect("renamed");
    drop(world.open());
}

#[test]
fn a_directory_outside_any_bpf_file_system_is_refused() {
    let Some(world) = World::new() else { return };
    let dir = tempfile::tempdir().expect("directory");
    let config = CaptureConfig { bpf_dir: dir.path().join("weft"), ..world.config.clone() };
    let error = Capture::open(&config).expect_err("no BPF file system");
    assert!(matches!(error, CaptureError::NoBpfFs { .. }), "{error}");
    let config = CaptureConfig { cgroup_root: Some(dir.path().to_owned()), ..world.config.clone() };
    let error = Capture::open(&config).expect_err("no cgroup");
    assert!(matches!(error, CaptureError::NoCgroup { .. }), "{error}");
}

#[test]
fn an_agent_outside_of_the_cgroup_that_programs_are_attached_to_is_refused() {
    let Some(world) = World::new() else { return };
    let beside = world.cgroup().join("host-pod");
    fs::create_dir(&beside).expect("cgroup");
    let config = |root: &std::path::Path| CaptureConfig { cgroup_root: Some(root.to_owned()), ..world.config.clone() };
    check_cgroup(&config(world.cgroup())).expect("this process is in it");
    let above = world.cgroup().parent().expect("a hierarchy");
    check_cgroup(&config(above)).expect("the root holds everything");
    let error = check_cgroup(&config(&beside)).expect_err("this process is not in it");
    assert!(matches!(error, CaptureError::OutsideCgroup { .. }), "{error}");
    let (text, own) = (error.to_string(), world.cgroup().file_name().expect("a name").to_string_lossy().into_owned());
    for part in ["--cgroup-root", &*beside.to_string_lossy(), &format!("cgroup /{own},")] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    // Below, at any depth, is inside.
    world.enter_pods_cgroup();
    check_cgroup(&config(world.cgroup())).expect("this process is below it");
}

#[test]
fn what_an_agent_outside_of_the_cgroup_dials_is_not_known_as_its_own() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let beside = world.cgroup().join("host-pod");
    fs::create_dir(&beside).expect("cgroup");
    let mut capture =
        Capture::open(&CaptureConfig { cgroup_root: Some(beside), ..world.config.clone() }).expect("opens");
    capture.beat(std::time::Duration::ZERO).expect("beats");
    let attachment = capture.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached");
    let pod = attachment.listeners.pod.clone();
    let client = SocketAddr::new(world.node_v4, 0);
    let dial = Dial::Inbound { pod: &pod, client, to: SocketAddr::new(world.b.v4, 8080) };
    // It meets the agent's own listener, for which the agent would dial again. Nobody accepts here.
    let error = connect(&capture.sockets(), &dial).expect_err("no entry lets it through");
    assert!(matches!(error, SocketError::BypassFull), "{error}");
}

#[test]
fn a_full_map_is_told_with_its_limit() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let proxy = weft_abi::DestVerdict { verdict: weft_abi::verdict::PROXY, pad: 0 };
    let many = (0..=weft_abi::limits::DESTINATIONS_MAX).map(|index| {
        let ip = std::net::Ipv4Addr::from(0x0a00_0000 + index);
        (weft_agent::capture::convert::dest_key(ip.into(), None), Some(proxy))
    });
    let error = capture.set_destinations(many).expect_err("one too many");
    assert!(
        matches!(error, CaptureError::Full { map: "DESTINATIONS", limit: weft_abi::limits::DESTINATIONS_MAX }),
        "{error}"
    );
    assert_eq!(fill(&capture, "DESTINATIONS"), u64::from(weft_abi::limits::DESTINATIONS_MAX));
    capture.retain_destinations(&std::collections::HashSet::new()).expect("emptied");
    assert_eq!(fill(&capture, "DESTINATIONS"), 0);
}
