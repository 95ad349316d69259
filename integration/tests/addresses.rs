//! Which addresses both sides see, and that the node's own packet filter still counts.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use weft_integration::{
    PodSpec, Shop,
    manifests::key,
    objects::{ServicePort, plain_namespace, service},
    shop::{ASK, GREET, HTTP, NAMESPACE, load},
    testpod::LoadReport,
};

#[test]
fn the_server_sees_the_client_pod_and_the_client_sees_the_service() -> Result<()> {
    let shop = Shop::running("open")?;
    for (service_ip, client_ip) in shop.service_ips("web")?.into_iter().zip(shop.client.ips()) {
        let address = SocketAddr::from((service_ip, 80));
        let who = shop.who(&format!("http://{address}/who"), &[])?;
        assert_eq!(who["peer"], client_ip.to_string());
        // curl asks the kernel (getpeername, getsockname).
        let seen = shop.curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{remote_ip} %{remote_port} %{local_ip}",
            &format!("http://{address}/"),
        ])?;
        assert_eq!(seen, format!("{service_ip} 80 {client_ip}"));
    }
    let stats = shop.agent()?.pod_stats(NAMESPACE, "client")?;
    assert_eq!((stats.outbound_captured, stats.outbound_direct), (4, 0));
    Ok(())
}

#[test]
fn a_v4_mapped_destination_is_captured() -> Result<()> {
    let shop = Shop::running("open")?;
    let [v4, _] = shop.service_ips("web")?;
    let report = shop.load(&["--to", &format!("[::ffff:{v4}]:80")])?;
    assert_eq!(report.statuses.get(&200), Some(&1), "{report:?}");
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured, 1);
    Ok(())
}

#[test]
fn a_socket_bound_to_the_interface_or_an_address_is_captured() -> Result<()> {
    let shop = Shop::running("open")?;
    let url = format!("http://{}/who", shop.service("web", 80)?);
    let own = shop.client.ipv4().to_string();
    for bind in [["--interface", "eth0"], ["--interface", own.as_str()]] {
        assert_eq!(shop.who(&url, &bind)?["peer"], own, "{bind:?}");
    }
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured, 2);
    Ok(())
}

#[test]
fn a_client_that_is_not_captured_keeps_its_address_too() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let outsider = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
    shop.manifests.put(&plain_namespace("elsewhere"))?;
    shop.manifests.put_pod(&outsider)?;
    shop.start()?;
    let server = &shop.server("v1-1")?.pod;
    for (to, from) in server.ips().into_iter().zip(outsider.ips()) {
        for (speech, port) in [("http", HTTP), ("ask", ASK), ("listen", GREET)] {
            let report = load(&outsider, &["--to", &SocketAddr::from((to, port)).to_string(), "--speech", speech])?;
            assert_eq!(report.served, 1, "{speech} to {to}: {report:?}");
        }
        let url = format!("http://{}/who", SocketAddr::from((to, HTTP)));
        let answer =
            weft_integration::command::output(outsider.command("curl").args(["-sS", "--max-time", "5", &url]))?;
        let who: serde_json::Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        assert_eq!(who["peer"], from.to_string());
    }
    let stats = shop.agent()?.pod_stats(NAMESPACE, "v1-1")?;
    assert_eq!((stats.inbound_direct, stats.inbound_node), (0, 0));
    assert_eq!(shop.agent()?.inbound_connections()?, 8);
    let peers = &shop.server("v1-1")?.stats()?.ports[&ASK].peers;
    assert_eq!(peers.keys().cloned().collect::<Vec<_>>(), outsider.ips().map(|ip| ip.to_string()));
    Ok(())
}

#[test]
fn a_pod_can_ask_itself() -> Result<()> {
    let shop = Shop::running("open")?;
    let server = &shop.server("v1-1")?.pod;
    for to in [shop.service("web", 80)?, format!("{}:{HTTP}", server.ipv4()), format!("127.0.0.1:{HTTP}")] {
        let report = load(server, &["--to", &to])?;
        assert_eq!(report.statuses.get(&200), Some(&1), "{to}: {report:?}");
        assert_eq!(report.servers.get("v1-1"), Some(&1), "{to}: {report:?}");
    }
    Ok(())
}

#[test]
fn pod_addresses_and_headless_services_lead_to_that_very_pod() -> Result<()> {
    let mut shop = Shop::with_servers("open", 2, 0)?;
    let ports = [ServicePort::http(HTTP, HTTP)];
    shop.manifests.put(&service(NAMESPACE, "web-headless", &[("app", "web")], &[], &ports))?;
    shop.start()?;
    for web in &shop.web {
        for ip in web.pod.ips() {
            let who = shop.who(&format!("http://{}/who", SocketAddr::from((ip, HTTP))), &[])?;
            assert_eq!(who["name"], web.pod.name());
        }
    }
    let stats = shop.agent()?.pod_stats(NAMESPACE, "client")?;
    assert_eq!((stats.outbound_captured, stats.outbound_direct), (4, 0));
    Ok(())
}

#[test]
fn packets_that_the_node_drops_between_two_pods_do_not_arrive() -> Result<()> {
    let shop = Shop::running("open")?;
    let web = &shop.server("v1-1")?;
    let to = shop.service("web", 80)?;
    assert_eq!(shop.load(&["--to", &to])?.statuses.get(&200), Some(&1));
    let before = web.stats()?;
    shop.node.drop_packets(shop.client.ipv4().into(), web.pod.ipv4().into())?;
    // The connection that the agent keeps from before is cut off too.
    for (speech, port) in [("http", 80), ("ask", ASK)] {
        let to = shop.service("web", port)?;
        let report: LoadReport = shop.load(&["--to", &to, "--speech", speech, "--timeout-ms", "2000"])?;
        assert_eq!(report.statuses.get(&200), None, "{speech}: {report:?}");
        assert!(!report.servers.contains_key("v1-1"), "{speech}: {report:?}");
    }
    assert_eq!(web.stats()?, before, "nothing has reached the application");
    // The other family is not dropped.
    let v6 = SocketAddr::from((shop.service_ips("web")?[1], 80));
    let who = shop.who(&format!("http://{v6}/who"), &[])?;
    assert_eq!(who["name"], "v1-1");
    Ok(())
}

#[test]
fn a_pod_of_the_host_network_is_captured_outbound() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 1)?;
    let host = shop.node.pod(PodSpec::new(NAMESPACE, "on-host").host_network())?;
    shop.manifests.put_pod(&host)?;
    shop.manifests.put(&weft_integration::objects::traffic_split(NAMESPACE, "split", "web", &[("web-v2", 1)]))?;
    shop.start()?;
    shop.agent()?.wait_captured(NAMESPACE, "on-host")?;
    shop.agent()?.wait_shares(NAMESPACE, "web", &[("split", &[("web-v2", 100.0)])])?;
    let to = shop.service("web", 80)?;
    let report = load(&host, &["--to", &to, "--connections", "20"])?;
    assert_eq!(report.servers.get("v2-1"), Some(&20), "{report:?}");
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "on-host")?.outbound_captured, 20);
    // The node's own processes share the network namespace and are left alone.
    let mut node_client = shop.node.command(&weft_integration::testpod::binary()?.to_string_lossy());
    node_client.args(["load", "--to", &to, "--connections", "20"]);
    let report: LoadReport = serde_json::from_str(&weft_integration::command::output(&mut node_client)?)?;
    assert_eq!(report.served, 20, "{report:?}");
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "on-host")?.outbound_captured, 20);
    Ok(())
}

#[test]
fn destinations_that_are_no_service_and_no_pod_pass() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    // A pod that the agent is not told of: some machine outside.
    let outside = shop.node.pod(PodSpec::new("nowhere", "outside"))?;
    let serving = outside.serve(&["--http", "8080"])?;
    shop.start()?;
    let report = shop.load(&["--to", &format!("{}:8080", outside.ipv4())])?;
    assert_eq!(report.statuses.get(&200), Some(&1), "{report:?}");
    assert_eq!(serving.stats()?.connections(), 1);
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured, 0);
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_at_connect() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    shop.add_service("nobody", &[("app", "nobody")])?;
    shop.start()?;
    for ip in shop.service_ips("nobody")? {
        let report = shop.load(&["--to", &SocketAddr::from((ip, 80)).to_string(), "--speech", "connect"])?;
        assert_eq!(report.refused, 1, "{report:?}");
    }
    Ok(())
}

#[test]
fn an_unready_pod_gets_no_new_connection() -> Result<()> {
    let mut shop = Shop::with_servers("open", 2, 0)?;
    shop.start()?;
    let to = shop.service("web", 80)?;
    let both = shop.load(&["--to", &to, "--connections", "100"])?;
    assert_eq!(both.servers.len(), 2, "{both:?}");
    let unready = shop.server("v1-2")?.pod.object(false);
    assert_eq!(key(&unready)?.2, "v1-2");
    shop.manifests.put(&unready)?;
    shop.agent()?.wait_endpoints(NAMESPACE, "web", 1)?;
    let one = shop.load(&["--to", &to, "--connections", "100"])?;
    assert_eq!(one.servers.get("v1-1"), Some(&100), "{one:?}");
    Ok(())
}

#[test]
fn a_refused_endpoint_is_not_the_end() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    // Ready by its manifest, but nobody listens there: as between a crash and the next probe.
    let spec = PodSpec::new(NAMESPACE, "v1-crashed").label("app", "web").label("version", "v1").port("http", HTTP);
    let crashed = shop.node.pod(spec)?;
    shop.manifests.put_pod(&crashed)?;
    shop.start()?;
    shop.agent()?.wait_endpoints(NAMESPACE, "web", 2)?;
    for (speech, port) in [("http", 80), ("ask", ASK)] {
        let to = shop.service("web", port)?;
        let report = shop.load(&["--to", &to, "--speech", speech, "--connections", "100"])?;
        assert_eq!(report.servers.get("v1-1"), Some(&100), "{speech}: {report:?}");
    }
    Ok(())
}
