//! Many connections: none unseen, none hung, no port shortage.

use anyhow::Result;
use weft_integration::{
    Pod, PodSpec, Shop,
    objects::plain_namespace,
    shop::{ASK, NAMESPACE, finish_load, load, stranger_load},
};

/// In ten rounds.
const REUSED_CONNECTIONS: u64 = 100_000;
const ROUNDS: u64 = 10;

/// Two kinds of connections to one server, with the same source addresses and the same few source ports, each ended by a reset so that
/// the ports are free at once: those that the client's processes make go out through the agent, which dials the server and lets its own
/// connection pass; those that are made in the client's namespace by nobody's process arrive at the server as ordinary inbound
/// traffic. If what lets the first pass outlived its connection, the second would slip through.
#[test]
fn with_ports_used_again_none_of_100_000_connections_reaches_the_application_unseen() -> Result<()> {
    let shop = Shop::running("open")?;
    let server = shop.server("v1-1")?;
    let direct = format!("{}:{ASK}", server.pod.ipv4());
    let each = (REUSED_CONNECTIONS / ROUNDS / 2).to_string();
    // Without a port given the agent's own dials and these use the same ephemeral range of the client's namespace; made small, it is
    // used again some 20 times in a round.
    weft_integration::command::output(
        shop.client.stranger("sysctl").args(["-qw", "net.ipv4.ip_local_port_range=40000 40255"]),
    )?;
    let common = ["--speech", "ask", "--connections", &each, "--concurrency", "8", "--linger-zero"];
    let mut meshed = 0;
    let mut strangers = 0;
    for round in 0..ROUNDS {
        let args = [&["--to", &direct], &common[..]].concat();
        let mut through_agent = shop.spawn_load(&args)?;
        let past_agent = stranger_load(&shop.client, &args)?;
        let through_agent = finish_load(&mut through_agent)?;
        for (what, report) in [("captured", &through_agent), ("stranger", &past_agent)] {
            assert_eq!(report.lost() + report.refused, 0, "round {round}, {what}: {report:?}");
        }
        meshed += through_agent.served;
        strangers += past_agent.served;
    }
    let client = shop.agent()?.pod_stats(NAMESPACE, "client")?;
    let inbound = shop.agent()?.pod_stats(NAMESPACE, "v1-1")?;
    assert_eq!(meshed + strangers, REUSED_CONNECTIONS);
    assert_eq!(
        client.outbound_captured, meshed,
        "every connection of a process of the client went out through the agent"
    );
    assert_eq!(shop.agent()?.inbound_connections()?, strangers, "every other one came in through the agent");
    assert_eq!((client.outbound_direct, inbound.inbound_direct, inbound.inbound_node), (0, 0, 0));
    let seen_by_application = server.stats()?.connections_to(ASK);
    assert_eq!(seen_by_application, REUSED_CONNECTIONS, "and the application got each of them once");
    Ok(())
}

/// Root in the pod's namespace has CAP_NET_RAW (and more), so it may set any mark.
#[test]
fn no_mark_gets_a_connection_past_the_agent() -> Result<()> {
    let shop = Shop::running("open")?;
    let server = shop.server("v1-1")?;
    let direct = format!("{}:{ASK}", server.pod.ipv4());
    // The mark of weft's own transparent sockets, the usual suspects, and all single bits.
    let marks = [0x7765_6674, 1, 0x1337, 1337, 0x4000, 0x8000, 0x0200, 0x0d00, u32::MAX];
    let marks: Vec<u32> = marks.into_iter().chain((0..32).map(|bit| 1 << bit)).collect();
    for mark in &marks {
        let mark = mark.to_string();
        let args = ["--to", &direct, "--speech", "ask", "--mark", &mark];
        for (who, report) in [("process", shop.load(&args)?), ("stranger", stranger_load(&shop.client, &args)?)] {
            // Captured and carried, or not carried at all; but never past the agent.
            assert_eq!(report.connections, 1, "mark {mark}, {who}: {report:?}");
        }
    }
    let marks_total = u64::try_from(marks.len())?;
    let client = shop.agent()?.pod_stats(NAMESPACE, "client")?;
    let inbound = shop.agent()?.pod_stats(NAMESPACE, "v1-1")?;
    assert_eq!(client.outbound_captured, marks_total, "{client:?}");
    assert_eq!((client.outbound_direct, inbound.inbound_direct, inbound.inbound_node), (0, 0, 0), "{inbound:?}");
    // What the application got is what the agent carried in both ways.
    assert_eq!(server.stats()?.connections_to(ASK), client.outbound_captured + shop.agent()?.inbound_connections()?);
    Ok(())
}

/// Open files bound what one process can hold: a client has one for each connection, the agent two. HTTP leaves the agent with
/// one while nothing is asked.
#[test]
fn of_10_000_concurrent_connections_to_one_port_none_hangs() -> Result<()> {
    let shop = Shop::running("open")?;
    let to = shop.service("web", 80)?;
    let args = [
        "--to",
        &to,
        "--speech",
        "keep-http",
        "--connections",
        "10000",
        "--concurrency",
        "10000",
        "--hold",
        "--timeout-ms",
        "60000",
    ];
    let report = shop.load(&args)?;
    assert_eq!((report.timed_out, report.failures()), (0, 0), "{report:?}");
    assert_eq!(report.statuses.get(&200), Some(&10_000), "{report:?}");
    Ok(())
}

/// An agent that may open 20,000 files, as on machines that do not let it have more, has one for the client and one for the
/// application of each.
const CONCURRENT_INBOUND: &str = "9000";

/// The same from a client that is not captured: the agent dials the application with the client's address, from its own block of ports.
#[test]
fn of_9_000_concurrent_inbound_connections_none_hangs() -> Result<()> {
    let (outsider, shop) = shop_with_outsider()?;
    let to = format!("{}:8080", shop.server("v1-1")?.pod.ipv4());
    let count = ["--connections", CONCURRENT_INBOUND, "--concurrency", CONCURRENT_INBOUND];
    let args = [&["--to", &to, "--speech", "keep-http", "--hold", "--timeout-ms", "60000"], &count[..]].concat();
    let report = load(&outsider, &args)?;
    assert_eq!(report.statuses.get(&200), Some(&9_000), "{report:?}");
    Ok(())
}

/// More than the block of ports holds, one after the other, each closed in the ordinary way by the client. A port that was
/// closed by the agent's side stays in TIME_WAIT for a minute, unless it may be used again.
#[test]
fn one_client_can_make_20_000_short_inbound_connections_to_one_port() -> Result<()> {
    let (outsider, shop) = shop_with_outsider()?;
    let to = format!("{}:8080", shop.server("v1-1")?.pod.ipv4());
    let args = [
        "--to",
        &to,
        "--speech",
        "keep-http",
        "--connections",
        "20000",
        "--concurrency",
        "16",
        "--timeout-ms",
        "10000",
    ];
    let report = load(&outsider, &args)?;
    assert_eq!(report.statuses.get(&200), Some(&20_000), "{report:?}");
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "v1-1")?.inbound_direct, 0);
    Ok(())
}

/// A running shop, and a client that weft does not capture.
fn shop_with_outsider() -> Result<(Pod, Shop)> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let outsider = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
    shop.manifests.put(&plain_namespace("elsewhere"))?;
    shop.manifests.put_pod(&outsider)?;
    shop.start()?;
    Ok((outsider, shop))
}

#[test]
fn ten_destinations_take_50_000_short_connections_in_30_seconds() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    for number in 3..10 {
        shop.add_service(&format!("more-{number}"), &[("app", "web")])?;
    }
    shop.start()?;
    let mut args = Vec::new();
    for name in ["web", "web-v1", "more-3", "more-4", "more-5", "more-6", "more-7", "more-8", "more-9"] {
        args.extend(["--to".to_owned(), shop.service(name, 80)?]);
    }
    args.extend(["--to".to_owned(), format!("{}:8080", shop.server("v1-1")?.pod.ipv4())]);
    assert_eq!(args.len(), 20);
    let flags = ["--connections", "50000", "--concurrency", "64", "--rate", "1800", "--timeout-ms", "10000"];
    args.extend(flags.map(str::to_owned));
    let report = shop.load(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert_eq!(report.statuses.get(&200), Some(&50_000), "{report:?}");
    assert!(report.elapsed_ms <= 30_000, "{} ms: {report:?}", report.elapsed_ms);
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured, 50_000);
    Ok(())
}
