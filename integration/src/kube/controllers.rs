//! What Kubernetes' own controllers make of objects, as pure functions: pods of Deployments, EndpointSlices of Services.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value, json};

use super::server::text;
use crate::kube_proxy::{is_ready, target_port};

/// Label of a slice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label of a slice that says who keeps it.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// That is us. Slices of others are left alone.
const MANAGER: &str = "harness";

/// The pods that a Deployment wants, by name, for `node` to run unless the template names another. Their names are counted, not drawn.
#[must_use]
pub fn pods_of(deployment: &Value, node: &str) -> Vec<Value> {
    let replicas = deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let template = &deployment["spec"]["template"];
    (1..=replicas)
        .map(|number| {
            let mut metadata = template["metadata"].as_object().cloned().unwrap_or_default();
            metadata.insert("name".to_owned(), json!(format!("{}-{number}", text(deployment, "/metadata/name"))));
            metadata.insert("namespace".to_owned(), deployment["metadata"]["namespace"].clone());
            metadata.insert(
                "ownerReferences".to_owned(),
                json!([{"apiVersion": "apps/v1", "kind": "Deployment", "controller": true,
                    "name": deployment["metadata"]["name"], "uid": deployment["metadata"]["uid"]}]),
            );
            let mut spec = template["spec"].as_object().cloned().unwrap_or_default();
            // The scheduler is not asked about one that is placed already.
            spec.entry("nodeName").or_insert_with(|| json!(node));
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        })
        .collect()
}

/// The name of the Deployment that a pod belongs to.
#[must_use]
pub fn owner(pod: &Value) -> Option<&str> {
    let references = pod.pointer("/metadata/ownerReferences")?.as_array()?;
    references.iter().find(|reference| reference["kind"] == "Deployment")?.get("name")?.as_str()
}

/// Whether a slice is one of those that [`slices`] makes.
#[must_use]
pub fn is_ours(slice: &Value) -> bool {
    slice["metadata"]["labels"][MANAGED_BY_LABEL] == MANAGER
}

/// The EndpointSlices of all Services with a selector, by namespace and name: one for each family that the Service has.
#[must_use]
pub fn slices(services: &[Value], pods: &[Value]) -> BTreeMap<(String, String), Value> {
    let mut all = BTreeMap::new();
    for service in services {
        let Some(selector) = service.pointer("/spec/selector").and_then(Value::as_object) else { continue };
        if selector.is_empty() {
            continue;
        }
        let selected: Vec<_> = pods.iter().filter(|pod| selects(service, selector, pod)).collect();
        for (family, kind) in [("v4", "IPv4"), ("v6", "IPv6")] {
            if !has_family(service, kind == "IPv4") {
                continue;
            }
            let slice = slice(service, &format!("{}-{family}", text(service, "/metadata/name")), kind, &selected);
            let key = (text(&slice, "/metadata/namespace").to_owned(), text(&slice, "/metadata/name").to_owned());
            all.insert(key, slice);
        }
    }
    all
}

/// Whether what is stored says all that is wanted; the server adds fields of its own.
#[must_use]
pub fn is_current(stored: &Value, wanted: &Value) -> bool {
    let lists = ["endpoints", "ports"];
    lists.iter().all(|field| {
        stored[field].as_array().map_or(&[][..], Vec::as_slice)
            == wanted[field].as_array().map_or(&[][..], Vec::as_slice)
    })
}

fn selects(service: &Value, selector: &Map<String, Value>, pod: &Value) -> bool {
    pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        && selector.iter().all(|(key, value)| pod["metadata"]["labels"].get(key) == Some(value))
}

/// A headless Service has both.
fn has_family(service: &Value, v4: bool) -> bool {
    let addresses: Vec<IpAddr> = service
        .pointer("/spec/clusterIPs")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    addresses.is_empty() || addresses.iter().any(|address| address.is_ipv4() == v4)
}

fn slice(service: &Value, name: &str, kind: &str, pods: &[&Value]) -> Value {
    let service_ports: Vec<_> =
        service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten().collect();
    let ports: Vec<_> = service_ports
        .iter()
        .filter_map(|port| {
            // Named ports may differ between pods, and then have slices of their own; no test needs that.
            let number = pods.iter().find_map(|pod| target_port(port, pod)).or_else(|| port["port"].as_u64())?;
            let mut made = json!({"name": text(port, "/name"), "protocol": "TCP", "port": number});
            if let Some(protocol) = port.get("protocol") {
                made["protocol"] = protocol.clone();
            }
            if let Some(protocol) = port.get("appProtocol") {
                made["appProtocol"] = protocol.clone();
            }
            Some(made)
        })
        .collect();
    let endpoints: Vec<_> = pods
        .iter()
        .filter_map(|pod| {
            let ips = pod.pointer("/status/podIPs")?.as_array()?;
            let ip = ips
                .iter()
                .filter_map(|ip| ip["ip"].as_str())
                .find(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (kind == "IPv4")))?;
            let ready = is_ready(pod);
            let terminating = pod.pointer("/metadata/deletionTimestamp").is_some();
            Some(json!({
                "addresses": [ip],
                "conditions": {"ready": ready, "serving": ready, "terminating": terminating},
                "nodeName": pod["spec"]["nodeName"],
                "targetRef": {"kind": "Pod", "namespace": pod["metadata"]["namespace"],
                    "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
            }))
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": service["metadata"]["namespace"],
            "name": name,
            "labels": {SERVICE_LABEL: service["metadata"]["name"], MANAGED_BY_LABEL: MANAGER},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service",
                "name": service["metadata"]["name"], "uid": service["metadata"]["uid"]}],
        },
        "addressType": kind,
        "endpoints": endpoints,
        "ports": ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, app: &str, ready: bool) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "labels": {"app": app}},
            "spec": {"nodeName": "node-a", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIPs": [{"ip": "10.77.0.1"}, {"ip": "fd77::1"}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        })
    }

    fn service(addresses: &[&str]) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "uid-web"},
            "spec": {"clusterIPs": addresses, "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
        })
    }

    #[test]
    fn a_service_has_a_slice_of_each_of_its_families_with_the_pods_that_it_selects() {
        let pods = [pod("a", "web", true), pod("b", "web", false), pod("c", "other", true)];
        let made = slices(&[service(&["10.96.0.1"])], &pods);
        assert_eq!(made.len(), 1, "no IPv6 address, no slice for it");
        let slice = &made[&("shop".to_owned(), "web-v4".to_owned())];
        assert_eq!(slice["ports"], json!([{"name": "http", "protocol": "TCP", "port": 8080}]));
        let endpoints = slice["endpoints"].as_array().expect("a list");
        assert_eq!(endpoints.len(), 2);
        assert_eq!(endpoints[0]["addresses"], json!(["10.77.0.1"]));
        assert_eq!(endpoints[0]["targetRef"]["uid"], "uid-a");
        assert_eq!(endpoints[1]["conditions"]["ready"], false);
        assert!(is_ours(slice) && is_current(slice, slice));
        assert_eq!(slices(&[service(&["None"])], &pods).len(), 2, "headless");
    }

    #[test]
    fn a_deployment_wants_its_replicas_and_owns_them() {
        let deployment = json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "u"},
            "spec": {"replicas": 2, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"serviceAccountName": "web", "containers": []}}},
        });
        let pods = pods_of(&deployment, "node-a");
        assert_eq!(pods.len(), 2);
        assert_eq!(text(&pods[1], "/metadata/name"), "web-2");
        assert_eq!(text(&pods[1], "/spec/nodeName"), "node-a");
        assert_eq!(text(&pods[1], "/spec/serviceAccountName"), "web");
        assert_eq!(owner(&pods[1]), Some("web"));
    }
}
