//! One object of a kind that weft reads, and its key.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_policy::names::ObjectRef;

use crate::{
    core::{endpoint_slice::EndpointSlice, namespace::Namespace, pod::Pod, service::Service},
    gateway::{self, reference_grant::ReferenceGrant, route::Route},
    smi::{
        http_route_group::HttpRouteGroup, identity_binding::IdentityBinding, tcp_route::TcpRoute,
        traffic_split::TrafficSplit, traffic_target::TrafficTarget, udp_route::UdpRoute,
    },
    weft::{backend_policy::BackendPolicy, fault_injection::FaultInjection, node_workloads::NodeWorkloads},
};

/// The kinds that weft reads. The API group goes with the kind; the version does not tell objects apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    Pod,
    /// `v1`
    Service,
    /// `discovery.k8s.io`
    EndpointSlice,
    /// `split.smi-spec.io`
    TrafficSplit,
    /// `specs.smi-spec.io`
    HttpRouteGroup,
    /// `specs.smi-spec.io`
    TcpRoute,
    /// `specs.smi-spec.io`
    UdpRoute,
    /// `access.smi-spec.io`
    TrafficTarget,
    /// `access.smi-spec.io`
    IdentityBinding,
    /// `gateway.networking.k8s.io`
    HttpRoute,
    /// `gateway.networking.k8s.io`
    GrpcRoute,
    /// `gateway.networking.k8s.io`
    ReferenceGrant,
    /// `weft.dev`
    NodeWorkloads,
    /// `weft.dev`
    BackendPolicy,
    /// `weft.dev`
    FaultInjection,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::TrafficSplit,
        Self::HttpRouteGroup,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::TrafficTarget,
        Self::IdentityBinding,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::NodeWorkloads,
        Self::BackendPolicy,
        Self::FaultInjection,
    ];

    /// As in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::TrafficSplit => "TrafficSplit",
            Self::HttpRouteGroup => "HTTPRouteGroup",
            Self::TcpRoute => "TCPRoute",
            Self::UdpRoute => "UDPRoute",
            Self::TrafficTarget => "TrafficTarget",
            Self::IdentityBinding => "IdentityBinding",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::NodeWorkloads => "NodeWorkloads",
            Self::BackendPolicy => "BackendPolicy",
            Self::FaultInjection => "FaultInjection",
        }
    }

    /// API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Service => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::TrafficSplit => "split.smi-spec.io",
            Self::HttpRouteGroup | Self::TcpRoute | Self::UdpRoute => "specs.smi-spec.io",
            Self::TrafficTarget | Self::IdentityBinding => "access.smi-spec.io",
            Self::HttpRoute | Self::GrpcRoute | Self::ReferenceGrant => gateway::GROUP,
            Self::NodeWorkloads | Self::BackendPolicy | Self::FaultInjection => "weft.dev",
        }
    }

    /// The versions that are understood, oldest first.
    #[must_use]
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Pod | Self::Service | Self::EndpointSlice => &["v1"],
            Self::TrafficSplit | Self::HttpRouteGroup | Self::TcpRoute | Self::TrafficTarget => {
                &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"]
            }
            Self::UdpRoute | Self::IdentityBinding => &["v1alpha4"],
            Self::HttpRoute | Self::ReferenceGrant => &["v1beta1", "v1"],
            Self::GrpcRoute => &["v1"],
            Self::NodeWorkloads | Self::BackendPolicy | Self::FaultInjection => &["v1alpha1"],
        }
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::NodeWorkloads)
    }

    /// Whether its objects are for others, each of which has conditions of its own: `status.parents` of Gateway API.
    #[must_use]
    pub fn has_parents(self) -> bool {
        matches!(self, Self::HttpRoute | Self::GrpcRoute)
    }

    /// Whether its objects say what people want of the mesh, and so get conditions that say what became of it.
    #[must_use]
    pub fn has_status(self) -> bool {
        self.group().ends_with(".smi-spec.io")
            || self.has_parents()
            || matches!(self, Self::BackendPolicy | Self::FaultInjection)
    }
}

/// Tells an object from every other one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key by kind, namespace and name.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// The reference that diagnostics carry.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        ObjectRef::new(self.kind.as_str(), &self.namespace, &self.name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.as_str(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
        }
    }
}

/// One object, trimmed to what weft uses: a change of anything else is no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1` Namespace.
    Namespace(Arc<Namespace>),
    /// `v1` Pod.
    Pod(Arc<Pod>),
    /// `v1` Service.
    Service(Arc<Service>),
    /// `discovery.k8s.io` EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// `split.smi-spec.io` TrafficSplit.
    TrafficSplit(Arc<TrafficSplit>),
    /// `specs.smi-spec.io` HTTPRouteGroup.
    HttpRouteGroup(Arc<HttpRouteGroup>),
    /// `specs.smi-spec.io` TCPRoute.
    TcpRoute(Arc<TcpRoute>),
    /// `specs.smi-spec.io` UDPRoute.
    UdpRoute(Arc<UdpRoute>),
    /// `access.smi-spec.io` TrafficTarget.
    TrafficTarget(Arc<TrafficTarget>),
    /// `access.smi-spec.io` IdentityBinding.
    IdentityBinding(Arc<IdentityBinding>),
    /// `gateway.networking.k8s.io` HTTPRoute.
    HttpRoute(Arc<Route>),
    /// `gateway.networking.k8s.io` GRPCRoute.
    GrpcRoute(Arc<Route>),
    /// `gateway.networking.k8s.io` ReferenceGrant.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// `weft.dev` NodeWorkloads.
    NodeWorkloads(Arc<NodeWorkloads>),
    /// `weft.dev` BackendPolicy.
    BackendPolicy(Arc<BackendPolicy>),
    /// `weft.dev` FaultInjection.
    FaultInjection(Arc<FaultInjection>),
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::TrafficSplit(_) => Kind::TrafficSplit,
            Self::HttpRouteGroup(_) => Kind::HttpRouteGroup,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::UdpRoute(_) => Kind::UdpRoute,
            Self::TrafficTarget(_) => Kind::TrafficTarget,
            Self::IdentityBinding(_) => Kind::IdentityBinding,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::NodeWorkloads(_) => Kind::NodeWorkloads,
            Self::BackendPolicy(_) => Kind::BackendPolicy,
            Self::FaultInjection(_) => Kind::FaultInjection,
        }
    }

    /// Its metadata.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(object) => &object.meta,
            Self::Pod(object) => &object.meta,
            Self::Service(object) => &object.meta,
            Self::EndpointSlice(object) => &object.meta,
            Self::TrafficSplit(object) => &object.meta,
            Self::HttpRouteGroup(object) => &object.meta,
            Self::TcpRoute(object) => &object.meta,
            Self::UdpRoute(object) => &object.meta,
            Self::TrafficTarget(object) => &object.meta,
            Self::IdentityBinding(object) => &object.meta,
            Self::HttpRoute(object) | Self::GrpcRoute(object) => &object.meta,
            Self::ReferenceGrant(object) => &object.meta,
            Self::NodeWorkloads(object) => &object.meta,
            Self::BackendPolicy(object) => &object.meta,
            Self::FaultInjection(object) => &object.meta,
        }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let meta = self.meta();
        ObjectKey { kind: self.kind(), namespace: meta.namespace.clone(), name: meta.name.clone() }
    }
}

/// Whether objects of a kind are told apart by their UID. There may be a hundred thousand of the others.
fn told_by_uid(kind: Kind) -> bool {
    kind == Kind::Pod
}

/// Whether labels of a kind mean anything.
fn has_labels(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::Pod)
}

/// The parts of `metadata` that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Namespace; `default` where a document has none, empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID of a pod, if it has one: those of a directory mostly do not.
    pub uid: Option<Arc<str>>,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: Option<i64>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Labels of a namespace or a pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of weft's own.
    pub annotations: BTreeMap<String, String>,
}

impl Meta {
    /// Trims the metadata of an object of `kind`.
    #[must_use]
    pub fn new(kind: Kind, meta: ObjectMeta) -> Self {
        let namespace = if kind.namespaced() {
            meta.namespace.filter(|namespace| !namespace.is_empty())
        } else {
            Some(String::new())
        };
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.retain(|key, _| key.starts_with("weft.dev/"));
        Self {
            namespace: namespace.as_deref().unwrap_or("default").into(),
            name: meta.name.unwrap_or_default().into(),
            uid: meta.uid.filter(|uid| told_by_uid(kind) && !uid.is_empty()).map(Into::into),
            created_ms: meta.creation_timestamp.map(|time| time.0.as_millisecond()),
            deleting: meta.deletion_timestamp.is_some(),
            labels: meta.labels.filter(|_| has_labels(kind)).unwrap_or_default(),
            annotations,
        }
    }

    /// Precedence between objects that say something about the same thing: the oldest first, those that do not know their age
    /// last, then by namespace and name.
    #[must_use]
    pub fn precedence(&self) -> (i64, &str, &str) {
        (self.created_ms.unwrap_or(i64::MAX), &self.namespace, &self.name)
    }
}
