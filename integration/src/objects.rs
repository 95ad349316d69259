//! Kubernetes objects as tests write them: short, and complete where the agent looks.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::manifests::{FAIL_MODE_LABEL, MESH_LABEL, STANCE_LABEL};

/// A namespace whose pods are captured.
#[must_use]
pub fn meshed_namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {MESH_LABEL: "enabled"}}})
}

/// A namespace whose pods are captured, with a fail mode: `open` or `closed`.
#[must_use]
pub fn meshed_namespace_failing(name: &str, fail_mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {MESH_LABEL: "enabled", FAIL_MODE_LABEL: fail_mode}}})
}

/// A namespace whose pods are captured, with what holds where no TrafficTarget selects: `allow` or `deny`.
#[must_use]
pub fn meshed_namespace_by_default(name: &str, stance: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {MESH_LABEL: "enabled", STANCE_LABEL: stance}}})
}

/// A namespace that weft leaves alone.
#[must_use]
pub fn plain_namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    name: String,
    port: u16,
    target: Value,
    app_protocol: Option<String>,
}

impl ServicePort {
    /// A port that Kubernetes' naming makes HTTP.
    #[must_use]
    pub fn http(port: u16, target: u16) -> Self {
        Self::named("http", port, target)
    }

    /// A port that Kubernetes' naming makes opaque TCP.
    #[must_use]
    pub fn tcp(port: u16, target: u16) -> Self {
        Self::named("tcp", port, target)
    }

    /// A port with a name of your own.
    #[must_use]
    pub fn named(name: &str, port: u16, target: u16) -> Self {
        Self { name: name.to_owned(), port, target: json!(target), app_protocol: None }
    }

    /// With a target port by name.
    #[must_use]
    pub fn target_name(mut self, name: &str) -> Self {
        self.target = json!(name);
        self
    }

    /// With an `appProtocol`.
    #[must_use]
    pub fn app_protocol(mut self, protocol: &str) -> Self {
        self.app_protocol = Some(protocol.to_owned());
        self
    }

    fn object(&self) -> Value {
        let mut port = json!({"name": self.name, "protocol": "TCP", "port": self.port, "targetPort": self.target});
        if let Some(protocol) = &self.app_protocol {
            port["appProtocol"] = json!(protocol);
        }
        port
    }
}

/// A Service. Without addresses it is headless.
#[must_use]
pub fn service(
    namespace: &str,
    name: &str,
    selector: &[(&str, &str)],
    cluster_ips: &[IpAddr],
    ports: &[ServicePort],
) -> Value {
    let selector: Map<_, _> = selector.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let cluster_ips: Vec<_> = if cluster_ips.is_empty() {
        vec!["None".to_owned()]
    } else {
        cluster_ips.iter().map(ToString::to_string).collect()
    };
    let ports: Vec<_> = ports.iter().map(ServicePort::object).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": selector, "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": ports},
    })
}

/// Addresses of the n-th Service, of both families.
#[must_use]
pub fn cluster_ips(number: u8) -> [IpAddr; 2] {
    [IpAddr::from([10, 78, 0, number]), IpAddr::from([0xfd78, 0, 0, 0, 0, 0, 0, u16::from(number)])]
}

/// The newest TrafficSplit, with backends and weights.
#[must_use]
pub fn traffic_split(namespace: &str, name: &str, root: &str, backends: &[(&str, u32)]) -> Value {
    let backends: Vec<_> =
        backends.iter().map(|(service, weight)| json!({"service": service, "weight": weight})).collect();
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha4",
        "kind": "TrafficSplit",
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": {"service": root, "backends": backends},
    })
}

/// A TrafficSplit for the requests that an HTTPRouteGroup matches.
#[must_use]
pub fn traffic_split_matching(namespace: &str, name: &str, root: &str, backends: &[(&str, u32)], group: &str) -> Value {
    let mut split = traffic_split(namespace, name, root, backends);
    split["spec"]["matches"] = json!([{"kind": "HTTPRouteGroup", "name": group}]);
    split
}

/// An HTTPRouteGroup with one match on one header.
#[must_use]
pub fn header_route_group(namespace: &str, name: &str, header: &str, regex: &str) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "HTTPRouteGroup",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"matches": [{"name": "by-header", "headers": [{header: regex}]}]},
    })
}

/// An HTTPRouteGroup with a match for each name, path and list of methods.
#[must_use]
pub fn route_group(namespace: &str, name: &str, matches: &[(&str, &str, &[&str])]) -> Value {
    let matches: Vec<_> = matches
        .iter()
        .map(|(name, path, methods)| json!({"name": name, "pathRegex": path, "methods": methods}))
        .collect();
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "HTTPRouteGroup",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"matches": matches},
    })
}

/// A TCPRoute; without ports it means all of them.
#[must_use]
pub fn tcp_route(namespace: &str, name: &str, ports: &[u16]) -> Value {
    json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4",
        "kind": "TCPRoute",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"matches": {"ports": ports}},
    })
}

/// A TrafficTarget between service accounts of one namespace; its rules by kind and name, each with all of its matches.
#[must_use]
pub fn traffic_target(
    namespace: &str,
    name: &str,
    destination: &str,
    rules: &[(&str, &str)],
    sources: &[&str],
) -> Value {
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": namespace});
    let rules: Vec<_> = rules.iter().map(|(kind, name)| json!({"kind": kind, "name": name})).collect();
    let sources: Vec<_> = sources.iter().map(|name| account(name)).collect();
    json!({
        "apiVersion": "access.smi-spec.io/v1alpha3",
        "kind": "TrafficTarget",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"destination": account(destination), "rules": rules, "sources": sources},
    })
}
