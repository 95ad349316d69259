//! Datagrams: what TrafficTargets with UDPRoutes say holds at the ports that they, a pod or a Service name.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_integration::{
    Pod, PodSpec, Shop,
    objects::{plain_namespace, traffic_target},
    shop::NAMESPACE,
    wait,
};

const PORT: u16 = 5300;
/// A change of a manifest shows.
const IN_FORCE: Duration = Duration::from_secs(30);
const HEARD: Duration = Duration::from_secs(30);
/// One look at a socket.
const LOOK: Duration = Duration::from_millis(50);

/// Whether a question from a pod's network namespace is answered. Its socket is connected, so that it learns of a refusal.
fn is_answered(pod: &Pod, server: &UdpSocket, to: SocketAddr) -> Result<bool> {
    let client = pod.run(|| {
        let client = UdpSocket::bind((pod.ipv4(), 0))?;
        client.connect(to)?;
        Ok(client)
    })?;
    for socket in [&client, server] {
        socket.set_read_timeout(Some(LOOK))?;
    }
    client.send(b"question")?;
    let started = Instant::now();
    // Denied, an ICMP message is on its way back; else the question arrives.
    while started.elapsed() < HEARD {
        if let Ok((_, peer)) = server.recv_from(&mut [0; 16]) {
            server.send_to(b"answer", peer)?;
        }
        match client.recv(&mut [0; 16]) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).with_context(|| format!("{} to {to}", pod.name())),
        }
    }
    bail!("{} heard nothing from {to}", pod.name())
}

/// Whether a process of the pod may send there at all.
fn may_send(pod: &Pod, to: SocketAddr) -> Result<bool> {
    let script = format!("exec 3<>/dev/udp/{}/{} && echo question >&3", to.ip(), to.port());
    let output = pod.command("bash").args(["-c", &script]).output()?;
    assert!(output.status.success() || String::from_utf8_lossy(&output.stderr).contains("refused"), "{output:?}");
    Ok(output.status.success())
}

#[test]
fn datagrams_to_a_port_that_a_route_names_need_a_grant() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let other = shop.node.pod(PodSpec::new(NAMESPACE, "other").account("other"))?;
    let outsider = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
    shop.manifests.put(&plain_namespace("elsewhere"))?;
    shop.manifests.put_pod(&other)?;
    shop.manifests.put_pod(&outsider)?;
    let web = &shop.server("v1-1")?.pod;
    let (to, unguarded) = (SocketAddr::from((web.ipv4(), PORT)), SocketAddr::from((web.ipv4(), PORT + 1)));
    let server = web.run(|| Ok(UdpSocket::bind(to)?))?;
    let beside = web.run(|| Ok(UdpSocket::bind(unguarded)?))?;
    shop.start()?;
    shop.agent()?.wait_captured(NAMESPACE, "other")?;
    for pod in [&shop.client, &other, &outsider] {
        assert!(is_answered(pod, &server, to)?, "{}: nothing selects the server", pod.name());
    }
    shop.manifests.put_all(&[
        json!({
            "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "UDPRoute",
            "metadata": {"namespace": NAMESPACE, "name": "questions"}, "spec": {"matches": {"ports": [PORT]}},
        }),
        traffic_target(NAMESPACE, "web", "web", &[("UDPRoute", "questions")], &["client"]),
    ])?;
    wait::until("datagrams to be denied", IN_FORCE, || Ok((!may_send(&other, to)?).then_some(())))?;
    assert!(may_send(&shop.client, to)?);
    while server.recv_from(&mut [0; 16]).is_ok() {}
    for (pod, answered) in [(&shop.client, true), (&other, false), (&outsider, false)] {
        assert_eq!(is_answered(pod, &server, to)?, answered, "{}", pod.name());
        assert!(is_answered(pod, &beside, unguarded)?, "{} at a port that nobody names", pod.name());
    }
    let agent = shop.agent()?;
    let denied = |pod: &str, direction: &str| {
        let (pod, direction) = (format!("pod=\"{pod}\""), format!("direction=\"{direction}\""));
        agent.metric("weft_pod_datagrams_denied_total", &[&pod, &direction])
    };
    assert!(denied("other", "outbound")? >= 1.0, "{}", agent.metrics()?);
    assert!(denied("v1-1", "inbound")? >= 2.0, "{}", agent.metrics()?);
    // The maps alone decide.
    shop.take_agent()?.kill()?;
    assert!(!may_send(&other, to)?);
    assert!(!is_answered(&outsider, &server, to)?);
    shop.start()?;
    shop.manifests.remove("TrafficTarget", NAMESPACE, "web")?;
    wait::until("datagrams to be allowed", IN_FORCE, || {
        is_answered(&outsider, &server, to).map(|yes| yes.then_some(()))
    })
}
