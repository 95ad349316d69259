//! Coming and going: of pods, of agents, of weft.

use std::{
    fs,
    io::Read,
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    thread,
};

use weft_abi::verdict;
use weft_agent::capture::{Capture, CaptureConfig, cleanup, handover};
use weft_proxy::socket::SocketFactory;

use crate::{
    agent::Worker,
    outbound::{fill, set},
    world::{Pod, SOON, World, read_line, run, wait_until},
};

/// What capture changes in a pod's namespace.
fn traces(pod: &Pod) -> Vec<String> {
    let mut traces: Vec<String> = [
        "net/ipv4/ip_local_reserved_ports",
        "net/ipv4/tcp_fwmark_accept",
        "net/ipv4/fwmark_reflect",
        "net/ipv6/fwmark_reflect",
    ]
    .iter()
    .map(|name| pod.sysctl(name))
    .collect();
    for query in ["rule", "-6 rule", "route show table 30565", "-6 route show table 30565"] {
        traces.push(pod.ip(query));
    }
    traces
}

#[test]
fn a_released_pod_is_as_it_was() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    world.b.run(|| fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "80,16390-16400,61000").expect("written"));
    world.b.run(|| fs::write("/proc/sys/net/ipv4/fwmark_reflect", "1").expect("written"));
    let before = traces(&world.b);
    let mut capture = world.open();
    let worker = Worker::attach(&mut capture, &world.b.spec());
    assert_eq!(world.b.sysctl("net/ipv4/ip_local_reserved_ports"), "80,16384-32767,61000-65097");
    assert_eq!(world.b.sysctl("net/ipv4/tcp_fwmark_accept"), "1");
    assert!(world.b.ip("rule").contains("fwmark 0x77656674 lookup 30565"), "{}", world.b.ip("rule"));
    assert!(world.b.ip("-6 route show table 30565").contains("local default dev lo"));
    drop(worker);
    capture.release_pod(&world.b.id()).expect("released");
    assert_eq!(traces(&world.b), before);
    assert_eq!(world.a.ask(SocketAddr::new(world.b.v4, 8080)).expect("direct"), format!("app sees {}", world.a.v4));
    for map in ["PODS", "LOCAL_ADDRS", "CAPTURED", "POD_STATS"] {
        assert_eq!(fill(&capture, map), 0, "{map}");
    }
    // And it can be captured again.
    let worker = Worker::attach(&mut capture, &world.b.spec());
    world.a.ask(SocketAddr::new(world.b.v4, 8080)).expect("answer");
    assert_eq!(worker.accepted(), 1);
}

#[test]
fn what_runs_through_the_agent_goes_on_when_its_pod_is_let_go_of_until_that_is_finished() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let before = traces(&world.b);
    let mut capture = world.open();
    let worker = Worker::attach(&mut capture, &world.b.spec());
    let to = SocketAddr::new(world.b.v4, 8080);
    let old = world.a.run(|| TcpStream::connect_timeout(&to, SOON)).expect("connected");
    let said = format!("app sees {}", world.a.v4);
    assert_eq!(read_line(&old).expect("answer"), said);
    capture.start_leaving(&world.b.id()).expect("leaving");
    assert_eq!(world.a.ask(to).expect("direct"), said);
    assert_eq!((worker.accepted(), capture.sockets().is_captured(&world.b.id())), (1, true));
    capture.let_go(&world.b.id()).expect("let go");
    assert!(!capture.sockets().is_captured(&world.b.id()) && capture.sockets().is_leaving(&world.b.id()));
    assert_eq!(world.a.ask(to).expect("direct"), said);
    assert_eq!(worker.accepted(), 1);
    // The application's last words take the route that capture made.
    old.set_read_timeout(Some(SOON)).expect("a timeout");
    old.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!((&old).read(&mut [0; 16]).expect("the application closes"), 0);
    // It comes back, and what was there before it was first captured is not forgotten.
    drop(worker);
    let worker = Worker::attach(&mut capture, &world.b.spec());
    assert!(capture.sockets().is_captured(&world.b.id()) && !capture.sockets().is_leaving(&world.b.id()));
    capture.finish_leaving(&world.b.id()).expect("nothing to do");
    assert_eq!(world.a.ask(to).expect("answer"), said);
    assert_eq!(worker.accepted(), 1);
    drop(worker);
    capture.let_all_go().expect("let go");
    assert_ne!(traces(&world.b), before);
    capture.finish_all_leaving().expect("finished");
    assert_eq!(traces(&world.b), before);
    assert!(!capture.sockets().is_leaving(&world.b.id()));
    for map in ["PODS", "LOCAL_ADDRS", "CAPTURED", "POD_STATS"] {
        assert_eq!(fill(&capture, map), 0, "{map}");
    }
}

#[test]
fn connections_older_than_capture_are_counted_and_live_on() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let old = world.a.run(|| {
        [world.b.v4, world.b.v6, world.b.v4]
            .map(|ip| TcpStream::connect_timeout(&SocketAddr::new(ip, 8080), SOON).expect("connected"))
    });
    let mut capture = world.open();
    let attachment = capture.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached");
    assert_eq!(attachment.connections_before, 3);
    assert!(!attachment.adopted);
    for stream in &old {
        assert!(read_line(stream).expect("still answered").starts_with("app sees"));
    }
    // The next agent is told the same.
    drop((attachment, capture));
    let mut capture = world.open();
    let attachment = capture.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached");
    assert_eq!((attachment.connections_before, attachment.adopted), (3, true));
}

#[test]
fn a_hand_over_keeps_what_waits_in_the_queues() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut old = world.open();
    let (a, b) = (
        old.attach_pod(&world.a.spec(), &mut Vec::new()).expect("attached"),
        old.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached"),
    );
    set(&mut old, world.vip4(80), verdict::PROXY);
    // Nobody accepts: both wait.
    let (outbound, inbound) = world.a.run(|| {
        (
            TcpStream::connect_timeout(&world.vip4(80), SOON).expect("connected"),
            TcpStream::connect_timeout(&SocketAddr::new(world.b.v4, 8080), SOON).expect("connected"),
        )
    });

    let (old_end, new_end) = UnixStream::pair().expect("pair");
    let offered = old.offer().expect("offered");
    let server = thread::spawn(move || handover::serve(&old_end, &offered));
    let mut handover = handover::receive(new_end).expect("received");
    assert_eq!(handover.listeners.len(), 8);
    let mut new = world.open();
    let mut handed = std::mem::take(&mut handover.listeners);
    let workers: Vec<Worker> = [&world.a, &world.b]
        .iter()
        .map(|pod| {
            let attachment = new.attach_pod(&pod.spec(), &mut handed).expect("taken over");
            assert!(attachment.adopted);
            Worker::serve(&new, attachment)
        })
        .collect();
    assert!(handed.is_empty());
    handover.done().expect("done");
    server.join().expect("server").expect("handed over");
    old.handed_over();
    old.unpublish_listeners().expect("nothing to do");
    old.beat(std::time::Duration::ZERO).expect("nothing to do");
    drop((old, a, b));

    assert!(read_line(&outbound).expect("answer").ends_with(&world.vip4(80).to_string()));
    assert_eq!(read_line(&inbound).expect("answer"), format!("app sees {}", world.a.v4));
    // New ones reach the new agent.
    assert!(world.a.ask(world.vip4(80)).expect("answer").starts_with("agent: "));
    drop(workers);
}

#[test]
fn an_agent_forgets_pods_whose_namespace_went_while_it_was_down() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    drop((Worker::attach(&mut capture, &world.a.spec()), Worker::attach(&mut capture, &world.b.spec())));
    drop(capture);
    run("ip", &format!("netns del {}", world.a.name));
    // The namespace goes when the last packet is through with it.
    let mut capture = world.open();
    wait_until("pod a is forgotten", || {
        capture = world.open();
        fill(&capture, "LOCAL_ADDRS") == 2
    });
    // Pod b is still there, but nobody claims it any more.
    assert_eq!(capture.release_unclaimed().expect("released"), 1);
    assert_eq!(fill(&capture, "LOCAL_ADDRS"), 0);
    assert_eq!(world.b.sysctl("net/ipv4/tcp_fwmark_accept"), "0");
    assert!(!world.b.ip("rule").contains("0x77656674"));
    assert_eq!(capture.release_unclaimed().expect("nothing left"), 0);
}

#[test]
fn a_namespace_that_is_made_anew_under_its_name_is_told() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let workers = [&world.a, &world.b].map(|pod| Worker::attach(&mut capture, &pod.spec()));
    assert_eq!(capture.replaced_pods(), []);
    run("ip", &format!("netns del {}", world.a.name));
    assert_eq!(capture.replaced_pods(), [], "a name that is gone tells nothing");
    // As for a moment while a runtime makes one.
    fs::write(&world.a.netns, "").expect("written");
    assert_eq!(capture.replaced_pods(), []);
    fs::remove_file(&world.a.netns).expect("removed");
    run("ip", &format!("netns add {}", world.a.name));
    assert_eq!(capture.replaced_pods(), [world.a.id()]);
    // What was captured can be released, and what is there now is captured once it has the pod's addresses.
    capture.release_pod(&world.a.id()).expect("released");
    drop(workers);
    assert_eq!(capture.replaced_pods(), []);
    let error = capture.attach_pod(&world.a.spec(), &mut Vec::new()).expect_err("no address yet");
    assert_eq!(error.reason(), "address_not_in_netns");
    world.a.ip("link set lo up");
    world.a.ip(&format!("addr add {}/24 dev lo", world.a.v4));
    world.a.ip(&format!("-6 addr add {}/64 dev lo nodad", world.a.v6));
    let attachment = capture.attach_pod(&world.a.spec(), &mut Vec::new()).expect("attached");
    assert!(!attachment.adopted);
    assert_eq!((capture.replaced_pods(), fill(&capture, "PODS")), (vec![], 2));
}

#[test]
fn stale_destinations_stay_until_they_are_not_retained() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    set(&mut capture, world.vip4(80), verdict::PROXY);
    set(&mut capture, world.vip6(80), verdict::DENY);
    drop(capture);
    let mut capture = world.open();
    assert_eq!(fill(&capture, "DESTINATIONS"), 2);
    let keep = weft_agent::capture::convert::dest_key(world.vip4(80).ip(), Some(80));
    capture.retain_destinations(&std::collections::HashSet::from([keep])).expect("retained");
    assert_eq!(fill(&capture, "DESTINATIONS"), 1);
    drop(capture);
    assert_eq!(fill(&world.open(), "DESTINATIONS"), 1);
}

#[test]
fn every_hook_is_listed_and_an_agent_takes_the_links_over() {
    let Some(world) = World::new() else { return };
    let mut first = world.open();
    let _worker = Worker::attach(&mut first, &world.a.spec());
    let before = first.stats().hooks;
    assert_eq!(before.len(), 8);
    assert!(before.iter().all(|hook| hook.program_id != 0 && hook.link_id != 0), "{before:?}");
    assert_eq!(first.programs_ahead(), []);
    let mut second = world.open();
    drop(second.attach_pod(&world.a.spec(), &mut Vec::new()));
    let after = second.stats().hooks;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.link_id, after.link_id, "the same link");
        assert_ne!(before.program_id, after.program_id, "another program");
    }
}

#[test]
fn after_cleanup_nothing_is_left_and_traffic_is_direct() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let before = (traces(&world.a), traces(&world.b));
    let mut capture = world.open();
    let workers = (Worker::attach(&mut capture, &world.a.spec()), Worker::attach(&mut capture, &world.b.spec()));
    let to = SocketAddr::new(world.b.v4, 8080);
    set(&mut capture, to, verdict::PROXY);
    assert!(world.a.ask(to).expect("captured").starts_with("agent: "));
    let hooks = capture.stats().hooks;
    drop((capture, workers));
    let foreign = world.config.bpf_dir.join("stranger");
    fs::create_dir(&foreign).expect("made");

    let report = cleanup(&world.config).expect("cleaned");
    assert!(report.complete(), "{report:?}");
    assert_eq!(
        (report.pods, report.pods_without_netns, report.foreign.as_slice()),
        (2, 0, [foreign.clone()].as_slice())
    );
    assert_eq!((traces(&world.a), traces(&world.b)), before);
    assert!(foreign.exists() && !world.config.bpf_dir.join("v1").exists());
    fs::remove_dir(&foreign).expect("removed");
    assert_eq!(world.a.ask(to).expect("direct"), format!("app sees {}", world.a.v4));
    wait_until("the programs are unloaded", || {
        aya::programs::loaded_programs()
            .flatten()
            .all(|program| hooks.iter().all(|hook| hook.program_id != program.id()))
    });

    // Once more: there is nothing to do, and that is no error.
    let report = cleanup(&world.config).expect("cleaned");
    assert!(report.complete() && report.links == 0 && report.maps == 0, "{report:?}");
    assert!(!world.config.bpf_dir.exists());
    let _capture: Capture = world.open();
}

#[test]
fn cleanup_leaves_the_pods_of_a_weft_that_pins_elsewhere() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.b.spec());
    let before = traces(&world.b);
    let other = world.config.bpf_dir.with_extension("other");
    let report = cleanup(&CaptureConfig { bpf_dir: other, ..world.config.clone() }).expect("cleaned");
    assert_eq!((report.pods, report.strays, report.links, report.maps), (0, 0, 0, 0), "{report:?}");
    assert_eq!(traces(&world.b), before);
    let to = SocketAddr::new(world.b.v4, 8080);
    assert_eq!(world.a.ask(to).expect("answer"), format!("app sees {}", world.a.v4));
}
