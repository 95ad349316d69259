//! Rules between nodes as a network plugin makes them of NetworkPolicies: by the pods' own addresses and one port, for ingress and for
//! egress. Whatever weft makes of a connection, they mean the same.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use weft_integration::{
    Cluster,
    kube::mixed::{CLIENT, ECHO, HTTP, NAMESPACE, SERVER},
};

/// A second pod on the client's node, with the client's service account: only its address is another one.
pub(crate) const OTHER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: mixed}
spec: {serviceAccountName: client, nodeName: node-a, containers: [{name: other, image: pause}]}
";

/// With rules on both nodes that let the client reach the server's port of HTTP, and that alone, this is what connects, and what is refused.
pub(crate) fn hold(cluster: &Cluster) -> Result<()> {
    let client = &cluster.pod(NAMESPACE, CLIENT)?.pod;
    let server = &cluster.pod(NAMESPACE, SERVER)?.pod;
    let mut rules =
        "table inet network-policy {\nchain forward {\ntype filter hook forward priority filter;\n".to_owned();
    for (family, from, to) in [("ip", client.ips()[0], server.ips()[0]), ("ip6", client.ips()[1], server.ips()[1])] {
        rules.push_str(&format!("{family} saddr {from} {family} daddr {to} tcp dport {HTTP} accept\n"));
        rules.push_str(&format!("{family} daddr {to} meta l4proto tcp reject with tcp reset\n"));
        // What comes back: from that port, to whom it was opened for.
        rules.push_str(&format!("{family} saddr {to} {family} daddr {from} tcp sport {HTTP} accept\n"));
        rules.push_str(&format!("{family} saddr {to} meta l4proto tcp drop\n"));
    }
    let rules = format!("{rules}}}\n}}\n");
    cluster.nodes().try_for_each(|node| node.nft(&rules))?;
    let service = cluster.service_ip(NAMESPACE, SERVER)?;
    let other = &cluster.pod(NAMESPACE, "other")?.pod;
    let before = cluster.pod(NAMESPACE, SERVER)?.stats()?;
    for ip in [service, server.ips()[0], server.ips()[1]] {
        for (pod, port, allowed) in [(client, HTTP, true), (client, ECHO, false), (other, HTTP, false)] {
            let url = format!("http://{}/", SocketAddr::new(ip, port));
            let mut curl = pod.command("curl");
            // The proxy answers for a server that refuses: 503 where it knows HTTP, a reset where it does not.
            let output =
                curl.args(["-sg", "--max-time", "30", "-w", "%{http_code}", "-o", "/dev/null", &url]).output()?;
            let code = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!((code == "200") == allowed, "{} to {ip} port {port}: {code}", pod.name());
        }
    }
    let seen = cluster.pod(NAMESPACE, SERVER)?.stats()?;
    ensure!(seen.connections_to(ECHO) == before.connections_to(ECHO), "{seen:?}");
    let peers: Vec<String> = seen.ports[&HTTP].peers.keys().cloned().collect();
    let expected: Vec<String> = client.ips().iter().map(ToString::to_string).collect();
    ensure!(peers == expected, "{peers:?}");
    Ok(())
}
