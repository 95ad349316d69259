//! What is attached to Services: BackendPolicies and FaultInjections.

use std::collections::BTreeMap;

use weft_policy::{few::Few, names::ServiceKey};

use super::{Dirty, Name, ObjectStore, mark_endpoints};
use crate::weft::{backend_policy::BackendPolicy, fault_injection::FaultInjection, target::Target};

/// Which objects name which Services.
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyIndex {
    pub(super) policies: BTreeMap<ServiceKey, Few<Name>>,
    pub(super) faults: BTreeMap<ServiceKey, Few<Name>>,
}

impl ObjectStore {
    /// A FaultInjection that a route names.
    #[must_use]
    pub fn fault(&self, namespace: &str, name: &str) -> Option<&FaultInjection> {
        self.faults.get(&(namespace.into(), name.into())).map(|fault| &**fault)
    }

    /// The BackendPolicies that name a Service, those that count first.
    pub(crate) fn policies_of(&self, service: &ServiceKey) -> Vec<&BackendPolicy> {
        let names = self.index.policies.policies.get(service).into_iter().flatten();
        let mut found: Vec<_> = names.filter_map(|name| self.policies.get(name)).map(|policy| &**policy).collect();
        found.sort_by_key(|policy| policy.meta.precedence());
        found
    }

    /// The FaultInjections that name a Service, the one that counts first.
    pub(crate) fn faults_of(&self, service: &ServiceKey) -> Vec<&FaultInjection> {
        let names = self.index.policies.faults.get(service).into_iter().flatten();
        let mut found: Vec<_> = names.filter_map(|name| self.faults.get(name)).map(|fault| &**fault).collect();
        found.sort_by_key(|fault| fault.meta.precedence());
        found
    }

    /// What a BackendPolicy is for: its findings are those of the Service, what it says is its endpoints'.
    pub(super) fn mark_policy(&self, policy: &BackendPolicy, dirty: &mut Dirty) {
        for Target { service: key, .. } in &policy.targets {
            dirty.services.insert(key.clone());
            if let Some(service) = self.service(key) {
                mark_endpoints(service, dirty);
            }
        }
    }

    pub(super) fn mark_fault(fault: &FaultInjection, dirty: &mut Dirty) {
        dirty.services.extend(fault.targets.iter().map(|target| target.service.clone()));
    }

    /// Everything that is said of Services, present or not.
    pub(super) fn all_policies(&self, dirty: &mut Dirty) {
        dirty.services.extend(self.index.policies.policies.keys().cloned());
        dirty.services.extend(self.index.policies.faults.keys().cloned());
    }
}
