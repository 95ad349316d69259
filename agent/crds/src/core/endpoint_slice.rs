//! EndpointSlice.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1;
use weft_policy::names::ServiceKey;

use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
};

/// Label: the Service that a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Some of the endpoints of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Metadata.
    pub meta: Meta,
    /// The Service it belongs to, if it says so.
    pub service: Option<ServiceKey>,
    /// TCP ports by name (empty for the unnamed one).
    pub ports: Vec<(Arc<str>, u16)>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: the first one, as every consumer takes it.
    pub ip: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Terminating, and still serving what it has.
    pub draining: bool,
    /// Node.
    pub node: Option<Arc<str>>,
    /// The pod it stands for: name and UID, as far as told.
    pub pod: Option<(Arc<str>, Option<Arc<str>>)>,
}

impl EndpointSlice {
    /// Trims a slice.
    pub(crate) fn new(slice: v1::EndpointSlice, problems: &mut Problems) -> Self {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        let service: Option<Arc<str>> = service.filter(|name| !name.is_empty()).map(|name| name.as_str().into());
        let meta = Meta::new(Kind::EndpointSlice, slice.metadata);
        let service = service.map(|name| ServiceKey { namespace: meta.namespace.clone(), name });
        let v4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            other => {
                problems.push(FieldError::new(
                    "addressType",
                    format!("{other:?} is not supported: it must be IPv4 or IPv6"),
                ));
                true
            }
        };
        let mut ports = Vec::new();
        for (index, port) in slice.ports.unwrap_or_default().into_iter().enumerate() {
            let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            // A port without a number stands for all ports, which no Service port can be mapped to.
            if let (true, Some(number)) = (tcp, port.port) {
                let number = decode::port(number, &format!("ports[{index}].port"), problems);
                ports.push((port.name.unwrap_or_default().into(), number));
            }
        }
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        for (index, endpoint) in slice.endpoints.into_iter().enumerate() {
            let field = format!("endpoints[{index}].addresses[0]");
            let Some(address) = endpoint.addresses.first() else {
                problems.push(FieldError::new(format!("endpoints[{index}].addresses"), "must have an address"));
                continue;
            };
            let Some(ip) = decode::ip(address, &field, problems) else { continue };
            if ip.is_ipv4() != v4 {
                problems.push(FieldError::new(field, format!("{ip} is not of the slice's address type")));
                continue;
            }
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let serving = conditions.serving.unwrap_or(ready);
            let terminating = conditions.terminating.unwrap_or(false);
            let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
            endpoints.push(SliceEndpoint {
                ip,
                ready,
                draining: !ready && serving && terminating,
                node: endpoint.node_name.filter(|node| !node.is_empty()).map(Into::into),
                pod: pod.map(|pod| {
                    (pod.name.unwrap_or_default().into(), pod.uid.filter(|uid| !uid.is_empty()).map(Into::into))
                }),
            });
        }
        // There may be tens of thousands.
        ports.shrink_to_fit();
        Self { meta, service, ports, endpoints }
    }
}
