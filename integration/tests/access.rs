//! Who may reach what, on every path into a pod: what TrafficTargets and stances say holds, is told, and ends what it does not let
//! through any more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_integration::{
    AgentOptions, Pod, PodSpec, Shop, command,
    objects::{
        ServicePort, meshed_namespace_by_default, meshed_namespace_failing, plain_namespace, route_group, service,
        tcp_route, traffic_split, traffic_target,
    },
    shop::{ASK, ECHO, HTTP, NAMESPACE, load},
    testpod, wait,
};

/// A change of a manifest shows.
const IN_FORCE: Duration = Duration::from_secs(10);
/// A connection that is denied now ends.
const CUT_WITHIN: Duration = Duration::from_secs(1);
const TALK_TIMEOUT: Duration = Duration::from_secs(30);

/// Status and `weft-reason` of a request that a pod makes; the status is 000 where there is no answer.
fn ask(pod: &Pod, url: &str, args: &[&str]) -> Result<(String, String)> {
    let mut curl = pod.command("curl");
    curl.args(["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code} %header{weft-reason}", url]).args(args);
    // curl fails where there is no answer, and says 000 all the same.
    let output = curl.output().context("cannot run curl")?;
    let text = String::from_utf8(output.stdout)?;
    let (status, reason) = text.split_once(' ').with_context(|| format!("curl said {text:?}"))?;
    Ok((status.to_owned(), reason.to_owned()))
}

fn status(pod: &Pod, url: &str) -> Result<String> {
    Ok(ask(pod, url, &[])?.0)
}

fn comes(pod: &Pod, url: &str, wanted: &str) -> Result<()> {
    wait::until(&format!("{url} to answer {wanted}"), IN_FORCE, || Ok((status(pod, url)? == wanted).then_some(())))
}

fn allowed() -> (String, String) {
    ("200".to_owned(), String::new())
}

fn denied() -> (String, String) {
    ("403".to_owned(), "denied".to_owned())
}

/// How connections with the habit `ask` end, for a pod: (served, refused or reset).
fn ask_bytes(pod: &Pod, to: &str) -> Result<(u64, u64)> {
    let report = load(pod, &["--to", to, "--speech", "ask", "--connections", "5", "--timeout-ms", "5000"])?;
    Ok((report.served, report.refused + report.reset))
}

/// A shop with one server, its own headless Service, a pod of another account, and one that is not meshed.
struct Stage {
    shop: Shop,
    other: Pod,
    outsider: Pod,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut shop = Shop::with_servers("open", 1, 0)?;
        let ports = [ServicePort::http(HTTP, HTTP)];
        shop.manifests.put(&service(NAMESPACE, "headless", &[("app", "web")], &[], &ports))?;
        let other = shop.node.pod(PodSpec::new(NAMESPACE, "other").account("other"))?;
        let outsider = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
        shop.manifests.put(&plain_namespace("elsewhere"))?;
        shop.manifests.put_pod(&other)?;
        shop.manifests.put_pod(&outsider)?;
        Ok(Self { shop, other, outsider })
    }

    fn running() -> Result<Self> {
        let mut stage = Self::new()?;
        stage.shop.start()?;
        stage.shop.agent()?.wait_captured(NAMESPACE, "other")?;
        Ok(stage)
    }

    fn web(&self) -> Result<&Pod> {
        Ok(&self.shop.server("v1-1")?.pod)
    }

    /// Every way to the server's HTTP port, without the path: URL, and the Host where it is not the URL's own.
    fn ways(&self) -> Result<Vec<(String, Option<&'static str>)>> {
        let mut ways = Vec::new();
        for ip in self.shop.service_ips("web")? {
            ways.push((format!("http://{}", std::net::SocketAddr::from((ip, 80))), None));
        }
        for ip in self.web()?.ips() {
            let at = format!("http://{}", std::net::SocketAddr::from((ip, HTTP)));
            ways.push((at.clone(), None));
            ways.push((at, Some("headless.shop")));
        }
        Ok(ways)
    }

    fn each_way(&self, from: &Pod, path: &str, wanted: &(String, String)) -> Result<()> {
        for (way, host) in self.ways()? {
            let host = host.map(|host| format!("Host: {host}"));
            let args: Vec<&str> = host.iter().flat_map(|host| ["-H", host]).collect();
            assert_eq!(&ask(from, &format!("{way}{path}"), &args)?, wanted, "{} to {way}{path} {host:?}", from.name());
        }
        Ok(())
    }
}

#[test]
fn a_target_grants_what_it_says_on_every_path_and_nothing_else() -> Result<()> {
    let mut stage = Stage::running()?;
    let vip = format!("http://{}", stage.shop.service("web", 80)?);
    for from in [&stage.shop.client, &stage.other, &stage.outsider] {
        assert_eq!(ask(from, &format!("{vip}/who"), &[])?, allowed(), "{}: nothing selects the server", from.name());
    }
    let objects = [
        route_group(NAMESPACE, "routes", &[("who", "/who", &["GET"]), ("bytes", "/bytes/", &["*"])]),
        traffic_target(NAMESPACE, "web", "web", &[("HTTPRouteGroup", "routes")], &["client"]),
    ];
    stage.shop.manifests.put_all(&objects)?;
    comes(&stage.other, &format!("{vip}/who"), "403")?;
    stage.each_way(&stage.shop.client, "/who", &allowed())?;
    stage.each_way(&stage.shop.client, "/bytes/10", &allowed())?;
    stage.each_way(&stage.shop.client, "/status/204", &denied())?;
    stage.each_way(&stage.other, "/who", &denied())?;
    // A stranger reaches the pod itself, by its address and through kube-proxy.
    stage.each_way(&stage.outsider, "/who", &denied())?;
    assert_eq!(ask(&stage.shop.client, &format!("{vip}/who"), &["-X", "POST"])?, denied());
    let answer = stage.shop.curl(&[&format!("{vip}/status/204")])?;
    assert!(answer.contains("not granted by TrafficTarget shop/web"), "{answer:?}");
    let shown = stage.shop.agent()?.access()?;
    let of = |name: &str| shown.iter().find(|pod| pod["name"] == name).context("not shown");
    let grant = &of(stage.web()?.name())?["targets"][0];
    assert_eq!((&grant["accounts"], &grant["tcp_ports"]), (&json!(["shop/client"]), &Value::Null), "{grant}");
    assert_eq!(grant["requests"].as_array().map(Vec::len), Some(2), "{grant}");
    assert_eq!((&of("client")?["stance"], &of("client")?["targets"]), (&json!("allow"), &json!([])));
    // Requests were granted, and nothing else.
    for from in [&stage.shop.client, &stage.other, &stage.outsider] {
        for to in [stage.shop.service("web", ASK)?, format!("{}:{ASK}", stage.web()?.ipv4())] {
            assert_eq!(ask_bytes(from, &to)?, (0, 5), "{} to {to}", from.name());
        }
    }
    // The server itself, and its node.
    stage.each_way(stage.web()?, "/status/204", &("204".to_owned(), String::new()))?;
    let mut probe = stage.shop.node.command(&testpod::binary()?.to_string_lossy());
    let at = format!("{}:{HTTP}", stage.web()?.ipv4());
    probe.args(["load", "--to", &at, "--connections", "10"]);
    let report: testpod::LoadReport = serde_json::from_str(&command::output(&mut probe)?)?;
    assert_eq!(report.statuses.get(&200), Some(&10), "{report:?}");

    let agent = stage.shop.agent()?;
    for basis in ["not_granted", "unidentified", "not_http"] {
        let labels = ["destination_namespace=\"shop\"", &format!("basis=\"{basis}\"")];
        assert!(agent.metric("weft_denied_total", &labels)? > 0.0, "{basis}: {}", agent.metrics()?);
    }
    let log = agent.log();
    let said = |line: &str| line.contains("not let through") && line.contains("not granted by TrafficTarget shop/web");
    assert!(log.lines().any(said), "no line in the access log: {log}");

    stage.shop.manifests.remove("TrafficTarget", NAMESPACE, "web")?;
    comes(&stage.other, &format!("{vip}/who"), "200")?;
    stage.each_way(&stage.outsider, "/who", &allowed())
}

#[test]
fn a_namespace_that_denies_by_default_needs_a_target() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.shop.manifests.put(&meshed_namespace_by_default(NAMESPACE, "deny"))?;
    stage.shop.start()?;
    stage.shop.agent()?.wait_captured(NAMESPACE, "other")?;
    let who = format!("http://{}/who", stage.shop.service("web", 80)?);
    let bytes = stage.shop.service("web", ASK)?;
    stage.each_way(&stage.shop.client, "/who", &denied())?;
    stage.each_way(&stage.outsider, "/who", &denied())?;
    assert_eq!(ask_bytes(&stage.shop.client, &bytes)?, (0, 5));
    let objects = [
        tcp_route(NAMESPACE, "all", &[]),
        traffic_target(NAMESPACE, "web", "web", &[("TCPRoute", "all")], &["client"]),
    ];
    stage.shop.manifests.put_all(&objects)?;
    comes(&stage.shop.client, &who, "200")?;
    stage.each_way(&stage.shop.client, "/who", &allowed())?;
    stage.each_way(&stage.other, "/who", &denied())?;
    assert_eq!(ask_bytes(&stage.shop.client, &bytes)?, (5, 0));
    for (kind, name) in [("TrafficTarget", "web"), ("TCPRoute", "all")] {
        stage.shop.manifests.remove(kind, NAMESPACE, name)?;
    }
    comes(&stage.shop.client, &who, "403")?;
    stage.shop.manifests.put(&meshed_namespace_by_default(NAMESPACE, "allow"))?;
    comes(&stage.shop.client, &who, "200")
}

#[test]
fn with_a_strict_default_the_mesh_refuses_plaintext_where_a_namespace_does_not_say_otherwise() -> Result<()> {
    let mut stage = Stage::new()?;
    let options = AgentOptions { arguments: vec!["--mtls".to_owned(), "strict".to_owned()], ..AgentOptions::default() };
    stage.shop.start_with(options)?;
    stage.shop.agent()?.wait_captured(NAMESPACE, "other")?;
    let by = json!({"kind": "Option", "namespace": "", "name": "--mtls=strict"});
    let mtls = stage.shop.agent()?.status()?.mtls;
    assert_eq!((&mtls["default"], &mtls["strict"]), (&json!("strict"), &json!([{"namespace": NAMESPACE, "by": by}])));
    // The kernel vouches for both ends on one node; the outsider has nobody.
    stage.each_way(&stage.shop.client, "/who", &allowed())?;
    stage.each_way(&stage.other, "/who", &allowed())?;
    for (way, _) in stage.ways()? {
        let (status, _) = ask(&stage.outsider, &format!("{way}/who"), &[])?;
        assert!(status == "403" || status == "000", "{way}: {status}");
    }
    let refused = stage.shop.agent()?.metric("weft_denied_total", &["basis=\"plaintext\""])?;
    assert!(refused > 0.0, "nothing was counted");
    // Whoever is not in the mesh could not speak mutual TLS, and is talked to all the same.
    let _outside = stage.outsider.serve(&["--http", &HTTP.to_string()])?;
    comes(&stage.shop.client, &format!("http://{}:{HTTP}/who", stage.outsider.ipv4()), "200")?;
    let mut namespace = meshed_namespace_failing(NAMESPACE, "open");
    namespace["metadata"]["labels"]["weft.dev/mtls"] = "permissive".into();
    stage.shop.manifests.put(&namespace)?;
    comes(&stage.outsider, &format!("http://{}:{HTTP}/who", stage.web()?.ipv4()), "200")?;
    stage.each_way(&stage.outsider, "/who", &allowed())?;
    let mtls = stage.shop.agent()?.status()?.mtls;
    assert_eq!(mtls["strict"], json!([]), "{mtls}");
    Ok(())
}

#[test]
fn ports_and_requests_of_one_target_hold_together() -> Result<()> {
    let mut stage = Stage::running()?;
    let who = format!("http://{}/who", stage.shop.service("web", 80)?);
    let (ask_at, echo_at) = (stage.shop.service("web", ASK)?, stage.shop.service("web", ECHO)?);
    let objects = [
        route_group(NAMESPACE, "routes", &[("who", "/who", &["GET"])]),
        tcp_route(NAMESPACE, "ask", &[ASK]),
        tcp_route(NAMESPACE, "http", &[HTTP]),
        traffic_target(NAMESPACE, "ask", "web", &[("TCPRoute", "ask")], &["client"]),
    ];
    stage.shop.manifests.put_all(&objects)?;
    comes(&stage.shop.client, &who, "403")?;
    assert_eq!(ask_bytes(&stage.shop.client, &ask_at)?, (5, 0));
    assert_eq!(ask_bytes(&stage.shop.client, &echo_at)?, (0, 5), "another port");
    let both = [("TCPRoute", "ask"), ("HTTPRouteGroup", "routes")];
    stage.shop.manifests.put(&traffic_target(NAMESPACE, "ask", "web", &both, &["client"]))?;
    wait::until("bytes to be denied", IN_FORCE, || {
        Ok((ask_bytes(&stage.shop.client, &ask_at)? == (0, 5)).then_some(()))
    })?;
    assert_eq!(status(&stage.shop.client, &who)?, "403", "requests on the port that is not granted");
    let both = [("TCPRoute", "http"), ("HTTPRouteGroup", "routes")];
    stage.shop.manifests.put(&traffic_target(NAMESPACE, "ask", "web", &both, &["client"]))?;
    comes(&stage.shop.client, &who, "200")?;
    // Targets add up.
    stage.shop.manifests.put(&traffic_target(
        NAMESPACE,
        "more",
        "web",
        &[("TCPRoute", "ask")],
        &["client", "other"],
    ))?;
    wait::until("bytes to be granted", IN_FORCE, || Ok((ask_bytes(&stage.other, &ask_at)? == (5, 0)).then_some(())))?;
    assert_eq!(status(&stage.shop.client, &who)?, "200");
    assert_eq!(status(&stage.other, &who)?, "403");
    Ok(())
}

#[test]
fn a_split_leads_to_a_denial_where_the_chosen_backend_denies() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let canary = PodSpec::new(NAMESPACE, "v2-1").account("canary").label("app", "web").label("version", "v2");
    let canary = shop.node.pod(canary.port("http", HTTP))?;
    let _server = canary.serve(&["--http", &HTTP.to_string()])?;
    shop.manifests.put_pod(&canary)?;
    shop.manifests.put(&traffic_split(NAMESPACE, "web", "web", &[("web-v1", 50), ("web-v2", 50)]))?;
    shop.manifests.put(&tcp_route(NAMESPACE, "all", &[]))?;
    shop.manifests.put(&traffic_target(NAMESPACE, "canary", "canary", &[("TCPRoute", "all")], &["nobody"]))?;
    shop.start()?;
    let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "40", "--path", "/who"])?;
    assert_eq!(report.served, 40, "{report:?}");
    let (served, refused) = (report.statuses.get(&200), report.statuses.get(&403));
    assert!(served.is_some_and(|count| *count >= 15) && refused.is_some_and(|count| *count >= 15), "{report:?}");
    Ok(())
}

#[test]
fn bytes_that_are_denied_now_are_cut_off_within_a_second() -> Result<()> {
    let mut stage = Stage::running()?;
    let to = stage.shop.service("web", ECHO)?;
    for from in ["client", "outsider"] {
        let pod = if from == "client" { &stage.shop.client } else { &stage.outsider };
        let mut talk = pod.testpod()?;
        let steps = ["send:hello", "until:hello", "end"];
        talk.args(["talk", "--to", &to, "--timeout-ms", "20000"]);
        talk.args(steps.iter().flat_map(|step| ["--step", step]));
        let mut talk = pod.spawn(talk)?;
        wait::until("the connection to carry bytes", IN_FORCE, || {
            let flows = weft_integration::agent::weft(&stage.shop.node, &["flows"])?;
            let flows: Vec<serde_json::Value> = serde_json::from_str(&flows)?;
            Ok(flows.iter().any(|flow| flow["bytes_received"].as_u64() == Some(5)).then_some(()))
        })?;
        let changed = Instant::now();
        stage.shop.manifests.put(&traffic_target(NAMESPACE, "web", "web", &[("TCPRoute", "none")], &["other"]))?;
        let output = talk.finish(TALK_TIMEOUT)?;
        let took = changed.elapsed();
        let transcript: testpod::talk::Transcript = serde_json::from_str(output.trim())?;
        assert_eq!(
            (transcript.received.as_str(), transcript.end.as_str()),
            ("hello", "reset"),
            "{from}: {transcript:?}"
        );
        assert!(took < CUT_WITHIN, "{from}: {took:?}");
        stage.shop.manifests.remove("TrafficTarget", NAMESPACE, "web")?;
        comes(&stage.outsider, &format!("http://{}/who", stage.shop.service("web", 80)?), "200")?;
    }
    assert!(stage.shop.agent()?.metric("weft_connections_cut_total", &["reason=\"denied\""])? >= 2.0);
    Ok(())
}

#[test]
fn with_the_agent_gone_pods_that_deny_are_closed_whatever_their_label_says() -> Result<()> {
    let mut stage = Stage::running()?;
    let who = format!("http://{}/who", stage.shop.service("web", 80)?);
    let objects = [
        tcp_route(NAMESPACE, "all", &[]),
        traffic_target(NAMESPACE, "web", "web", &[("TCPRoute", "all")], &["client"]),
    ];
    stage.shop.manifests.put_all(&objects)?;
    comes(&stage.outsider, &who, "403")?;
    stage.shop.agent()?.wait_status("the server to be closed", |status| {
        let mode = |name: &str| status.pods.iter().find(|pod| pod.name == name).map(|pod| pod.fail_mode.as_str());
        (mode("v1-1") == Some("closed") && mode("client") == Some("open")).then_some(())
    })?;
    stage.shop.take_agent()?.kill()?;
    let at = format!("{}:{HTTP}", stage.web()?.ipv4());
    for from in [&stage.shop.client, &stage.outsider] {
        let report = load(from, &["--to", &at, "--connections", "10"])?;
        assert_eq!(report.refused + report.reset, 10, "{}: {report:?}", from.name());
    }
    // And open again once nothing selects it.
    stage.shop.start()?;
    stage.shop.manifests.remove("TrafficTarget", NAMESPACE, "web")?;
    stage.shop.manifests.put(&meshed_namespace_failing(NAMESPACE, "open"))?;
    comes(&stage.outsider, &who, "200")?;
    stage.shop.take_agent()?.kill()?;
    assert_eq!(load(&stage.outsider, &["--to", &at, "--connections", "10"])?.served, 10);
    Ok(())
}
