//! HTTP/2 and gRPC, by real programs.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use weft_integration::{
    Shop, command,
    objects::{ServicePort, cluster_ips, header_route_group, service, traffic_split, traffic_split_matching},
    programs::{nginx, script},
    shop::NAMESPACE,
    wait,
};

/// Port of the gRPC servers.
const GRPC: u16 = 50051;

/// A shop with one gRPC server a name, and a Service for each: port 80 says nothing, 81 says gRPC, 82 says HTTP/2.
fn grpc_shop(names: &[&str]) -> Result<Shop> {
    let mut shop = Shop::empty("open")?;
    for name in names {
        shop.add_program(name, &grpc_ports(), |pod, _| {
            script::serve(pod, "grpc_server.py", &[&GRPC.to_string(), name])
        })?;
    }
    Ok(shop)
}

fn grpc_ports() -> [ServicePort; 3] {
    [
        ServicePort::named("main", 80, GRPC),
        ServicePort::named("grpc", 81, GRPC),
        ServicePort::named("x", 82, GRPC).app_protocol("kubernetes.io/h2c"),
    ]
}

/// Waits until so many requests to a Service were counted, by the name that it was asked by.
fn wait_requests(shop: &Shop, service: &str, requests: f64) -> Result<()> {
    let label = format!("destination_service=\"{service}\"");
    let mut last = 0.0;
    wait::until("requests to be counted", weft_integration::limits::HTTP_TIMEOUT, || {
        last = shop.agent()?.metric("weft_requests_total", &[&label])?;
        Ok((last == requests).then_some(()))
    })
    .with_context(|| format!("{service}: {last} requests, not {requests}"))
}

fn connections(shop: &Shop, service: &str) -> Result<f64> {
    let label = format!("destination_service=\"{service}\"");
    shop.agent()?.metric("weft_connections_total", &[&label, "direction=\"outbound\""])
}

#[test]
fn curl_and_nginx_speak_http_2_with_prior_knowledge_on_ports_declared_or_not() -> Result<()> {
    let ports = [
        ServicePort::named("main", 80, nginx::HTTP2),
        ServicePort::named("http2", 81, nginx::HTTP2),
        ServicePort::named("x", 82, nginx::HTTP2).app_protocol("kubernetes.io/h2c"),
    ];
    let mut shop = Shop::empty("open")?;
    shop.add_program("nginx", &ports, nginx::start)?;
    shop.start()?;
    let (client, mut requests) = (shop.client.ipv4(), 0.0);
    for port in [80, 81, 82] {
        let to = shop.service("nginx", port)?;
        let host = to.split(':').next().unwrap_or_default();
        // One request each: this curl loses its way on a second one, also straight to this nginx.
        for number in 0..5 {
            let answer = shop.curl(&["--http2-prior-knowledge", &format!("http://{to}/{number}")])?;
            assert_eq!(answer, format!("HTTP/2.0 GET {client} {host} /{number}\n"), "port {port}");
        }
        let large = format!("http://{to}/large");
        let size = shop.curl(&["--http2-prior-knowledge", &large, "-o", "/dev/null", "-w", "%{size_download}"])?;
        assert_eq!(size, nginx::LARGE_BYTES.to_string());
        requests += 6.0;
        wait_requests(&shop, "nginx", requests)?;
    }
    Ok(())
}

#[test]
fn grpc_works_in_all_its_ways_on_ports_declared_or_not() -> Result<()> {
    /// Fewer than the client makes.
    const CALLS_MIN: f64 = 520.0;
    let mut shop = grpc_shop(&["echo"])?;
    shop.start()?;
    let mut requests = 0.0;
    for port in [80, 81, 82] {
        let to = shop.service("echo", port)?;
        let before = connections(&shop, "echo")?;
        let done = command::output(&mut script::command(&shop.client, "grpc_client.py", &["cases", &to])?)?;
        assert_eq!(
            done.lines().collect::<Vec<_>>(),
            [
                "unary with metadata and trailers",
                "messages up to 20 MiB",
                "every error status with details",
                "a deadline ends the call on both sides",
                "server streaming",
                "client streaming",
                "bidirectional streaming, in lock step",
                "500 calls at once",
            ],
            "port {port}"
        );
        ensure!(connections(&shop, "echo")? == before + 1.0, "more than one connection");
        // Each call was seen as a request of its own.
        let mut seen = 0.0;
        wait::until("the calls to be counted", weft_integration::limits::HTTP_TIMEOUT, || {
            seen = shop.agent()?.metric("weft_requests_total", &["destination_service=\"echo\""])?;
            Ok((seen >= requests + CALLS_MIN).then_some(()))
        })
        .with_context(|| format!("port {port}: {} calls", seen - requests))?;
        requests = seen;
    }
    Ok(())
}

#[test]
fn calls_on_one_connection_are_split_each_for_itself_and_by_header() -> Result<()> {
    const CALLS: u64 = 1000;
    let mut shop = grpc_shop(&["echo-v1", "echo-v2"])?;
    // The root Service has no pods of its own.
    let root = cluster_ips(99);
    shop.manifests.put(&service(NAMESPACE, "echo", &[("app", "nothing")], &root, &grpc_ports()))?;
    shop.manifests.put(&traffic_split(NAMESPACE, "canary", "echo", &[("echo-v1", 90), ("echo-v2", 10)]))?;
    shop.manifests.put(&header_route_group(NAMESPACE, "testers", "x-tester", "^yes$"))?;
    shop.manifests.put(&traffic_split_matching(NAMESPACE, "testers", "echo", &[("echo-v2", 1)], "testers"))?;
    shop.start()?;
    for port in [80, 81, 82] {
        let to = format!("{}:{port}", root[0]);
        let before = connections(&shop, "echo")?;
        let count = CALLS.to_string();
        let split = |headers: &[&str]| -> Result<BTreeMap<String, u64>> {
            let args = [&["split", &to, &count], headers].concat();
            let said = command::output(&mut script::command(&shop.client, "grpc_client.py", &args)?)?;
            let lines = said.lines().filter_map(|line| line.split_once(' '));
            Ok(lines.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?))).collect())
        };
        let shares = split(&[])?;
        let second = shares.get("echo-v2").copied().unwrap_or_default();
        ensure!(shares.values().sum::<u64>() == CALLS && (95..=105).contains(&second), "port {port}: {shares:?}");
        ensure!(connections(&shop, "echo")? == before + 1.0, "more than one connection");
        assert_eq!(split(&["x-tester=yes"])?, BTreeMap::from([("echo-v2".to_owned(), CALLS)]), "port {port}");
    }
    Ok(())
}
