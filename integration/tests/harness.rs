//! The harness itself, without an agent: what every other test relies on.

use std::time::Duration;

use anyhow::Result;
use weft_integration::{
    Manifests, Node, PodSpec, command,
    objects::{ServicePort, cluster_ips, meshed_namespace, service},
    testpod::LoadReport,
};

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn pods_reach_each_other_with_their_own_addresses() -> Result<()> {
    let node = Node::new("node-a")?;
    let client = node.pod(PodSpec::new("shop", "client"))?;
    let server = node.pod(PodSpec::new("shop", "server"))?;
    let serving = server.serve(&["--http", "8080"])?;
    for (from, to) in client.ips().into_iter().zip(server.ips()) {
        let url = format!("http://{}/who", std::net::SocketAddr::from((to, 8080)));
        let answer = command::output(client.command("curl").args(["-sS", "--max-time", "5", &url]))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        assert_eq!(answer["name"], "server");
        assert_eq!(answer["peer"], from.to_string());
    }
    let stats = serving.stats()?;
    assert_eq!(stats.connections_to(8080), 2);
    assert_eq!(stats.requests(), 2);
    Ok(())
}

#[test]
fn service_addresses_lead_to_every_ready_pod() -> Result<()> {
    let node = Node::new("node-a")?;
    let mut manifests = Manifests::new(&node)?;
    let client = node.pod(PodSpec::new("shop", "client"))?;
    let one = node.pod(PodSpec::new("shop", "web-1").label("app", "web").port("http", 8080))?;
    let two = node.pod(PodSpec::new("shop", "web-2").label("app", "web").port("http", 8080))?;
    let unready = node.pod(PodSpec::new("shop", "web-3").label("app", "web").port("http", 8080))?;
    let _serving =
        [one.serve(&["--http", "8080"])?, two.serve(&["--http", "8080"])?, unready.serve(&["--http", "8080"])?];
    manifests.put(&meshed_namespace("shop"))?;
    for pod in [&client, &one, &two] {
        manifests.put_pod(pod)?;
    }
    manifests.put(&unready.object(false))?;
    let ports = [ServicePort::http(80, 0).target_name("http")];
    manifests.put(&service("shop", "web", &[("app", "web")], &cluster_ips(1), &ports))?;
    manifests.put(&service("shop", "empty", &[("app", "nothing")], &cluster_ips(2), &ports))?;
    node.sync_kube_proxy(&manifests)?;
    for ip in cluster_ips(1) {
        let report =
            load(&client, &["--to", &std::net::SocketAddr::from((ip, 80)).to_string(), "--connections", "100"])?;
        assert_eq!(report.served, 100, "{report:?}");
        assert_eq!(report.servers.keys().collect::<Vec<_>>(), ["web-1", "web-2"], "{report:?}");
    }
    let report = load(&client, &["--to", &std::net::SocketAddr::from((cluster_ips(2)[0], 80)).to_string()])?;
    assert_eq!(report.refused, 1, "{report:?}");
    // From the node, as a kubelet or a host process would.
    let report: LoadReport = {
        let mut command = node.command(&weft_integration::testpod::binary()?.to_string_lossy());
        command.args([
            "load",
            "--to",
            &std::net::SocketAddr::from((cluster_ips(1)[0], 80)).to_string(),
            "--connections",
            "10",
        ]);
        serde_json::from_str(&command::output(&mut command)?)?
    };
    assert_eq!(report.served, 10, "{report:?}");
    Ok(())
}

#[test]
fn the_client_tells_what_became_of_every_connection() -> Result<()> {
    let node = Node::new("node-a")?;
    let client = node.pod(PodSpec::new("shop", "client"))?;
    let server = node.pod(PodSpec::new("shop", "server"))?;
    let _serving =
        server.serve(&["--tcp", "ask:9000", "--tcp", "greet:9001", "--tcp", "reset:9002", "--tcp", "stall:9003"])?;
    let to = |port: u16| std::net::SocketAddr::from((server.ipv4(), port)).to_string();
    let served = load(
        &client,
        &["--to", &to(9000), "--speech", "ask", "--connections", "200", "--concurrency", "200", "--hold"],
    )?;
    assert_eq!((served.served, served.servers.get("server")), (200, Some(&200)), "{served:?}");
    assert_eq!(load(&client, &["--to", &to(9001), "--speech", "listen"])?.served, 1);
    assert_eq!(load(&client, &["--to", &to(9002), "--speech", "ask"])?.reset, 1);
    assert_eq!(load(&client, &["--to", &to(9003), "--speech", "ask", "--timeout-ms", "200"])?.timed_out, 1);
    assert_eq!(load(&client, &["--to", &to(9), "--speech", "ask"])?.refused, 1);
    // A few source ports, used again and again; none that the connections above may have been given.
    let ports = ["--source-ports", "20000-20009", "--linger-zero", "--mark", "7"];
    let reused =
        load(&client, &[&["--to", &to(9000), "--speech", "ask", "--connections", "500"], &ports[..]].concat())?;
    assert_eq!(reused.served, 500, "{reused:?}");
    Ok(())
}

#[test]
fn dropped_packets_do_not_arrive() -> Result<()> {
    let node = Node::new("node-a")?;
    let client = node.pod(PodSpec::new("shop", "client"))?;
    let server = node.pod(PodSpec::new("shop", "server"))?;
    let serving = server.serve(&["--tcp", "ask:9000"])?;
    node.drop_packets(client.ipv4().into(), server.ipv4().into())?;
    let to = format!("{}:9000", server.ipv4());
    let report = load(&client, &["--to", &to, "--speech", "ask", "--timeout-ms", "300"])?;
    assert_eq!(report.timed_out, 1, "{report:?}");
    assert_eq!(serving.stats()?.connections(), 0);
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let node = Node::new("node-a")?;
    let (prefix, cgroup, dir) = (node.prefix(), node.cgroup().to_path_buf(), node.state_dir());
    let pod = node.pod(PodSpec::new("shop", "server"))?;
    let serving = pod.serve(&["--http", "8080"])?;
    assert!(!weft_integration::namespace::names_with_prefix(&prefix)?.is_empty());
    drop((serving, pod, node));
    assert!(weft_integration::namespace::names_with_prefix(&prefix)?.is_empty());
    assert!(!cgroup.exists() && !dir.exists());
    Ok(())
}

fn load(pod: &weft_integration::Pod, args: &[&str]) -> Result<LoadReport> {
    let mut command = pod.testpod()?;
    command.arg("load").args(args);
    let mut process = pod.spawn(command)?;
    Ok(serde_json::from_str(&process.finish(WAIT)?)?)
}
