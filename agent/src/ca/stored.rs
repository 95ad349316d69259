//! What the authority keeps in the API server, and under which names.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use weft_identity::{
    Bundle, TrustDomain,
    authority::{Issuer, Root, Rotation, rotation::RotationError},
    bundle::BundleError,
};

/// Secret: the root's certificate and key, and while it is rotated those of the next one. Only the leader reads it.
pub(super) const ROOT: &str = "weft-ca-root";
/// Secret: what signs. One that somebody else has made is used as it is.
pub(super) const ISSUER: &str = "weft-ca-issuer";
/// ConfigMap: the roots that agents trust.
pub(super) const BUNDLE: &str = "weft-trust-bundle";
/// ConfigMap: what replicas tell each other of agents while a root is rotated.
pub(super) const REPORTS: &str = "weft-ca-reports";
/// Lease of the one replica that makes and rotates keys.
pub(super) const LEASE: &str = "weft-ca";

/// Keys of the Secrets and the ConfigMap, as `kubernetes.io/tls` and cert-manager have them.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// As [`CERTIFICATE`].
pub(super) const KEY: &str = "tls.key";
/// As [`CERTIFICATE`].
pub(super) const ROOTS: &str = "ca.crt";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

/// Annotation of [`ROOT`] that asks for a rotation, whatever its value. The leader takes it off when it begins.
pub(super) const ROTATE: &str = "weft.dev/rotate-root";
/// Annotation of [`ROOT`], and for people to see of [`BUNDLE`]: how far a rotation has come.
pub(super) const ROTATION: &str = "weft.dev/rotation";
/// Annotation of [`BUNDLE`]: rises when agents are to ask for all their certificates again.
pub(super) const EPOCH: &str = "weft.dev/reissue-epoch";
/// Annotation of [`BUNDLE`].
pub(super) const TRUST_DOMAIN: &str = "weft.dev/trust-domain";

/// Label, and value, of what this authority has made and may change.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weft-ca");

/// Labels of what this authority makes.
pub(super) fn labels() -> BTreeMap<String, String> {
    [MANAGED_BY, ("app.kubernetes.io/part-of", "weft")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn ours(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        labels: Some(labels()),
        ..ObjectMeta::default()
    }
}

/// Whether this authority has made an object.
pub(super) fn is_ours(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|value| value == MANAGED_BY.1)
}

/// Why a key of an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object} has no {key}")]
pub(super) struct Missing {
    object: &'static str,
    key: &'static str,
}

/// A value of a Secret.
pub(super) fn value<'a>(secret: &'a Secret, object: &'static str, key: &'static str) -> Result<&'a [u8], Missing> {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.map(|value| value.0.as_slice()).filter(|value| !value.is_empty()).ok_or(Missing { object, key })
}

fn tls(data: [(&str, String); 2]) -> (Option<String>, BTreeMap<String, ByteString>) {
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    (Some("kubernetes.io/tls".to_owned()), data.into())
}

/// The Secret of a new root.
pub(super) fn new_root(namespace: &str, root: &Root) -> Secret {
    let (type_, data) = tls([(CERTIFICATE, root.certificate_pem()), (KEY, root.key_pem().to_string())]);
    Secret { metadata: ours(namespace, ROOT), type_, data: Some(data), ..Secret::default() }
}

/// The Secret of an issuer of ours; in the place of `before`, if there is one.
pub(super) fn issuer_secret(namespace: &str, issuer: &Issuer, before: Option<&Secret>) -> Secret {
    let (type_, data) = tls([(CERTIFICATE, issuer.chain_pem()), (KEY, issuer.key_pem().to_string())]);
    let metadata = before.map_or_else(|| ours(namespace, ISSUER), |before| before.metadata.clone());
    Secret { metadata, type_, data: Some(data), ..Secret::default() }
}

/// The certificate and the key of the next root, if there is one.
pub(super) fn next(secret: &Secret) -> Option<(&[u8], Option<&[u8]>)> {
    let certificate = value(secret, ROOT, NEXT_CERTIFICATE).ok()?;
    Some((certificate, value(secret, ROOT, NEXT_KEY).ok()))
}

/// Puts a next root beside the current one.
pub(super) fn set_next(secret: &mut Secret, root: &Root) {
    let data = secret.data.get_or_insert_default();
    data.insert(NEXT_CERTIFICATE.to_owned(), ByteString(root.certificate_pem().into_bytes()));
    data.insert(NEXT_KEY.to_owned(), ByteString(root.key_pem().to_string().into_bytes()));
}

/// Puts the next root in the place of the current one, which goes.
pub(super) fn promote(secret: &mut Secret) {
    let Some(data) = secret.data.as_mut() else { return };
    if let Some(certificate) = data.remove(NEXT_CERTIFICATE) {
        data.insert(CERTIFICATE.to_owned(), certificate);
        match data.remove(NEXT_KEY) {
            Some(key) => drop(data.insert(KEY.to_owned(), key)),
            // The old one's is no use with it.
            None => drop(data.insert(KEY.to_owned(), ByteString(Vec::new()))),
        }
    }
}

/// How far a rotation has come: steady where nothing is said.
pub(super) fn rotation(secret: &Secret) -> Result<Rotation, RotationError> {
    annotation(&secret.metadata, ROTATION).map_or_else(|| Ok(Rotation::default()), str::parse)
}

/// Whether somebody asks for a rotation.
pub(super) fn is_asked(secret: &Secret) -> bool {
    annotation(&secret.metadata, ROTATE).is_some()
}

/// Writes down how far a rotation has come; `begins` takes the question for it off.
pub(super) fn set_rotation(secret: &mut Secret, rotation: Rotation, begins: bool) {
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(ROTATION.to_owned(), rotation.to_string());
    if begins {
        annotations.remove(ROTATE);
    }
}

pub(super) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The bundle as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// The roots.
    pub(super) pem: String,
    /// Their hash.
    pub(super) sha256: String,
    /// See [`EPOCH`].
    pub(super) epoch: u64,
    /// Whether a rotation is under way: then agents' reports are told to the leader.
    pub(super) rotates: bool,
}

/// Reads the ConfigMap.
pub(super) fn published(map: &ConfigMap) -> Result<(Published, Bundle), BundleError> {
    let pem = map.data.as_ref().and_then(|data| data.get(ROOTS)).map_or("", String::as_str);
    let bundle = Bundle::from_pem(pem.as_bytes())?;
    let epoch = annotation(&map.metadata, EPOCH).and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let rotates = annotation(&map.metadata, ROTATION).is_some_and(|phase| !phase.starts_with("steady"));
    Ok((Published { pem: pem.to_owned(), sha256: bundle.sha256(), epoch, rotates }, bundle))
}

/// The ConfigMap as it should be; what others have put into it stays.
pub(super) fn bundle_map(
    namespace: &str,
    bundle: &Bundle,
    domain: &TrustDomain,
    rotation: Rotation,
    before: Option<ConfigMap>,
) -> ConfigMap {
    let mut map = before.unwrap_or_else(|| ConfigMap { metadata: ours(namespace, BUNDLE), ..ConfigMap::default() });
    map.data.get_or_insert_default().insert(ROOTS.to_owned(), bundle.to_pem());
    let annotations = map.metadata.annotations.get_or_insert_default();
    annotations.insert(ROTATION.to_owned(), rotation.to_string());
    annotations.insert(EPOCH.to_owned(), rotation.epoch.to_string());
    annotations.insert(TRUST_DOMAIN.to_owned(), domain.to_string());
    map
}

/// An empty ConfigMap for reports.
pub(super) fn reports_map(namespace: &str) -> ConfigMap {
    ConfigMap { metadata: ours(namespace, REPORTS), ..ConfigMap::default() }
}
