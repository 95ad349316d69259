//! What kube-proxy does, in nft: Service addresses become those of ready pods, chosen at random by connection. So traffic is direct,
//! and works, wherever the agent leaves it alone.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context, Result};
use serde_json::Value;

/// The whole ruleset for these Services and Pods; loading it replaces the one before in one step.
///
/// # Errors
/// When a Service or Pod lacks what is needed.
pub fn ruleset<'a>(
    services: impl IntoIterator<Item = &'a Value>,
    pods: impl IntoIterator<Item = &'a Value>,
) -> Result<String> {
    let (services, pods): (Vec<_>, Vec<_>) = (services.into_iter().collect(), pods.into_iter().collect());
    let mut script = String::new();
    for family in [Family::V4, Family::V6] {
        write_family(&mut script, family, &services, &pods)?;
    }
    Ok(script)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn table(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn is_of(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

fn write_family(script: &mut String, family: Family, all: &[&Value], pods: &[&Value]) -> Result<()> {
    let table = family.table();
    let mut endpoint_chains = String::new();
    let mut services = String::new();
    let mut rejects = String::new();
    let mut hairpins = String::new();
    let mut chains = 0;
    for service in all {
        for address in addresses(service, "/spec/clusterIPs")?.iter().filter(|address| family.is_of(address)) {
            for port in service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
                let number = port.get("port").and_then(Value::as_u64).context("a Service port without number")?;
                let endpoints = endpoints(service, port, family, pods)?;
                let matched = format!("{table} daddr {address} tcp dport {number}");
                if endpoints.is_empty() {
                    writeln!(rejects, "  {matched} reject with tcp reset")?;
                    continue;
                }
                let mut choice = Vec::new();
                for (index, (ip, target)) in endpoints.iter().enumerate() {
                    let to = if ip.is_ipv4() { format!("{ip}:{target}") } else { format!("[{ip}]:{target}") };
                    writeln!(endpoint_chains, " chain endpoint-{chains} {{ meta l4proto tcp dnat to {to}; }}")?;
                    writeln!(hairpins, "  {table} saddr {ip} {table} daddr {ip} masquerade")?;
                    choice.push(format!("{index} : jump endpoint-{chains}"));
                    chains += 1;
                }
                writeln!(
                    services,
                    "  {matched} numgen random mod {} vmap {{ {} }}",
                    endpoints.len(),
                    choice.join(", ")
                )?;
            }
        }
    }
    writeln!(script, "table {table} kube-proxy {{}}\ndelete table {table} kube-proxy\ntable {table} kube-proxy {{")?;
    script.push_str(&endpoint_chains);
    for (chain, hook, priority) in [("from-pods", "prerouting", "dstnat"), ("from-node", "output", "-100")] {
        writeln!(script, " chain {chain} {{\n  type nat hook {hook} priority {priority};\n{services} }}")?;
    }
    writeln!(script, " chain hairpin {{\n  type nat hook postrouting priority srcnat;\n{hairpins} }}")?;
    for (chain, hook) in [("no-endpoint-forward", "forward"), ("no-endpoint-output", "output")] {
        writeln!(script, " chain {chain} {{\n  type filter hook {hook} priority filter;\n{rejects} }}")?;
    }
    writeln!(script, "}}")?;
    Ok(())
}

fn addresses(object: &Value, pointer: &str) -> Result<Vec<IpAddr>> {
    let texts = object.pointer(pointer).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    texts
        .filter(|text| *text != "None")
        .map(|text| text.parse().with_context(|| format!("{text} is not an address")))
        .collect()
}

/// Address and port of every ready pod that the Service selects.
fn endpoints(service: &Value, port: &Value, family: Family, pods: &[&Value]) -> Result<Vec<(IpAddr, u64)>> {
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return Ok(Vec::new()) };
    let namespace = service.pointer("/metadata/namespace");
    let mut found = Vec::new();
    for pod in pods {
        let selected = pod.pointer("/metadata/namespace") == namespace
            && selector.iter().all(|(key, value)| pod["metadata"]["labels"].get(key) == Some(value));
        if !selected || !is_ready(pod) {
            continue;
        }
        let Some(target) = target_port(port, pod) else { continue };
        for status in pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten() {
            let ip: IpAddr = status.get("ip").and_then(Value::as_str).context("a Pod without IP")?.parse()?;
            if family.is_of(&ip) {
                found.push((ip, target));
            }
        }
    }
    Ok(found)
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    pod.pointer("/metadata/deletionTimestamp").is_none()
        && pod
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub(crate) fn target_port(port: &Value, pod: &Value) -> Option<u64> {
    match port.get("targetPort") {
        Some(Value::String(name)) => {
            let containers = pod.pointer("/spec/containers").and_then(Value::as_array)?;
            let ports = containers.iter().filter_map(|container| container.get("ports")?.as_array()).flatten();
            ports.filter(|port| port["name"] == name.as_str()).find_map(|port| port.get("containerPort")?.as_u64())
        }
        Some(target) => target.as_u64(),
        None => port.get("port")?.as_u64(),
    }
}
