//! The roots as a ClusterTrustBundle (`certificates.k8s.io`), beside the ConfigMap, wherever the API server has such objects: for programs
//! that are no agents. What becomes of it holds nothing else up.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use weft_identity::{Bundle, TrustDomain};

use super::{
    api::Api,
    limits,
    metrics::CaMetrics,
    problem::{Complaint, Problem},
    stored,
};
use crate::watch::kube::{health::Reason, wire::Failure};

const GROUP: &str = "/apis/certificates.k8s.io";
const PLURAL: &str = "clustertrustbundles";
/// Versions that have had it, newest first; all have the same fields (kubernetes.io, "Certificate signing requests").
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
/// Whose roots they are.
const SIGNER: &str = "weft.dev/identity";
/// A bundle of a signer has its name as a prefix, with colons for slashes.
const NAME: &str = "weft.dev:identity:roots";

/// As every version has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    signer_name: String,
    trust_bundle: String,
}

/// Keeps it in step with what is published.
pub(super) struct TrustBundle {
    api: Api,
    complaint: Complaint,
    /// What the API server was found to have, and when.
    served: Option<(Option<&'static str>, Instant)>,
}

impl TrustBundle {
    pub(super) fn new(api: Api, metrics: CaMetrics) -> Self {
        Self { api, complaint: Complaint::new("trust_bundle", metrics), served: None }
    }

    /// Writes the roots, where they are not what is there.
    pub(super) async fn keep(&mut self, bundle: &Bundle, domain: &TrustDomain) {
        let outcome = self.attempt(bundle, domain).await;
        self.complaint.note(outcome);
    }

    async fn attempt(&mut self, bundle: &Bundle, domain: &TrustDomain) -> Result<(), Problem> {
        let Some(version) = self.version().await.map_err(|failure| told(&failure))? else { return Ok(()) };
        let all = format!("{GROUP}/{version}/{PLURAL}");
        let path = format!("{all}/{NAME}");
        let before: Option<Object> = self.api.get(&path).await.map_err(|failure| told(&failure))?;
        let wanted = wanted(version, bundle, domain, before.clone());
        if before.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let written = match before {
            None => self.api.create(&all, &wanted).await,
            Some(_) => self.api.replace(&path, &wanted).await,
        };
        match written {
            Ok(Some(_)) => {
                let sha256 = bundle.sha256();
                tracing::info!(cluster_trust_bundle = NAME, version, sha256, "the roots are published");
                Ok(())
            }
            Ok(None) => Err(Problem::new(
                "conflict",
                format_args!("ClusterTrustBundle {NAME} was changed by somebody else; it is looked at again"),
            )),
            // Not there, or not any more: the API server has been changed for another.
            Err(failure) if failure.reason == Reason::NotServed => {
                self.served = None;
                Ok(())
            }
            Err(failure) => Err(told(&failure)),
        }
    }

    /// The version to write; `None` where there is none.
    async fn version(&mut self) -> Result<Option<&'static str>, Failure> {
        match self.served {
            Some((Some(version), _)) => return Ok(Some(version)),
            Some((None, asked)) if asked.elapsed() < limits::TRUST_BUNDLE_LOOK => return Ok(None),
            _ => {}
        }
        let mut found = None;
        for version in VERSIONS {
            let list: Option<Value> = self.api.get(&format!("{GROUP}/{version}")).await?;
            if list.is_some_and(|list| has(&list)) {
                found = Some(version);
                break;
            }
        }
        self.served = Some((found, Instant::now()));
        Ok(found)
    }
}

/// Whether a group's version has the resource (APIResourceList).
fn has(list: &Value) -> bool {
    list["resources"].as_array().into_iter().flatten().any(|resource| resource["name"] == PLURAL)
}

fn told(failure: &Failure) -> Problem {
    let reason = if failure.reason == Reason::Forbidden { "forbidden" } else { "api_server" };
    Problem::new(reason, format_args!("ClusterTrustBundle {NAME}: {}", failure.message))
}

/// The object as it should be; what others have put into its metadata stays.
fn wanted(version: &str, bundle: &Bundle, domain: &TrustDomain, before: Option<Object>) -> Object {
    let mut metadata = before.map_or_else(
        || ObjectMeta { name: Some(NAME.to_owned()), labels: Some(stored::labels()), ..ObjectMeta::default() },
        |before| before.metadata,
    );
    metadata.annotations.get_or_insert_default().insert(stored::TRUST_DOMAIN.to_owned(), domain.to_string());
    Object {
        api_version: format!("certificates.k8s.io/{version}"),
        kind: "ClusterTrustBundle".to_owned(),
        metadata,
        spec: Spec { signer_name: SIGNER.to_owned(), trust_bundle: bundle.to_pem() },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_name_is_one_that_the_signer_may_have() {
        let prefix = format!("{}:", SIGNER.replace('/', ":"));
        let rest = NAME.strip_prefix(&prefix).unwrap();
        assert!(!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_lowercase()), "{rest}");
    }

    #[test]
    fn only_a_version_that_lists_the_resource_has_it() {
        assert!(has(&json!({"resources": [{"name": "certificatesigningrequests"}, {"name": "clustertrustbundles"}]})));
        for list in [json!({}), json!({"resources": [{"name": "certificatesigningrequests"}]}), json!("garbage")] {
            assert!(!has(&list), "{list}");
        }
    }
}
