//! Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};
use weft_policy::names::ServiceKey;

use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
};

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Metadata.
    pub meta: Meta,
    /// Cluster IPs, external IPs and load balancer IPs, in order and without repetition; none for headless and external ones.
    pub addresses: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `type: ExternalName`.
    pub external_name: bool,
    /// Which pods it selects; empty if its endpoints are somebody else's care.
    pub selector: BTreeMap<String, String>,
    /// Pods count as ready, whatever they say.
    pub publish_not_ready: bool,
    /// Families of its endpoints' addresses; empty for both.
    pub families: BTreeSet<Family>,
    /// TCP ports, ascending.
    pub ports: Vec<ServicePort>,
    /// Where pods take the datagrams of its UDP ports.
    pub udp_targets: Vec<TargetPort>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl From<IpAddr> for Family {
    fn from(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Number.
    pub port: u16,
    /// Name; empty if it has none.
    pub name: Arc<str>,
    /// `appProtocol`.
    pub app_protocol: Option<Arc<str>>,
    /// Where pods listen.
    pub target: TargetPort,
}

/// Where pods listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// On this port.
    Number(u16),
    /// On the container port of this name.
    Name(Arc<str>),
}

impl Service {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.meta.namespace.clone(), name: self.meta.name.clone() }
    }

    /// Whether it selects pods with these labels.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.external_name
            && !self.selector.is_empty()
            && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Trims a Service.
    pub(crate) fn new(service: v1::Service, problems: &mut Problems) -> Self {
        let meta = Meta::new(Kind::Service, service.metadata);
        let spec = service.spec.unwrap_or_default();
        let status = service.status.unwrap_or_default();
        let external_name = spec.type_.as_deref() == Some("ExternalName");
        let cluster_ips: Vec<(String, String)> = match spec.cluster_ips {
            Some(ips) if !ips.is_empty() => {
                ips.into_iter().enumerate().map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip)).collect()
            }
            _ => spec.cluster_ip.map(|ip| ("spec.clusterIP".to_owned(), ip)).into_iter().collect(),
        };
        let headless = cluster_ips.iter().any(|(_, ip)| ip == "None");
        let external = spec.external_ips.unwrap_or_default().into_iter().enumerate();
        let ingress =
            status.load_balancer.and_then(|status| status.ingress).unwrap_or_default().into_iter().enumerate();
        let cluster: Vec<IpAddr> = cluster_ips
            .iter()
            .filter(|(_, ip)| !ip.is_empty() && ip != "None")
            .filter_map(|(field, ip)| decode::ip(ip, field, problems))
            .collect();
        let mut addresses: BTreeSet<IpAddr> = cluster.iter().copied().collect();
        for (index, ip) in external {
            addresses.extend(decode::ip(&ip, &format!("spec.externalIPs[{index}]"), problems));
        }
        for (index, entry) in ingress {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            addresses.extend(entry.ip.and_then(|ip| decode::ip(&ip, &field, problems)));
        }
        if external_name || headless {
            addresses.clear();
        }
        let families = spec.ip_families.unwrap_or_default();
        let mut families: BTreeSet<Family> =
            families.iter().filter_map(|family| parse_family(family, problems)).collect();
        if families.is_empty() {
            families = cluster.into_iter().map(Family::from).collect();
        }
        let (ports, udp_targets) = ports(spec.ports.unwrap_or_default(), problems);
        Self {
            meta,
            addresses: addresses.into_iter().collect(),
            headless,
            external_name,
            selector: spec.selector.unwrap_or_default(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            families,
            ports,
            udp_targets,
        }
    }
}

fn parse_family(family: &str, problems: &mut Problems) -> Option<Family> {
    match family {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => {
            problems.push(FieldError::new("spec.ipFamilies", format!("{family:?} is neither IPv4 nor IPv6")));
            None
        }
    }
}

/// The TCP ports, and where the UDP ports lead.
fn ports(ports: Vec<v1::ServicePort>, problems: &mut Problems) -> (Vec<ServicePort>, Vec<TargetPort>) {
    let mut udp_targets = Vec::new();
    let mut taken: BTreeMap<u16, ServicePort> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (index, port) in ports.into_iter().enumerate() {
        let number = decode::port(port.port, &format!("spec.ports[{index}].port"), problems);
        let target_field = format!("spec.ports[{index}].targetPort");
        let target = match port.target_port {
            None => TargetPort::Number(number),
            // Zero and the empty name are how typed clients write "not given".
            Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => TargetPort::Number(decode::port(target, &target_field, problems)),
            Some(IntOrString::String(name)) => TargetPort::Name(name.into()),
        };
        match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => {}
            "UDP" => {
                udp_targets.push(target);
                continue;
            }
            "SCTP" => continue,
            other => {
                let message = format!("{other:?} is none of TCP, UDP, SCTP");
                problems.push(FieldError::new(format!("spec.ports[{index}].protocol"), message));
                continue;
            }
        }
        let name: Arc<str> = port.name.unwrap_or_default().into();
        if !names.insert(Arc::clone(&name)) {
            let message = if name.is_empty() {
                "a Service with several ports must name each".to_owned()
            } else {
                format!("the name {name:?} is given to two ports")
            };
            problems.push(FieldError::new(format!("spec.ports[{index}].name"), message));
        }
        let app_protocol = port.app_protocol.filter(|protocol| !protocol.is_empty()).map(Into::into);
        if taken.insert(number, ServicePort { port: number, name, app_protocol, target }).is_some() {
            problems.push(FieldError::new(format!("spec.ports[{index}].port"), format!("{number} is given twice")));
        }
    }
    (taken.into_values().collect(), udp_targets)
}
