//! What is generated from the kinds: CustomResourceDefinitions (`cargo xtask gen` writes them to `manifests/weft/crds`), and a page that
//! says what is made of each field ([`reference`]).
//!
//! One schema serves every version of a kind, and versions are not converted (`conversion: None`): a published manifest of any
//! version is accepted as it is, and no webhook stands between a cluster and its policy. What a schema cannot say, [`crate::parse`]
//! says, and the object's status carries it.

use serde_json::{Value, json};

use crate::object::Kind;

pub mod reference;

mod access;
mod schema;
mod specs;
mod split;
mod weft;

/// A kind as its CustomResourceDefinition describes it.
pub struct Definition {
    /// `TrafficSplit`.
    pub kind: &'static str,
    /// `split.smi-spec.io`.
    pub group: &'static str,
    /// `trafficsplits`.
    pub plural: &'static str,
    /// `trafficsplit`.
    pub singular: &'static str,
    /// What may be given to kubectl instead.
    pub short_names: &'static [&'static str],
    /// Every published version, oldest first. All are served.
    pub versions: &'static [&'static str],
    /// The version in which objects are stored. Not a draft, so that the published CRDs can take over from weft's again.
    pub storage: &'static str,
    /// Its objects belong to no namespace.
    pub cluster_scoped: bool,
    /// `smi` for what people write, so that `kubectl get smi` shows all of it.
    pub categories: &'static [&'static str],
    /// What `kubectl get` shows beside name, `Accepted` where there is a status, and age.
    columns: &'static [Column],
    /// Fields beside apiVersion, kind, metadata and status.
    schema: fn() -> Value,
}

/// What `kubectl get` shows.
struct Column {
    name: &'static str,
    path: &'static str,
}

/// Every kind that weft brings a CustomResourceDefinition for.
pub const DEFINITIONS: [&Definition; 9] = [
    &access::TRAFFIC_TARGET,
    &access::IDENTITY_BINDING,
    &specs::HTTP_ROUTE_GROUP,
    &specs::TCP_ROUTE,
    &specs::UDP_ROUTE,
    &split::TRAFFIC_SPLIT,
    &weft::BACKEND_POLICY,
    &weft::FAULT_INJECTION,
    &weft::NODE_WORKLOADS,
];

impl Definition {
    /// `trafficsplits.split.smi-spec.io`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    fn has_status(&self) -> bool {
        Kind::ALL.into_iter().any(|kind| kind.group() == self.group && kind.as_str() == self.kind && kind.has_status())
    }

    /// The CustomResourceDefinition.
    #[must_use]
    pub fn custom_resource_definition(&self) -> Value {
        let has_status = self.has_status();
        let schema = schema::root((self.schema)(), has_status.then(schema::status));
        let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
        let mut columns: Vec<Value> =
            self.columns.iter().map(|shown| column(shown.name, "string", shown.path)).collect();
        if has_status {
            columns.push(column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status"));
        }
        columns.push(column("Age", "date", ".metadata.creationTimestamp"));
        let versions: Vec<Value> = self
            .versions
            .iter()
            .map(|version| {
                let mut served = json!({
                    "name": version,
                    "served": true,
                    "storage": *version == self.storage,
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                });
                if has_status {
                    served["subresources"] = json!({"status": {}});
                }
                served
            })
            .collect();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name(), "labels": {"app.kubernetes.io/part-of": "weft"}},
            "spec": {
                "group": self.group,
                "scope": if self.cluster_scoped { "Cluster" } else { "Namespaced" },
                "conversion": {"strategy": "None"},
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.singular,
                    "shortNames": self.short_names,
                    "categories": self.categories,
                },
                "versions": versions,
            },
        })
    }
}

#[cfg(test)]
mod tests;
