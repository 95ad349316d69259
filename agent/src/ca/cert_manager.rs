//! cert-manager as the signer: a CertificateRequest for each certificate, looked at until it is signed, and deleted (cert-manager.io/v1).
//! It stands behind the same checks of who may have what as our own key, and what it answers is checked before anybody gets it.

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::ByteString;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};
use weft_identity::{
    Bundle,
    authority::{Order, SignError, Signer, answer, signer::Signing},
    limits as identity_limits, request,
};

use super::{api::Api, limits, metrics::CaMetrics, stored};

/// Which issuer of cert-manager signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerRef {
    /// `Issuer`, `ClusterIssuer`, or an external one's kind.
    pub kind: String,
    /// API group.
    pub group: String,
    /// Name.
    pub name: String,
}

impl FromStr for IssuerRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no issuer: expected KIND/NAME, or KIND.GROUP/NAME");
        let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
        let (kind, group) = kind.split_once('.').unwrap_or((kind, "cert-manager.io"));
        if kind.is_empty() || group.is_empty() || name.is_empty() || name.contains('/') {
            return Err(wrong());
        }
        Ok(Self { kind: kind.to_owned(), group: group.to_owned(), name: name.to_owned() })
    }
}

/// Has certificates signed by cert-manager.
pub(super) struct CertManager {
    api: Api,
    issuer: IssuerRef,
    /// This replica's pod, name and UID: what it leaves behind goes with it.
    owner: Option<(String, String)>,
    slots: Semaphore,
    metrics: CaMetrics,
}

/// Why there is no certificate, and the word of it for a metric.
type Failed = (&'static str, SignError);

impl CertManager {
    pub(super) fn new(api: Api, issuer: IssuerRef, owner: Option<(String, String)>, metrics: CaMetrics) -> Arc<Self> {
        Arc::new(Self { api, issuer, owner, slots: Semaphore::new(limits::CERT_MANAGER_MAX), metrics })
    }

    /// Has a request signed. It is seen to its end, and deleted, even if nobody waits for the answer any more.
    pub(super) async fn order(
        self: &Arc<Self>,
        csr: Vec<u8>,
        life: Duration,
        usages: &'static [&'static str],
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let this = Arc::clone(self);
        let order = tokio::spawn(async move {
            let outcome = this.one(&csr, life, usages).await;
            let word = outcome.as_ref().map_or_else(|(word, _)| *word, |_| "signed");
            this.metrics.orders.with_label_values(&[word]).inc();
            outcome.map_err(|(_, error)| error)
        });
        order.await.unwrap_or_else(|_| Err(SignError::Unavailable("stops".to_owned())))
    }

    async fn one(&self, csr: &[u8], life: Duration, usages: &[&str]) -> Result<Vec<CertificateDer<'static>>, Failed> {
        let unavailable =
            |word, message: String| (word, SignError::Unavailable(format!("{}: {message}", self.described())));
        let seconds = limits::CERT_MANAGER_TIMEOUT.as_secs();
        let deadline = Instant::now() + limits::CERT_MANAGER_TIMEOUT;
        let _slot = timeout_at(deadline, self.slots.acquire()).await.map_err(|_| {
            let most = limits::CERT_MANAGER_MAX;
            unavailable("busy", format!("{most} CertificateRequests are open, and none was done within {seconds} s"))
        })?;
        // A name of our own: what was made can be deleted even if the answer to that was lost.
        let name = format!("weft-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let all = format!("/apis/cert-manager.io/v1/namespaces/{}/certificaterequests", self.api.namespace());
        let path = format!("{all}/{name}");
        let signed = match self.api.create(&all, &self.object(&name, csr, life, usages)).await {
            Ok(Some(_)) => timeout_at(deadline, self.wait(&path)).await.unwrap_or_else(|_| {
                Err(unavailable("timeout", format!("CertificateRequest {name} was not signed within {seconds} s")))
            }),
            Ok(None) => Err(unavailable("failed", format!("there is a CertificateRequest {name} already"))),
            Err(failure) => Err(unavailable("failed", failure.message)),
        };
        self.delete(&name, &path).await;
        signed
    }

    fn object(&self, name: &str, csr: &[u8], life: Duration, usages: &[&str]) -> Value {
        let mut metadata = json!({"name": name, "namespace": self.api.namespace(), "labels": stored::labels()});
        if let Some((name, uid)) = &self.owner {
            metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]);
        }
        json!({
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest", "metadata": metadata,
            "spec": {
                "request": ByteString(request::to_pem(csr).into_bytes()), "isCA": false, "usages": usages,
                "duration": format!("{}s", life.as_secs()),
                "issuerRef": {"kind": self.issuer.kind, "name": self.issuer.name, "group": self.issuer.group},
            },
        })
    }

    /// Looks at a request until something has become of it.
    async fn wait(&self, path: &str) -> Result<Vec<CertificateDer<'static>>, Failed> {
        let mut pause = limits::CERT_MANAGER_LOOK_FIRST;
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(limits::CERT_MANAGER_LOOK_MAX);
            let object: Option<Value> = match self.api.get(path).await {
                Ok(object) => object,
                Err(failure) => {
                    let message = format!("{}: {}", self.described(), failure.message);
                    return Err(("failed", SignError::Unavailable(message)));
                }
            };
            let Some(object) = object else {
                let message = "the CertificateRequest was deleted before it was signed".to_owned();
                return Err(("refused", SignError::Refused(message)));
            };
            match outcome(&object) {
                None => {}
                Some(Ok(chain)) => return Ok(chain),
                Some(Err(error @ SignError::BadAnswer(_))) => return Err(("bad_answer", error)),
                Some(Err(error)) => return Err(("refused", error)),
            }
        }
    }

    async fn delete(&self, name: &str, path: &str) {
        let mut last = String::new();
        for _ in 0..limits::CERT_MANAGER_DELETE_TRIES {
            match self.api.delete(path).await {
                Ok(()) => return,
                Err(failure) => last = failure.message,
            }
            sleep(limits::CERT_MANAGER_LOOK_MAX).await;
        }
        self.metrics.orders.with_label_values(&["left_behind"]).inc();
        tracing::warn!(certificate_request = name, error = last, "a CertificateRequest could not be deleted");
    }

    /// For messages.
    pub(super) fn described(&self) -> String {
        format!("cert-manager's {} {}", self.issuer.kind, self.issuer.name)
    }
}

/// cert-manager, behind checks with the bundle in force.
pub(super) struct Elsewhere {
    pub(super) orders: Arc<CertManager>,
    pub(super) bundle: Bundle,
    /// Life of a workload's certificate.
    pub(super) life: Duration,
}

impl Signer for Elsewhere {
    fn sign<'a>(&'a self, order: &'a Order) -> Signing<'a> {
        Box::pin(async move {
            let usages = &["digital signature", "server auth", "client auth"];
            let mut chain = self.orders.order(order.request.der.clone(), self.life, usages).await?;
            answer::without_roots(&mut chain, &self.bundle);
            answer::workload(order, &chain, &self.bundle, self.life, SystemTime::now())?;
            Ok(chain)
        })
    }

    fn name(&self) -> &'static str {
        "cert-manager"
    }
}

/// What became of a CertificateRequest; `None` while nothing has.
fn outcome(object: &Value) -> Option<Result<Vec<CertificateDer<'static>>, SignError>> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let text = |condition: &Value, field: &str| -> String {
        condition[field].as_str().unwrap_or_default().chars().take(limits::CERT_MANAGER_WORDS_MAX).collect()
    };
    let conditions: Vec<_> = conditions.into_iter().flatten().collect();
    let refuses = |condition: &&&Value| {
        matches!(
            (&*text(condition, "type"), &*text(condition, "status"), &*text(condition, "reason")),
            ("Ready", "False", "Failed" | "Denied") | ("Denied" | "InvalidRequest", "True", _)
        )
    };
    // A request that was denied is never ready; whatever else it says then is not believed.
    if let Some(refusal) = conditions.iter().find(refuses) {
        let words = ["type", "reason", "message"].map(|field| text(refusal, field));
        return Some(Err(SignError::Refused(words.join(": "))));
    }
    let is_ready = |condition: &&Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.into_iter().any(|condition| is_ready(&condition)).then(|| chain(object))
}

fn chain(object: &Value) -> Result<Vec<CertificateDer<'static>>, SignError> {
    let bad = |what: &str| SignError::BadAnswer(format!("status.certificate {what}"));
    let value = object.pointer("/status/certificate").filter(|value| !value.is_null());
    let value = value.ok_or_else(|| bad("is missing, of a request that is ready"))?;
    let pem: ByteString = serde_json::from_value(value.clone()).map_err(|_| bad("is no base64"))?;
    if pem.0.len() > identity_limits::BUNDLE_MAX {
        return Err(bad("is too large"));
    }
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pem.0).collect::<Result<_, _>>().map_err(|_| bad("is no PEM"))?;
    if chain.is_empty() { Err(bad("has no certificate")) } else { Ok(chain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_named_by_kind_and_name() {
        let of = |kind: &str, name: &str, group: &str| IssuerRef {
            kind: kind.to_owned(),
            name: name.to_owned(),
            group: group.to_owned(),
        };
        assert_eq!("ClusterIssuer/mesh".parse(), Ok(of("ClusterIssuer", "mesh", "cert-manager.io")));
        assert_eq!(
            "AWSPCAIssuer.awspca.cert-manager.io/mesh".parse(),
            Ok(of("AWSPCAIssuer", "mesh", "awspca.cert-manager.io"))
        );
        for wrong in ["", "mesh", "/mesh", "Issuer/", "Issuer/a/b", "Issuer./a", ".group/a"] {
            assert!(wrong.parse::<IssuerRef>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_became_of_a_request_is_read_from_its_conditions() {
        let with = |conditions: Value| json!({"status": {"conditions": conditions}});
        let reason = |object: &Value| outcome(object).map(|outcome| outcome.unwrap_err().reason());
        assert_eq!(reason(&json!({})), None);
        assert_eq!(reason(&json!({"status": {"conditions": "garbage"}})), None);
        assert_eq!(reason(&with(json!([7, null, {"type": "Ready", "status": true}]))), None);
        assert_eq!(reason(&with(json!([{"type": "Ready", "status": "False", "reason": "Pending"}]))), None);
        assert_eq!(reason(&with(json!([{"type": "Approved", "status": "True"}]))), None);
        let ready = json!({"type": "Ready", "status": "True"});
        for refused in [
            json!([{"type": "Ready", "status": "False", "reason": "Failed"}]),
            json!([{"type": "Ready", "status": "False", "reason": "Denied"}]),
            json!([{"type": "Denied", "status": "True"}]),
            json!([{"type": "InvalidRequest", "status": "True"}]),
            json!([ready.clone(), {"type": "Denied", "status": "True"}]),
        ] {
            assert_eq!(reason(&with(refused)), Some("signer_refused"));
        }
        assert_eq!(reason(&with(json!([ready]))), Some("signer_bad_answer"), "no certificate");
        let large = json!(ByteString(vec![b'a'; identity_limits::BUNDLE_MAX + 1]));
        for certificate in [json!("!"), json!("Z2FyYmFnZQ=="), json!(7), json!(""), large] {
            let object = json!({"status": {"conditions": [ready], "certificate": certificate}});
            assert_eq!(reason(&object), Some("signer_bad_answer"), "{object}");
        }
    }

    #[test]
    fn words_of_others_are_told_on_in_part() {
        let object = json!({"status": {"conditions": [
            {"type": "Denied", "status": "True", "reason": "Policy", "message": "x".repeat(100_000)}]}});
        let error = outcome(&object).unwrap().unwrap_err().to_string();
        assert!(error.contains("Denied: Policy: x") && error.len() < 1000, "{}", error.len());
    }
}
