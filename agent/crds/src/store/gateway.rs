//! Marking and reading what routes of Gateway API depend on.

use std::sync::Arc;

use weft_policy::names::ServiceKey;

use super::{Dirty, Name, ObjectStore};
use crate::gateway::{
    reference_grant::ReferenceGrant,
    route::{Route, RouteKind, Target},
};

const KINDS: [RouteKind; 2] = [RouteKind::Grpc, RouteKind::Http];

/// The Services that a route is for.
pub(super) fn mark_parents(route: &Route, dirty: &mut Dirty) {
    dirty.services.extend(route.parents.iter().map(|parent| parent.service.clone()));
}

impl ObjectStore {
    /// What sends requests or copies to a Service.
    pub(super) fn mark_routes_to(&self, service: &ServiceKey, dirty: &mut Dirty) {
        for kind in KINDS {
            let names = self.index.routes(kind).by_target.get(service).into_iter().flatten();
            names.filter_map(|name| self.route(kind, name)).for_each(|route| mark_parents(route, dirty));
        }
    }

    /// What a grant may let name a Service of its namespace.
    pub(super) fn mark_granted(&self, grant: &ReferenceGrant, dirty: &mut Dirty) {
        let namespace = &grant.meta.namespace;
        let first = ServiceKey { namespace: Arc::clone(namespace), name: "".into() };
        for kind in KINDS {
            let granted = |name: &&Name| grant.from.iter().any(|(of, from)| *of == kind && *from == name.0);
            let of_namespace = self
                .index
                .routes(kind)
                .by_target
                .range(first.clone()..)
                .take_while(|(key, _)| key.namespace == *namespace);
            let names = of_namespace.flat_map(|(_, names)| names).filter(granted);
            names.filter_map(|name| self.route(kind, name)).for_each(|route| mark_parents(route, dirty));
        }
    }
}

/// Reading: what lowering asks for.
impl ObjectStore {
    /// The routes of a kind that are for a Service.
    pub(crate) fn routes_of(&self, kind: RouteKind, service: &ServiceKey) -> impl Iterator<Item = &Route> {
        let names = self.index.routes(kind).by_parent.get(service).into_iter().flatten();
        names.filter_map(move |name| self.route(kind, name))
    }

    /// Whether a grant lets a route of a namespace name a Service of another.
    pub(crate) fn is_granted(&self, kind: RouteKind, namespace: &str, target: &Target) -> bool {
        let mut grants = super::in_namespace(&self.grants, &target.service.namespace);
        grants.any(|grant| grant.allows(kind, namespace, target))
    }

    fn route(&self, kind: RouteKind, name: &Name) -> Option<&Route> {
        let routes = match kind {
            RouteKind::Http => &self.http_routes,
            RouteKind::Grpc => &self.grpc_routes,
        };
        routes.get(name).map(|route| &**route)
    }
}
