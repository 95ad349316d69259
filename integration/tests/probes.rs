//! The node's own connections to pods (a kubelet's probes) are never touched.

use std::net::SocketAddr;

use anyhow::Result;
use weft_integration::{
    PodSpec, Shop, command,
    node::{NODE_IPV4, NODE_IPV6},
    shop::{ASK, HTTP, NAMESPACE},
    testpod::{self, LoadReport},
};

fn probe(shop: &Shop, args: &[&str]) -> Result<LoadReport> {
    let mut command = shop.node.command(&testpod::binary()?.to_string_lossy());
    command.arg("load").args(args);
    Ok(serde_json::from_str(&command::output(&mut command)?)?)
}

#[test]
fn probes_reach_the_application_directly() -> Result<()> {
    let shop = Shop::running("closed")?;
    let web = shop.server("v1-1")?;
    for ip in web.pod.ips() {
        for (speech, port) in [("http", HTTP), ("ask", ASK)] {
            let to = SocketAddr::from((ip, port)).to_string();
            let report = probe(&shop, &["--to", &to, "--speech", speech, "--connections", "50"])?;
            assert_eq!(report.served, 50, "{report:?}");
        }
    }
    let stats = shop.agent()?.pod_stats(NAMESPACE, "v1-1")?;
    // At least: a late segment for a connection that is gone is looked up too.
    assert!(stats.inbound_node >= 200 && stats.inbound_direct == 0, "{stats:?}");
    assert_eq!(shop.agent()?.inbound_connections()?, 0);
    let peers = &web.stats()?.ports[&HTTP].peers;
    assert_eq!(peers.keys().cloned().collect::<Vec<_>>(), [NODE_IPV4.to_string(), NODE_IPV6.to_string()]);
    Ok(())
}

#[test]
fn probes_of_a_closed_port_are_refused_by_the_pod() -> Result<()> {
    let shop = Shop::running("closed")?;
    let to = format!("{}:1", shop.server("v1-1")?.pod.ipv4());
    assert_eq!(probe(&shop, &["--to", &to])?.refused, 1);
    Ok(())
}

#[test]
fn probes_work_with_the_agent_gone_even_when_closed() -> Result<()> {
    let mut shop = Shop::running("closed")?;
    let to = format!("{}:{HTTP}", shop.server("v1-1")?.pod.ipv4());
    shop.take_agent()?.kill()?;
    let report = probe(&shop, &["--to", &to, "--connections", "50"])?;
    assert_eq!(report.served, 50, "{report:?}");
    Ok(())
}

#[test]
fn a_pod_of_the_host_network_is_not_the_node() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let host = shop.node.pod(PodSpec::new(NAMESPACE, "on-host").host_network())?;
    shop.manifests.put_pod(&host)?;
    shop.start()?;
    shop.agent()?.wait_captured(NAMESPACE, "on-host")?;
    let to = format!("{}:{HTTP}", shop.server("v1-1")?.pod.ipv4());
    let report = weft_integration::shop::load(&host, &["--to", &to, "--connections", "20"])?;
    assert_eq!(report.served, 20, "{report:?}");
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "v1-1")?.inbound_node, 0);
    Ok(())
}
