//! Opaque TCP through capture: ends, halves and resets stay what they were.

use std::time::Duration;

use anyhow::{Context, Result};
use weft_integration::{
    Shop,
    objects::{ServicePort, cluster_ips, service},
    shop::{ASK, ECHO, GREET, HALF_CLOSE, NAMESPACE, RESET, STALL, SUM},
    status::Detected,
    wait,
};

#[test]
fn the_server_may_speak_first() -> Result<()> {
    let shop = Shop::running("open")?;
    let transcript = shop.talk(&shop.service("web", GREET)?, &["until:v1-1 ", "end"])?;
    assert_eq!((transcript.steps_done, transcript.end.as_str()), (2, "eof"), "{transcript:?}");
    assert_eq!(transcript.received.split(' ').nth(1), Some(shop.client.ipv4().to_string().as_str()), "{transcript:?}");
    // The port's name says that it is opaque, so nobody waits for the client.
    assert!(transcript.done_ms[0] < 500, "{transcript:?}");
    Ok(())
}

#[test]
fn a_server_that_speaks_first_on_a_port_of_unknown_protocol_is_heard() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let ports = [ServicePort::named("something", GREET, GREET)];
    shop.manifests.put(&service(NAMESPACE, "unknown", &[("app", "web")], &cluster_ips(99), &ports))?;
    shop.start()?;
    let transcript = shop.talk(&format!("{}:{GREET}", cluster_ips(99)[0]), &["until:v1-1 ", "end"])?;
    assert_eq!((transcript.steps_done, transcript.end.as_str()), (2, "eof"), "{transcript:?}");
    // It is heard at once: nobody waits for the client.
    assert!(transcript.done_ms[0] < 500, "{transcript:?}");
    let services = shop.agent()?.services()?;
    let unknown = services.iter().find(|service| service.name == "unknown").context("no Service unknown")?;
    let seen = Detected { protocol: "tcp".into(), first: "server".into(), connections: 1 };
    assert_eq!(unknown.ports[0].detected, [seen]);
    Ok(())
}

#[test]
fn a_half_closed_client_gets_the_whole_answer() -> Result<()> {
    let shop = Shop::running("open")?;
    let size = 8 << 20;
    let fill = format!("fill:{size}");
    let transcript = shop.talk(&shop.service("web", SUM)?, &[&fill, "shutdown", "end"])?;
    assert_eq!(
        (transcript.received.trim(), transcript.end.as_str()),
        (size.to_string().as_str(), "eof"),
        "{transcript:?}"
    );
    let echoed =
        shop.talk(&shop.service("web", ECHO)?, &["send:hello", "until:hello", "send:world", "shutdown", "end"])?;
    assert_eq!((echoed.received.as_str(), echoed.end.as_str()), ("helloworld", "eof"), "{echoed:?}");
    Ok(())
}

#[test]
fn a_half_closed_server_can_still_be_written_to() -> Result<()> {
    let shop = Shop::running("open")?;
    let transcript = shop.talk(&shop.service("web", HALF_CLOSE)?, &["end", "fill:1000000", "shutdown"])?;
    assert_eq!((transcript.steps_done, transcript.end.as_str()), (3, "eof"), "{transcript:?}");
    Ok(())
}

#[test]
fn a_reset_stays_a_reset() -> Result<()> {
    let shop = Shop::running("open")?;
    let transcript = shop.talk(&shop.service("web", RESET)?, &["send:x", "end"])?;
    assert_eq!((transcript.received.as_str(), transcript.end.as_str()), ("", "reset"), "{transcript:?}");
    Ok(())
}

#[test]
fn a_client_that_goes_away_is_not_kept() -> Result<()> {
    let shop = Shop::running("open")?;
    let to = shop.service("web", STALL)?;
    let report = shop.load(&["--to", &to, "--speech", "connect", "--connections", "20", "--linger-zero"])?;
    assert_eq!(report.served, 20, "{report:?}");
    wait::until("the agent to forget the connections", Duration::from_secs(10), || {
        let flows = weft_integration::agent::weft(&shop.node, &["flows"])?;
        let flows: Vec<serde_json::Value> = serde_json::from_str(&flows)?;
        Ok(flows.is_empty().then_some(()))
    })
}

#[test]
fn a_server_that_does_not_read_stops_the_client() -> Result<()> {
    let shop = Shop::running("open")?;
    let transcript = shop.talk(&shop.service("web", STALL)?, &["flood"])?;
    // Both kernels' buffers of two connections (6 MiB each by default), and little in between.
    assert!(transcript.flooded > 0 && transcript.flooded < 64 << 20, "{} bytes", transcript.flooded);
    Ok(())
}

#[test]
fn a_port_that_nobody_listens_on_ends_at_once() -> Result<()> {
    let shop = Shop::running("open")?;
    let to = format!("{}:1", shop.server("v1-1")?.pod.ipv4());
    let report = shop.load(&["--to", &to, "--speech", "ask", "--connections", "10", "--timeout-ms", "5000"])?;
    assert_eq!(report.refused + report.reset, 10, "{report:?}");
    assert!(report.reset_us_max < 1_000_000, "{report:?}");
    Ok(())
}

#[test]
fn flows_show_what_is_open() -> Result<()> {
    let shop = Shop::running("open")?;
    let to = shop.service("web", ASK)?;
    let mut command = shop.client.testpod()?;
    command.args([
        "talk",
        "--to",
        &to,
        "--step",
        "send:?",
        "--step",
        "until:v1-1",
        "--step",
        "end",
        "--timeout-ms",
        "8000",
    ]);
    let _talking = shop.client.spawn(command)?;
    let flow = wait::until("the flow", Duration::from_secs(5), || {
        let flows = weft_integration::agent::weft(&shop.node, &["flows"])?;
        let flows: Vec<serde_json::Value> = serde_json::from_str(&flows)?;
        Ok(flows.into_iter().find(|flow| flow.to_string().contains("shop/web")))
    })?;
    let text = flow.to_string();
    assert!(text.contains("client") && text.contains(&shop.server("v1-1")?.pod.ipv4().to_string()), "{text}");
    Ok(())
}
