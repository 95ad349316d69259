//! One rule of a route: who answers, and what is done on the way. What cannot be carried out answers with an error, as the
//! specification has it, and never goes where its author did not send it.

use std::collections::BTreeSet;

use weft_policy::{
    ir::BackendIr,
    names::ObjectRef,
    rule::{ActionIr, Filters, MirrorIr, Redirect, Refusal, RuleIr},
};

use super::super::Findings;
use crate::{
    core::service::Service,
    gateway::{
        filters::redirects_to_itself,
        route::{BadFilter, Extension, Route, RouteRule, RuleFilters, Target},
    },
    store::ObjectStore,
};

/// The rule at a place of a route, for ports of a Service.
pub(super) fn lower(
    store: &ObjectStore,
    (route, root): (&Route, &Service),
    (index, rule): (usize, &RouteRule),
    ports: &BTreeSet<u16>,
    findings: &mut Findings,
) -> RuleIr {
    let origin = route.object();
    let at = format!("spec.rules[{index}]");
    let name = rule.name.clone().unwrap_or_else(|| format!("rules[{index}]").into());
    let mut lowering = Lowering { store, route, root, origin: &origin, at: &at, ports, findings };
    let backends = lowering.backends(rule);
    let done = rule.filters.clone().and_then(|filters| lowering.filters(filters));
    let (action, filters, mirrors) = match done {
        Ok(done) => {
            let action = match done.redirect {
                Some(redirect) => {
                    if redirects_to_itself(rule) {
                        let message = "leads clients to where they came from, again and again";
                        lowering.findings.warning(&origin, "RedirectsToItself", format!("{at}.filters"), message);
                    }
                    ActionIr::Redirect(redirect)
                }
                None => lowering.forward(rule, backends),
            };
            (action, done.filters, done.mirrors)
        }
        Err(bad) => {
            let field = format!("{at}.{}", bad.field);
            let message = format!("{}; requests that the rule takes are answered 500", bad.message);
            lowering.findings.error(&origin, bad.reason, field, message);
            (refuse(&bad.message), Filters::default(), Vec::new())
        }
    };
    let filters = (filters != Filters::default()).then(|| Box::new(filters));
    RuleIr { origin, name, action, filters, mirrors }
}

fn refuse(why: &str) -> ActionIr {
    ActionIr::Refuse(Refusal::Invalid(why.into()))
}

/// What is left of a rule's filters once their references are followed.
struct Done {
    filters: Filters,
    redirect: Option<Redirect>,
    mirrors: Vec<MirrorIr>,
}

struct Lowering<'a> {
    store: &'a ObjectStore,
    route: &'a Route,
    root: &'a Service,
    origin: &'a ObjectRef,
    at: &'a str,
    ports: &'a BTreeSet<u16>,
    findings: &'a mut Findings,
}

impl Lowering<'_> {
    fn forward(&mut self, rule: &RouteRule, backends: Vec<BackendIr>) -> ActionIr {
        let why = if rule.backends.is_empty() {
            "the rule names no backend"
        } else if rule.backends.iter().all(|backend| backend.weight == 0) {
            "every weight of the rule is zero"
        } else {
            return ActionIr::Forward { backends, keeps_shares: true };
        };
        let message = format!("{why}; requests that it takes are answered 500");
        self.findings.warning(self.origin, "BackendNotFound", format!("{}.backendRefs", self.at), message);
        refuse(why)
    }

    fn backends(&mut self, rule: &RouteRule) -> Vec<BackendIr> {
        let mut backends = Vec::new();
        for (index, backend) in rule.backends.iter().enumerate() {
            let field = format!("{}.backendRefs[{index}]", self.at);
            let mut invalid = None;
            if let Err((code, message)) = self.resolve(&backend.target) {
                let message = format!("{message}; its share is answered 500");
                self.findings.error(self.origin, code, field, message);
                invalid = Some(code);
            }
            let headers = match &backend.headers {
                Ok(headers) => headers.clone(),
                Err(bad) => {
                    let message = format!("{}; the backend's share is answered 500", bad.message);
                    self.findings.error(self.origin, bad.reason, format!("{}.{}", self.at, bad.field), message);
                    invalid = invalid.or(Some(bad.reason));
                    None
                }
            };
            let ir = self.backend(&backend.target, backend.weight);
            backends.push(BackendIr { invalid: invalid.map(Into::into), headers, ..ir });
        }
        backends
    }

    fn backend(&self, target: &Target, weight: u64) -> BackendIr {
        let ports = self.ports.iter().map(|port| (*port, target.port.unwrap_or(*port)));
        BackendIr::new(target.service.clone(), weight, ports.collect())
    }

    /// Whether a reference may be followed and leads somewhere; else the reason, as conditions have it.
    fn resolve(&self, target: &Target) -> Result<(), (&'static str, String)> {
        let key = &target.service;
        if !target.is_service() {
            let group = if target.group.is_empty() { "the core group" } else { &target.group };
            return Err(("InvalidKind", format!("{} of {group} takes no requests: only a Service does", target.kind)));
        }
        // The Service's own namespace has let its clients in already.
        let own = key.namespace == self.route.meta.namespace || key.namespace == self.root.meta.namespace;
        if !own && !self.store.is_granted(self.route.kind, &self.route.meta.namespace, target) {
            let message = format!(
                "no ReferenceGrant of namespace {} lets a {} of namespace {} name Service {key}",
                key.namespace, self.origin.kind, self.route.meta.namespace
            );
            return Err(("RefNotPermitted", message));
        }
        let Some(service) = self.store.service(key) else {
            return Err(("BackendNotFound", format!("Service {key} does not exist")));
        };
        match target.port {
            Some(port) if service.ports.iter().any(|own| own.port == port) => Ok(()),
            Some(port) => Err(("BackendNotFound", format!("Service {key} has no TCP port {port}"))),
            None => Err(("BackendNotFound", format!("no port of Service {key} is given"))),
        }
    }

    fn filters(&mut self, from: RuleFilters) -> Result<Done, BadFilter> {
        let RuleFilters { mut filters, redirect, mirrors, extensions, notes } = from;
        for (field, message) in notes {
            self.findings.warning(self.origin, "UnsupportedValue", format!("{}.{field}", self.at), message);
        }
        for extension in &extensions {
            self.extension(extension, &mut filters)?;
        }
        let mut copies = Vec::new();
        for mirror in mirrors {
            match self.resolve(&mirror.target) {
                Ok(()) => copies.push(MirrorIr { backend: self.backend(&mirror.target, 1), share: mirror.share }),
                Err((code, message)) => {
                    let message = format!("{message}; nothing is copied");
                    self.findings.error(self.origin, code, format!("{}.{}", self.at, mirror.field), message);
                }
            }
        }
        Ok(Done { filters, redirect, mirrors: copies })
    }

    /// What an object beside the route asks for.
    fn extension(&mut self, extension: &Extension, _filters: &mut Filters) -> Result<(), BadFilter> {
        let Extension { field, group, kind, name } = extension;
        let message = format!("{kind} {name} of {group:?} is no filter that this version carries out");
        Err(BadFilter::new(field.clone(), "UnsupportedValue", message))
    }
}
