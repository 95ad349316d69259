//! Real programs, as their packages bring them: captured, and none the wiser.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{
    Pod, Process, Shop, agent, command,
    objects::ServicePort,
    programs::{mariadb, nginx, redis, script},
    shop::NAMESPACE,
    wait,
};

/// Longest run of a client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A shop with one program, captured; the Service has the program's name.
fn running(name: &str, ports: &[ServicePort], start: impl FnOnce(&Pod, &Path) -> Result<Process>) -> Result<Shop> {
    let mut shop = Shop::empty("open")?;
    shop.add_program(name, ports, start)?;
    shop.start()?;
    Ok(shop)
}

/// Requests to a Service that the agent has answered, and connections that the client made to it, so far. Counters follow by the
/// worker's tick, so this waits until they are as expected.
fn wait_counted(shop: &Shop, service: &str, requests: Option<f64>, connections: f64) -> Result<()> {
    let label = format!("destination_service=\"{service}\"");
    let labels = [label.as_str(), "direction=\"outbound\""];
    let mut last = (0.0, 0.0);
    wait::until("requests and connections to be counted", Duration::from_secs(5), || {
        let agent = shop.agent()?;
        last = (agent.metric("weft_requests_total", &labels[..1])?, agent.metric("weft_connections_total", &labels)?);
        Ok((requests.is_none_or(|requests| last.0 == requests) && last.1 == connections).then_some(()))
    })
    .with_context(|| format!("{service}: (requests, connections) are {last:?}, not ({requests:?}, {connections})"))?;
    // None went past the agent, in either direction.
    for pod in ["client", service] {
        let stats = shop.agent()?.pod_stats(NAMESPACE, pod)?;
        ensure!(stats.outbound_direct == 0 && stats.inbound_direct == 0, "{pod}: {stats:?}");
    }
    Ok(())
}

/// What the agent says of the client's open connections to a Service.
fn flow_protocols(shop: &Shop, service: &str) -> Result<Vec<String>> {
    let flows: Vec<Value> = serde_json::from_str(&agent::weft(&shop.node, &["flows"])?)?;
    let destination = format!("{NAMESPACE}/{service}:");
    Ok(flows
        .iter()
        .filter(|flow| flow["destination"].as_str().is_some_and(|to| to.starts_with(&destination)))
        .filter_map(|flow| flow["protocol"].as_str().map(str::to_owned))
        .collect())
}

fn nginx_ports() -> Vec<ServicePort> {
    vec![
        // The names of these two say nothing.
        ServicePort::named("main", 80, nginx::HTTP1),
        ServicePort::named("other", 81, nginx::HTTP2),
        ServicePort::named("http", 90, nginx::HTTP1),
        ServicePort::named("x", 91, nginx::HTTP2).app_protocol("kubernetes.io/h2c"),
        ServicePort::named("secure", 443, nginx::TLS),
        ServicePort::named("https", 444, nginx::TLS),
    ]
}

#[test]
fn curl_and_nginx_speak_http_1_on_ports_declared_or_not() -> Result<()> {
    let shop = running("nginx", &nginx_ports(), nginx::start)?;
    let client = shop.client.ipv4();
    for port in [80, 90] {
        let to = shop.service("nginx", port)?;
        // One connection, many requests.
        let urls: Vec<String> = (0..20).map(|number| format!("http://{to}/{number}")).collect();
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let answers = shop.curl(&[&["--http1.1"], &urls[..]].concat())?;
        let expected: String =
            (0..20).map(|number| format!("HTTP/1.1 GET {client} {} /{number}\n", &to[..to.len() - 3])).collect();
        assert_eq!(answers, expected);
        let large =
            shop.curl(&["--http1.1", &format!("http://{to}/large"), "-o", "/dev/null", "-w", "%{size_download}"])?;
        assert_eq!(large, nginx::LARGE_BYTES.to_string());
    }
    wait_counted(&shop, "nginx", Some(42.0), 4.0)
}

#[test]
fn tls_passes_through_to_nginx_with_its_own_certificate() -> Result<()> {
    let shop = running("nginx", &nginx_ports(), nginx::start)?;
    let certificate = shop.node.state_dir().join("nginx/cert.pem");
    let certificate = certificate.to_str().context("path")?;
    let ip = shop.service_ips("nginx")?[0];
    let client = shop.client.ipv4();
    let mut connections = 0.0;
    for port in ["443", "444"] {
        for (flag, protocol) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
            let resolve = format!("{}:{port}:{ip}", nginx::TLS_NAME);
            let url = format!("https://{}:{port}/x", nginx::TLS_NAME);
            // The client itself checks the certificate, against the name that it asked for.
            let answer = shop.curl(&[flag, "--cacert", certificate, "--resolve", &resolve, &url])?;
            assert_eq!(answer, format!("{protocol} GET {client} {} /x\n", nginx::TLS_NAME));
            connections += 1.0;
        }
    }
    // Nothing was looked into.
    wait_counted(&shop, "nginx", Some(0.0), connections)
}

#[test]
fn redis_and_its_clients_talk_on_ports_declared_or_not() -> Result<()> {
    let ports = [ServicePort::named("main", 6379, redis::PORT), ServicePort::named("redis", 6380, redis::PORT)];
    let shop = running("redis", &ports, redis::start)?;
    let ip = shop.service_ips("redis")?[0].to_string();
    let mut connections = 0.0;
    for port in ["6379", "6380"] {
        let redis =
            |args: &[&str]| command::output(shop.client.command("redis-cli").args(["-h", &ip, "-p", port]).args(args));
        assert_eq!(redis(&["ping"])?.trim(), "PONG");
        assert_eq!(redis(&["set", "key", &"v".repeat(100_000)])?.trim(), "OK");
        assert_eq!(redis(&["strlen", "key"])?.trim(), "100000");
        // A name that the client gives itself; the list names the address that the server sees.
        let listed = command::input(
            shop.client.command("redis-cli").args(["-h", &ip, "-p", port]),
            "client setname tester\nclient list\n",
        )?;
        ensure!(listed.contains(&format!("addr={}", shop.client.ipv4())) && listed.contains("name=tester"), "{listed}");
        // A long poll: nothing is said for a while, then the server pushes.
        let mut subscribe = shop.client.command("redis-cli");
        subscribe.args(["-h", &ip, "-p", port, "subscribe", "news"]);
        let subscriber = shop.client.spawn(subscribe)?;
        wait::until("the subscription", Duration::from_secs(5), || {
            Ok((redis(&["publish", "news", "hello"])?.trim() == "1").then_some(()))
        })?;
        subscriber.wait_line("the message", Duration::from_secs(5), |line| (line == "hello").then_some(()))?;
        ensure!(flow_protocols(&shop, "redis")?.contains(&"tcp".to_owned()), "{:?}", flow_protocols(&shop, "redis"));
        drop(subscriber);
        connections = shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured as f64;
    }
    ensure!(connections >= 12.0, "{connections} connections");
    let benchmark = command::output(
        shop.client
            .command("redis-benchmark")
            .args(["-h", &ip, "-p", "6379", "-c", "50", "-n", "20000", "-P", "16", "-t", "set,get", "-q"]),
    )?;
    ensure!(benchmark.contains("SET:") && benchmark.contains("GET:") && !benchmark.contains("Error"), "{benchmark}");
    let captured = shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured as f64;
    ensure!(captured >= connections + 100.0, "{captured} connections");
    wait_counted(&shop, "redis", Some(0.0), captured)
}

#[test]
fn mariadb_and_its_client_talk_on_ports_declared_or_not() -> Result<()> {
    let ports = [ServicePort::named("main", 3306, mariadb::PORT), ServicePort::named("mysql", 3307, mariadb::PORT)];
    let shop = running("mariadb", &ports, mariadb::start)?;
    let ip = shop.service_ips("mariadb")?[0].to_string();
    for (number, port) in ["3306", "3307"].iter().enumerate() {
        let script = format!(
            "CREATE TABLE t{number} (n INT, text LONGTEXT);\n\
             INSERT INTO t{number} SELECT seq, REPEAT('x', 1000) FROM seq_1_to_2000;\n\
             SELECT COUNT(*), SUM(LENGTH(text)) FROM t{number};\nSELECT SUBSTRING_INDEX(USER(), '@', -1);\n"
        );
        let mut client = shop.client.command("mariadb");
        client.args(["--no-defaults", "-h", &ip, "-P", port, "-u", mariadb::USER, mariadb::DATABASE, "-N", "-B"]);
        client.arg(format!("-p{}", mariadb::PASSWORD));
        let answer = command::input(&mut client, &script)?;
        assert_eq!(answer, format!("2000\t2000000\n{}\n", shop.client.ipv4()));
    }
    wait_counted(&shop, "mariadb", Some(0.0), 2.0)
}

#[test]
fn websockets_talk_on_ports_declared_or_not() -> Result<()> {
    const PORT: u16 = 8765;
    let ports = [ServicePort::named("main", 80, PORT), ServicePort::named("http", 90, PORT)];
    let shop = running("chat", &ports, |pod, _| script::serve(pod, "websocket_server.py", &[&PORT.to_string()]))?;
    for (round, port) in [80, 90].into_iter().enumerate() {
        let uri = format!("ws://{}/", shop.service("chat", port)?);
        let mut client = shop.client.spawn(script::command(&shop.client, "websocket_client.py", &[&uri, "1"])?)?;
        client.wait_line("ping and pong", CLIENT_TIMEOUT, |line| (line == "ping and pong").then_some(()))?;
        ensure!(flow_protocols(&shop, "chat")? == ["upgraded"], "{:?}", flow_protocols(&shop, "chat"));
        let done = client.finish(CLIENT_TIMEOUT)?;
        assert_eq!(
            done.lines().collect::<Vec<_>>(),
            ["text", "binary up to 8 MiB", "fragments", "ping and pong", "close codes", "many at once"]
        );
        let connections = 54.0 * (round + 1) as f64;
        wait_counted(&shop, "chat", Some(connections), connections)?;
    }
    Ok(())
}
