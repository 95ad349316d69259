//! cert-manager as the signer. Its definition is a custom resource of its shape (`cert-manager.io/v1`), and a player signs, denies and errs
//! as its controllers do: conditions `Approved`, `Denied` and `Ready`, `status.certificate` and `status.ca`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use weft_identity::{Bundle, key::PrivateKey};
use weft_integration::{
    ApiServer, Cluster,
    kube::{Authority, AuthorityOptions, authority::NAMESPACE},
    wait,
};

use crate::{
    IN_TIME, Web,
    client::{Client, block_on, item, roots},
    pod,
};

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: certificaterequests.cert-manager.io}
spec:
  group: cert-manager.io
  names: {kind: CertificateRequest, listKind: CertificateRequestList, plural: certificaterequests, singular: certificaterequest, shortNames: [cr, crs]}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              required: [issuerRef, request]
              properties:
                duration: {type: string}
                isCA: {type: boolean}
                request: {type: string, format: byte}
                usages: {type: array, items: {type: string, enum: [digital signature, server auth, client auth]}}
                issuerRef:
                  type: object
                  required: [name]
                  properties: {group: {type: string}, kind: {type: string}, name: {type: string}}
            status:
              type: object
              properties:
                ca: {type: string, format: byte}
                certificate: {type: string, format: byte}
                failureTime: {type: string, format: date-time}
                conditions:
                  type: array
                  items:
                    type: object
                    required: [status, type]
                    properties:
                      lastTransitionTime: {type: string, format: date-time}
                      message: {type: string}
                      reason: {type: string}
                      status: {type: string, enum: ['True', 'False', Unknown]}
                      type: {type: string}
";
/// Where requests are.
const REQUESTS: &str = "/apis/cert-manager.io/v1/namespaces/weft-system/certificaterequests";
/// How often the player looks.
const PLAYS: Duration = Duration::from_millis(50);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A root, and an issuer below it.
struct Pki {
    root: String,
    issuer: CertificateParams,
    issuer_pem: String,
    key: KeyPair,
}

impl Pki {
    fn new(name: &str) -> Result<Self> {
        let params = |name: String| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let (root, root_key, key) = (params(format!("{name} root")), KeyPair::generate()?, KeyPair::generate()?);
        let issuer = params(format!("{name} issuer"));
        let issuer_pem = issuer.signed_by(&key, &Issuer::from_params(&root, &root_key))?.pem();
        Ok(Self { root: root.self_signed(&root_key)?.pem(), issuer, issuer_pem, key })
    }
}

/// Acts as cert-manager until it is told to stop.
struct Player<'a> {
    server: &'a ApiServer,
    pki: Pki,
    foreign: Pki,
    /// Whether it denies the authority its own certificate.
    denies_server: AtomicBool,
    stop: AtomicBool,
}

/// Stops the player, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Player<'_> {
    fn play(&self) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            for request in self.server.list(REQUESTS)? {
                if request["status"].is_null()
                    && let Some(status) = self.answer(&request)?
                {
                    let name = request["metadata"]["name"].as_str().context("a name")?;
                    let path = format!("{REQUESTS}/{name}/status");
                    // It may be deleted by now.
                    self.server.request("PATCH", &path, Some(&json!({"status": status})))?;
                }
            }
            thread::sleep(PLAYS);
        }
        Ok(())
    }

    /// What becomes of a request. What a pod's account is called says how its request is answered.
    fn answer(&self, request: &Value) -> Result<Option<Value>> {
        let spec = &request["spec"];
        ensure!(spec["issuerRef"] == json!({"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "mesh"}));
        ensure!(spec["isCA"] == false && spec["duration"] == "86400s", "{spec}");
        let pem: ByteString = serde_json::from_value(spec["request"].clone())?;
        let mut csr = CertificateSigningRequestParams::from_pem(&String::from_utf8(pem.0)?)?;
        let usages: Vec<&str> = spec["usages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let is_workload = usages.contains(&"client auth");
        let case = match csr.params.subject_alt_names.as_slice() {
            [SanType::URI(uri)] if is_workload => uri.as_str().rsplit('/').next().unwrap_or_default().to_owned(),
            [SanType::DnsName(one), SanType::DnsName(two)] if !is_workload => {
                ensure!(
                    one.as_str() == "weft-ca.weft-system.svc"
                        && two.as_str() == "weft-ca.weft-system.svc.cluster.local"
                );
                if self.denies_server.load(Ordering::Relaxed) { "denied" } else { "server" }.to_owned()
            }
            names => anyhow::bail!("a request for {names:?}"),
        };
        let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let approved = condition("Approved", "True", "cert-manager.io", "Certificate request has been approved");
        let ready = condition("Ready", "True", "Issued", "Certificate fetched from issuer successfully");
        let with = |certificate: &str, ca: &str| {
            let bytes = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
            json!({"conditions": [approved, ready], "certificate": bytes(certificate), "ca": bytes(ca)})
        };
        let params = &mut csr.params;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if is_workload {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        (params.not_before, params.not_after) = (SystemTime::now().into(), (SystemTime::now() + DAY).into());
        let mut pki = &self.pki;
        match &*case {
            "denied" => {
                let denied = condition("Denied", "True", "policy.cert-manager.io", "no policy approves of it");
                let failed = condition("Ready", "False", "Denied", "The CertificateRequest was denied");
                return Ok(Some(json!({"conditions": [denied, failed], "failureTime": "2026-01-01T00:00:00Z"})));
            }
            "failed" => {
                let failed = condition("Ready", "False", "Failed", "the vault is sealed");
                return Ok(Some(json!({"conditions": [approved, failed], "failureTime": "2026-01-01T00:00:00Z"})));
            }
            "silent" => return Ok(None),
            "pending" => {
                let pending = condition("Ready", "False", "Pending", "Waiting on certificate issuance");
                return Ok(Some(json!({"conditions": [approved, pending]})));
            }
            "empty" => return Ok(Some(json!({"conditions": [approved, ready]}))),
            "garbage" => return Ok(Some(with("garbage", "garbage"))),
            "other-name" => {
                params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into()?)];
            }
            "other-domain" => {
                params.subject_alt_names = vec![SanType::URI("spiffe://other/ns/shop/sa/other-domain".try_into()?)];
            }
            "no-name" => params.subject_alt_names = vec![SanType::DnsName("web".try_into()?)],
            "authority" => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "too-long" => params.not_after = (SystemTime::now() + 90 * DAY).into(),
            "too-short" => params.not_after = (SystemTime::now() + Duration::from_secs(60)).into(),
            "other-root" => pki = &self.foreign,
            _ => {}
        }
        let issuer = Issuer::from_params(&pki.issuer, &pki.key);
        let leaf = match &*case {
            "other-key" => csr.params.signed_by(&KeyPair::generate()?, &issuer)?.pem(),
            _ => csr.signed_by(&issuer)?.pem(),
        };
        // Some issuers answer with the root, too.
        let root = if case == "web" { pki.root.as_str() } else { "" };
        Ok(Some(with(&format!("{leaf}{}{root}", pki.issuer_pem), &pki.root)))
    }
}

/// A cluster with cert-manager's definition, an authority that has not been launched, and a player for it.
fn prepared(cluster: &mut Cluster) -> Result<Authority> {
    cluster.apply(crate::SHOP)?;
    cluster.server.apply(DEFINITION)?;
    cluster.server.wait_established()?;
    let arguments = ["--cert-manager-issuer", "ClusterIssuer/mesh", "--cert-manager-roots", "mesh-roots/root.pem"];
    let arguments = arguments.into_iter().chain(["--replica-uid", "00000000-0000-0000-0000-0000000000ca"]);
    Authority::prepare(cluster, AuthorityOptions { replicas: 1, arguments: arguments.map(str::to_owned).collect() })
}

fn player(server: &ApiServer) -> Result<Player<'_>> {
    let (pki, foreign) = (Pki::new("mesh")?, Pki::new("foreign")?);
    Ok(Player { server, pki, foreign, denies_server: AtomicBool::new(false), stop: AtomicBool::new(false) })
}

fn put_roots(server: &ApiServer, pem: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mesh-roots"}, "data": {"root.pem": pem}});
    match server.request("POST", &path, Some(&map))?.code {
        409 => server.call("PATCH", &format!("{path}/mesh-roots"), Some(&map)).map(drop),
        201 => Ok(()),
        code => anyhow::bail!("the roots were answered {code}"),
    }
}

fn told(authority: &Authority, part: &str, reason: &str) -> Result<()> {
    wait::until(&format!("{part} to say {reason}"), IN_TIME, || {
        Ok((authority.metric(0, "weft_ca_problem", &[&format!("{part:?}"), &format!("{reason:?}")])? == 1.0)
            .then_some(()))
    })
    .with_context(|| authority.log(0))
}

/// Plays cert-manager while something is done. The player's own end must be a good one.
fn played<T>(player: &Player<'_>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::scope(|scope| {
        let plays = scope.spawn(|| player.play());
        let stop = Stop(&player.stop);
        let outcome = act();
        drop(stop);
        plays.join().map_err(|_| anyhow::anyhow!("the player panicked"))?.context("the player")?;
        outcome
    })
}

#[test]
fn cert_manager_signs_and_nothing_is_handed_out_that_was_not_ordered() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let mut authority = prepared(&mut cluster)?;
    let player = player(&cluster.server)?;
    put_roots(&cluster.server, &player.pki.root)?;
    authority.launch(0)?;
    played(&player, || {
        authority.wait_ready(0)?;
        let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
        ensure!(*bundle == Bundle::from_pem(player.pki.root.as_bytes())?, "the user's roots are what is trusted");
        let cases = [
            ("denied", "signer_refused", "no policy approves of it"),
            ("failed", "signer_refused", "the vault is sealed"),
            ("silent", "signer_unavailable", "was not signed within"),
            ("pending", "signer_unavailable", "was not signed within"),
            ("empty", "signer_bad_answer", "status.certificate is missing"),
            ("garbage", "signer_bad_answer", "status.certificate has no certificate"),
            ("other-name", "signer_bad_answer", "it is spiffe://cluster.local/ns/shop/sa/admin's"),
            ("other-domain", "signer_bad_answer", "it is spiffe://other/ns/shop/sa/other-domain's"),
            ("no-name", "signer_bad_answer", "no URI among its names"),
            ("other-key", "signer_bad_answer", "another key"),
            ("other-root", "signer_bad_answer", "its chain is not trusted"),
            ("authority", "signer_bad_answer", "certificate authority's"),
            ("too-long", "signer_bad_answer", "were ordered"),
            ("too-short", "signer_bad_answer", "sooner than it could be renewed"),
        ];
        let key = PrivateKey::generate()?;
        let mut items = Vec::new();
        for (case, ..) in cases {
            let uid = pod(&cluster, ("shop", case, case, "node-a"), false)?;
            items.push(item(("shop", case, &uid), case, &key)?);
        }
        block_on(async {
            let mut agent = Client::connect(&authority, 0, &bundle, Some(&authority.agent("node-a")?.token)).await?;
            let credential = web.certificate(&mut agent, &bundle).await?;
            ensure!(credential.chain().len() == 2, "leaf and issuer, without the root: {}", credential.chain().len());
            let log = authority.log(0);
            let line =
                log.lines().find(|line| line.contains("a certificate is signed")).context("no line in the log")?;
            ensure!(line.contains("cert-manager") && line.contains(&credential.svid().serial), "{line}");
            let outcomes = agent.sign(items).await?;
            for ((case, code, words), outcome) in cases.into_iter().zip(outcomes) {
                let Err(refusal) = outcome else { anyhow::bail!("{case}: a certificate was handed out") };
                ensure!(refusal.code == code && refusal.words.contains(words), "{case}: {refusal:?}");
                ensure!(refusal.retryable == (code == "signer_unavailable"), "{case}: {refusal:?}");
            }
            // And the next one that is good is signed.
            web.certificate(&mut agent, &bundle).await
        })?;
        wait::until("every CertificateRequest to be gone", IN_TIME, || {
            Ok(cluster.server.list(REQUESTS)?.is_empty().then_some(()))
        })?;
        for (outcome, least) in [("signed", 10.0), ("refused", 2.0), ("timeout", 2.0), ("bad_answer", 2.0)] {
            let count = authority.metric(0, "weft_ca_certificate_requests_total", &[&format!("{outcome:?}")])?;
            ensure!(count >= least, "{count} {outcome}");
        }
        ensure!(authority.metric(0, "weft_ca_certificates_total", &["cert-manager"])? == 2.0);
        for name in ["weft-ca-root", "weft-ca-issuer"] {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}");
            ensure!(cluster.server.request("GET", &path, None)?.code == 404, "{name} is made all the same");
        }
        // What the chart allows, and no more: its rule has no list, and no watch.
        let verbs: std::collections::BTreeSet<String> = cluster
            .server
            .requests()?
            .into_iter()
            .filter(|request| request.user == "weft-ca" && request.group == "cert-manager.io")
            .map(|request| request.verb)
            .collect();
        ensure!(verbs.iter().map(String::as_str).eq(["create", "delete", "get"]), "{verbs:?}");
        Ok(())
    })?;
    authority.stop(0)
}

#[test]
fn roots_that_the_issuer_does_not_lead_to_are_never_published() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let mut authority = prepared(&mut cluster)?;
    let player = player(&cluster.server)?;
    player.denies_server.store(true, Ordering::Relaxed);
    authority.launch(0)?;
    played(&player, || {
        // Without roots, or with an issuer that refuses, nothing is served and nothing published.
        told(&authority, "leader", "no_roots")?;
        told(&authority, "keys", "signer_refused")?;
        put_roots(&cluster.server, "garbage")?;
        told(&authority, "leader", "bad_bundle")?;
        put_roots(&cluster.server, &player.foreign.root)?;
        player.denies_server.store(false, Ordering::Relaxed);
        told(&authority, "leader", "untrusted")?;
        ensure!(authority.fetch(0, "/readyz")?.0 == 503);
        let published = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/weft-trust-bundle");
        ensure!(cluster.server.request("GET", &published, None)?.code == 404);
        put_roots(&cluster.server, &player.pki.root)?;
        authority.wait_ready(0)?;
        let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
        // Both, as while a root is changed: published, and what was signed before is still good.
        put_roots(&cluster.server, &format!("{}{}", player.pki.root, player.foreign.root))?;
        let both = wait::until("both roots to be mounted", IN_TIME, || {
            Ok(Some(roots(&authority)?).filter(|bundle| bundle.roots().len() == 2))
        })?;
        // And taking away the one that is in use is refused.
        put_roots(&cluster.server, &player.foreign.root)?;
        told(&authority, "leader", "untrusted")?;
        ensure!(roots(&authority)? == both);
        block_on(async {
            let token = &authority.agent("node-a")?.token;
            let mut agent = Client::connect(&authority, 0, &bundle, Some(token)).await?;
            web.certificate(&mut agent, &both).await.map(drop)
        })
    })?;
    authority.stop(0)
}
