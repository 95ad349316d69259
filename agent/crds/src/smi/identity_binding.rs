//! IdentityBinding, access.smi-spec.io v1alpha4 (a draft that was never released).
//!
//! The draft's text writes `podLabelSelectors` (a list), its published schema `podLabelSelector`; both are read. A SPIFFE identity
//! selects as a destination, where that can only deny more; as a source it grants nothing, because nothing proves one yet.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;
use weft_policy::{limits, names::ServiceAccountKey};

use super::shape::Body;
use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
};

/// Workloads of one namespace under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityBinding {
    /// Metadata.
    pub meta: Meta,
    /// The service account, of the binding's own namespace.
    pub service_account: Option<Arc<str>>,
    /// Labels, all of which a pod of the binding's own namespace has; any of these selectors is enough.
    pub selectors: Vec<BTreeMap<String, String>>,
    /// Service accounts of the binding's own namespace that SPIFFE identities name (`<trust domain>/ns/<namespace>/sa/<name>`).
    pub spiffe_accounts: Vec<Arc<str>>,
    /// How many SPIFFE identities there are, of any form.
    pub spiffe_identities: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    schemes: Schemes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Schemes {
    pod_label_selector: Option<Selector>,
    pod_label_selectors: Option<Vec<Selector>>,
    spiffe_identities: Option<Vec<String>>,
    service_account: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Selector {
    #[serde(rename = "name")]
    _name: Option<String>,
    match_labels: BTreeMap<String, String>,
}

impl IdentityBinding {
    /// The service accounts that it means as a destination.
    pub fn accounts(&self) -> impl Iterator<Item = ServiceAccountKey> + '_ {
        let names = self.service_account.iter().chain(&self.spiffe_accounts);
        names.map(|name| ServiceAccountKey { namespace: self.meta.namespace.clone(), name: Arc::clone(name) })
    }

    /// Whether it means a pod of its own namespace with these labels.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selectors.iter().any(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
    }

    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let body = Body::of(document)?;
        let Spec { schemes } = body.decode()?;
        let at = format!("{}schemes", body.prefix);
        let meta = Meta::new(Kind::IdentityBinding, meta);
        let mut selectors = Vec::new();
        let single = schemes.pod_label_selector.map(|one| (format!("{at}.podLabelSelector"), one));
        let list = schemes.pod_label_selectors.unwrap_or_default().into_iter().enumerate();
        let list = list.map(|(index, one)| (format!("{at}.podLabelSelectors[{index}]"), one));
        for (field, selector) in single.into_iter().chain(list) {
            if selector.match_labels.is_empty() {
                problems.push(FieldError::new(
                    format!("{field}.matchLabels"),
                    "must have at least one label: none would mean every pod",
                ));
            }
            selectors.push(selector.match_labels);
        }
        if selectors.len() > limits::ACCESS_SELECTORS_MAX {
            let message =
                format!("{} selectors are over the limit of {}", selectors.len(), limits::ACCESS_SELECTORS_MAX);
            problems.push(FieldError::new(format!("{at}.podLabelSelectors"), message));
        }
        let service_account = schemes.service_account;
        if let Some(name) = service_account.as_ref().filter(|name| !decode::is_subdomain(name)) {
            let message = format!("{name:?} is no valid name (RFC 1123 subdomain)");
            problems.push(FieldError::new(format!("{at}.serviceAccount"), message));
        }
        let spiffe = schemes.spiffe_identities.unwrap_or_default();
        if spiffe.len() > limits::ACCESS_SOURCES_MAX {
            let message = format!("{} identities are over the limit of {}", spiffe.len(), limits::ACCESS_SOURCES_MAX);
            problems.push(FieldError::new(format!("{at}.spiffeIdentities"), message));
        }
        match (service_account.is_some(), selectors.is_empty(), spiffe.is_empty()) {
            (true, false, _) => {
                problems.push(FieldError::new(at, "podLabelSelector and serviceAccount exclude each other: give one"));
            }
            (false, true, true) => problems.push(FieldError::new(at, "must have at least one scheme")),
            _ => {}
        }
        let spiffe_accounts = spiffe.iter().filter_map(|id| account(id, &meta.namespace)).map(Into::into).collect();
        Ok(Self {
            service_account: service_account.map(Into::into),
            selectors,
            spiffe_accounts,
            spiffe_identities: spiffe.len(),
            meta,
        })
    }
}

/// The service account of `namespace` that a SPIFFE identity names, as Istio and SPIRE write them.
fn account<'a>(identity: &'a str, namespace: &str) -> Option<&'a str> {
    let path = identity.strip_prefix("spiffe://").unwrap_or(identity);
    let mut parts = path.split('/').skip(1);
    let found = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let ("ns", of, "sa", name) = found else { return None };
    (parts.next().is_none() && of == namespace && decode::is_subdomain(name)).then_some(name)
}
