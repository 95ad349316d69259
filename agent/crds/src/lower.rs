//! From objects to the model. Pure and total: whatever the objects say, there is a model, and findings about what has no effect.
//! Nothing that is not understood sends a request anywhere that its author did not name, nor widens what is allowed.

use std::{collections::BTreeMap, sync::Arc};

use weft_policy::{
    diagnostic::{Diagnostic, Severity},
    ir::{IrDelta, MeshIr},
    names::ObjectRef,
};

use crate::{
    core::{namespace::Namespace, pod::Pod},
    decode, limits,
    store::{Dirty, ObjectStore},
};

mod access;
mod endpoints;
mod gateway;
mod peers;
mod policies;
mod routes;
mod services;
mod workloads;

pub(crate) use services::BALANCE_ANNOTATION;

/// Whether the connections of a pod are captured, by what it and its namespace say. One whose namespace is not known is left alone.
#[must_use]
pub fn is_meshed(namespace: Option<&Namespace>, pod: &Pod) -> bool {
    workloads::meshed(namespace, pod, &mut Findings::default()) && !pod.ended
}

/// Lowers the units that changed.
#[must_use]
pub fn lower(store: &ObjectStore, dirty: &Dirty) -> IrDelta {
    let mut delta = IrDelta::default();
    for key in &dirty.services {
        let mut findings = Findings::default();
        let service = services::service(store, key, &mut findings).map(Arc::new);
        delta.services.insert(key.clone(), service);
        delta.diagnostics.insert(key.clone(), findings.finish());
    }
    for (key, port) in &dirty.endpoints {
        let set = endpoints::of_port(store, key, *port).map(Arc::new);
        delta.endpoints.insert((key.clone(), *port), set);
    }
    for id in &dirty.workloads {
        let mut findings = Findings::default();
        let workload = workloads::workload(store, id, &mut findings).map(Arc::new);
        delta.workloads.insert(id.clone(), workload);
        delta.workload_diagnostics.insert(id.clone(), findings.finish());
    }
    for name in &dirty.namespaces {
        let mut findings = Findings::default();
        workloads::namespace(store, name, &mut findings);
        delta.stances.insert(name.clone(), workloads::stance(store, name));
        delta.strict.insert(name.clone(), workloads::strict(store, name));
        delta.namespace_diagnostics.insert(name.clone(), findings.finish());
    }
    for id in &dirty.peers {
        let mut findings = Findings::default();
        let peer = peers::peer(store, id, &mut findings).map(Arc::new);
        delta.peers.insert(id.clone(), peer);
        delta.peer_diagnostics.insert(id.clone(), findings.finish());
    }
    for account in &dirty.accounts {
        let mut findings = Findings::default();
        let access = access::of_account(store, account, &mut findings).map(Arc::new);
        delta.access.insert(account.clone(), access);
        let object = ObjectRef::new("ServiceAccount", &account.namespace, &account.name);
        delta.access_diagnostics.insert(object, findings.finish());
    }
    for name in &dirty.bindings {
        let mut findings = Findings::default();
        let object = ObjectRef::new("IdentityBinding", &name.0, &name.1);
        let binding = access::of_binding(store, name, &mut findings).map(Arc::new);
        delta.bindings.insert(object.clone(), binding);
        delta.access_diagnostics.insert(object, findings.finish());
    }
    for name in &dirty.targets {
        let mut findings = Findings::default();
        access::target(store, name, &mut findings);
        let object = ObjectRef::new("TrafficTarget", &name.0, &name.1);
        delta.access_diagnostics.insert(object, findings.finish());
    }
    delta
}

/// Whether the pods of a namespace are in the mesh, unless they say otherwise themselves; `None` if the namespace has not been seen.
#[must_use]
pub fn namespace_is_meshed(store: &ObjectStore, name: &str) -> Option<bool> {
    workloads::namespace_is_meshed(store, name)
}

/// Lowers everything.
#[must_use]
pub fn lower_all(store: &ObjectStore) -> MeshIr {
    let mut ir = MeshIr::default();
    ir.apply(lower(store, &store.all()));
    ir
}

/// What is found while one unit is lowered.
#[derive(Default)]
struct Findings {
    found: Vec<Diagnostic>,
}

impl Findings {
    fn error(&mut self, object: &ObjectRef, code: &'static str, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Error, object, code, (field.into(), message.into()));
    }

    fn warning(
        &mut self,
        object: &ObjectRef,
        code: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.push(Severity::Warning, object, code, (field.into(), message.into()));
    }

    fn push(&mut self, severity: Severity, object: &ObjectRef, code: &'static str, (field, message): (String, String)) {
        let field = decode::shortened(field, limits::FIELD_BYTES_MAX);
        let message = decode::shortened(message, limits::MESSAGE_BYTES_MAX);
        self.found.push(Diagnostic { object: object.clone(), severity, code, field, message });
    }

    /// In a stable order; `None` if there is nothing to say.
    fn finish(mut self) -> Option<Arc<[Diagnostic]>> {
        self.found.sort();
        (!self.found.is_empty()).then(|| self.found.into())
    }
}

/// The value of a label or annotation out of a few, or a finding about it.
fn choice<'a>(map: &'a BTreeMap<String, String>, key: &str, allowed: &[&str]) -> Choice<'a> {
    match map.get(key) {
        None => Choice::Absent,
        Some(value) if allowed.contains(&value.as_str()) => Choice::Known(value),
        Some(value) => Choice::Unknown(value),
    }
}

enum Choice<'a> {
    Absent,
    Known(&'a str),
    Unknown(&'a str),
}

#[cfg(test)]
mod tests;
