//! Pods that share the host's network namespace are told from the node by their cgroup.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
};

use weft_abi::verdict;
use weft_agent::capture::PodSpec;
use weft_policy::names::{ServiceAccountKey, WorkloadId};

use crate::{
    agent::Worker,
    outbound::{set, stats},
    world::{SOON, World, read_line},
};

fn host_pod(world: &World) -> PodSpec {
    let cgroup = world.cgroup().join("host-pod");
    fs::create_dir_all(&cgroup).expect("cgroup");
    PodSpec {
        id: WorkloadId::new("uid-host-pod"),
        namespace: "test".into(),
        name: "host-pod".into(),
        owner: "host-pod".into(),
        account: ServiceAccountKey::new("test", "default"),
        netns: None,
        cgroup: Some(cgroup),
        ips: vec![world.node_v4, world.node_v6],
        fail_closed: false,
    }
}

/// Connects from a process in the host-network pod's cgroup and gives the first line that it is answered.
fn ask(world: &World, to: SocketAddr) -> Option<String> {
    let procs = world.cgroup().join("host-pod/cgroup.procs");
    let script = format!(
        "echo $$ > {} && exec 3<>/dev/tcp/{}/{} && IFS= read -r -t 5 line <&3 && printf '%s' \"$line\"",
        procs.display(),
        to.ip(),
        to.port()
    );
    let output = Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).output().expect("bash");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_host_network_pods_connections_are_captured_and_the_nodes_are_not() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let spec = host_pod(&world);
    let worker = Worker::attach(&mut capture, &spec);
    for to in [world.vip4(80), world.vip6(80)] {
        set(&mut capture, to, verdict::PROXY);
        assert_eq!(ask(&world, to), Some(format!("agent: host-pod asked for {to}")));
    }
    assert_eq!(capture.stats().pods[0].1.outbound_captured, 2);
    set(&mut capture, world.vip4(81), verdict::DENY);
    assert_eq!(ask(&world, world.vip4(81)), None);
    assert_eq!(capture.stats().pods[0].1.outbound_denied, 1);
    // The node's own processes are not in its cgroup: they go direct.
    world.b.serve(8080);
    let to = SocketAddr::new(world.b.v4, 8080);
    set(&mut capture, to, verdict::PROXY);
    let node = std::net::TcpStream::connect_timeout(&to, SOON).expect("direct");
    assert_eq!(read_line(&node).expect("answer"), format!("app sees {}", world.node_v4));
    assert_eq!(capture.stats().pods[0].1.outbound_captured, 2);

    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").expect("sysctl");
    assert!(before.contains("61000-65097"), "{before}");
    drop(worker);
    capture.release_pod(&spec.id).expect("released");
    let after = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").expect("sysctl");
    assert!(!after.contains("61000"), "{after}");
    assert_eq!(ask(&world, world.vip4(80)), None);
}

#[test]
fn a_host_network_pod_is_not_taken_for_the_node() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let _host = Worker::attach(&mut capture, &host_pod(&world));
    let b = Worker::attach(&mut capture, &world.b.spec());
    for (to, own) in [(world.b.v4, world.node_v4), (world.b.v6, world.node_v6)] {
        assert_eq!(ask(&world, SocketAddr::new(to, 8080)), Some(format!("app sees {own}")));
    }
    let stats = stats(&capture, &world.b);
    assert_eq!((b.accepted(), stats.inbound_node), (2, 0));
}
