//! What the proxy executes for a destination.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    matcher::{RequestHead, RouteMatcher},
    names::{ServiceKey, WorkloadId},
    rule::Rule,
    split::Split,
};

/// What a Service port speaks, as its author said (`appProtocol`, port name). On a port of the three kinds of HTTP a client may still
/// open with something else; then the connection is opaque.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP. The version is the client's choice, and upstream is the same.
    Http,
    /// HTTP/1.1 upstream, whatever version the client speaks.
    Http1,
    /// HTTP/2 with prior knowledge upstream (RFC 9113 3.3), whatever version the client speaks.
    Http2,
    /// TLS, passed through as bytes; the server name is read for what people see.
    Tls,
    /// Bytes that weft does not look into.
    Tcp,
    /// Not said: the first bytes of either side decide. If they are HTTP, upstream is the client's version.
    #[default]
    Detect,
}

impl AppProtocol {
    /// The word for people and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Detect => "detect",
        }
    }

    /// Whether its author said that it is HTTP of some version.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http1 | Self::Http2)
    }
}

/// All there is to know about connections to one Service port. Immutable; shared between snapshots while its Service does not change.
#[derive(Debug)]
pub struct OutboundPlan {
    /// The Service that the client asked for.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// What happens to requests.
    pub routes: RouteTable,
    /// What happens to those of clients in single namespaces instead.
    pub consumers: Box<[(Arc<str>, RouteTable)]>,
    /// Where connections go that weft does not look into.
    pub connection: Arc<Split>,
}

/// Rules in order of precedence.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// Which one takes a request.
    pub matcher: RouteMatcher,
    /// For each rule of [`matcher`](Self::matcher) what it means.
    pub matched: Box<[Route]>,
    /// What happens to everything else.
    pub otherwise: Arc<Rule>,
}

/// What a rule of a matcher means.
#[derive(Clone, Debug)]
pub struct Route {
    /// What happens to what it takes.
    pub rule: Arc<Rule>,
    /// The prefix that was matched, if that is what it takes requests by.
    pub prefix: Option<Arc<str>>,
}

/// What a plan answers about a request.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'plan> {
    /// What happens to it.
    pub rule: &'plan Arc<Rule>,
    /// The prefix of its path that was matched.
    pub prefix: Option<&'plan Arc<str>>,
}

impl RouteTable {
    /// What happens to a request. Takes no lock, allocates nothing.
    #[must_use]
    pub fn route(&self, head: &RequestHead<'_>) -> Routed<'_> {
        match self.matcher.find(head) {
            Some(index) => Routed { rule: &self.matched[index].rule, prefix: self.matched[index].prefix.as_ref() },
            None => Routed { rule: &self.otherwise, prefix: None },
        }
    }

    /// What may happen, in order of precedence.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.matched.iter().map(|route| &route.rule).chain([&self.otherwise])
    }
}

impl OutboundPlan {
    /// The rules for clients of a namespace.
    #[must_use]
    pub fn table(&self, client_namespace: &str) -> &RouteTable {
        let own = self.consumers.iter().find(|(namespace, _)| **namespace == *client_namespace);
        own.map_or(&self.routes, |(_, table)| table)
    }

    /// All rules, whomever they are for.
    pub fn all_rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.routes.rules().chain(self.consumers.iter().flat_map(|(_, table)| table.rules()))
    }

    /// The split for a connection that weft does not look into.
    #[must_use]
    pub fn route_connection(&self) -> &Arc<Split> {
        &self.connection
    }

    /// Whether a connection can be of use now: a backend can take one, or requests are answered without any.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.connection.has_ready()
            || self.all_rules().any(|rule| rule.split().is_none_or(|split| split.keeps_shares || split.has_ready()))
    }
}

/// What a pod's own address stands for as a destination.
#[derive(Debug)]
pub struct PodPlan {
    /// The pod.
    pub workload: WorkloadId,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// The address.
    pub address: IpAddr,
    /// Service ports that this pod serves, by target port: what they speak, and for headless ones how requests are routed.
    pub ports: Box<[PodPort]>,
}

/// A port of a pod that some Service names.
#[derive(Debug)]
pub struct PodPort {
    /// The port that the pod listens on.
    pub target_port: u16,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// If the Service is headless: its plan, which applies to requests whose Host names the Service.
    pub headless: Option<Arc<OutboundPlan>>,
}

impl PodPlan {
    /// What the pod speaks on a port.
    #[must_use]
    pub fn protocol(&self, port: u16) -> AppProtocol {
        self.ports.iter().find(|p| p.target_port == port).map_or(AppProtocol::Detect, |p| p.protocol)
    }

    /// The headless Service that a request's Host names, if this pod serves it on this port: `name`, `name.namespace`,
    /// `name.namespace.svc` or a longer cluster domain; a pod's own hostname in front (`web-0.name...`) means that pod, not the Service.
    #[must_use]
    pub fn headless(&self, port: u16, host: &str) -> Option<&Arc<OutboundPlan>> {
        let host = host
            .rsplit_once(':')
            .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
        let host = host.strip_suffix('.').unwrap_or(host);
        self.ports
            .iter()
            .filter(|p| p.target_port == port)
            .filter_map(|p| p.headless.as_ref())
            .find(|plan| names_service(host, &plan.service))
    }
}

fn names_service(host: &str, service: &ServiceKey) -> bool {
    let mut labels = host.split('.');
    if !labels.next().is_some_and(|label| label.eq_ignore_ascii_case(&service.name)) {
        return false;
    }
    match labels.next() {
        None => true,
        Some(namespace) => {
            namespace.eq_ignore_ascii_case(&service.namespace)
                && labels.next().is_none_or(|label| label.eq_ignore_ascii_case("svc"))
        }
    }
}

/// What a captured connection was meant for.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A Service address and port.
    Service(Arc<OutboundPlan>),
    /// A pod's own address.
    Pod(Arc<PodPlan>),
}
