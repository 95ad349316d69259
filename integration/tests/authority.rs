//! The authority, as processes on a real API server, asked by a real client: whom it gives certificates, whom it refuses them and with
//! which word, and what becomes of its keys when replicas start together, die, or rotate the root. Tokens are reviewed by the harness,
//! in the documented form: docs/test-cluster.md.

#[path = "authority/cert_manager.rs"]
mod cert_manager;
#[path = "authority/client.rs"]
mod client;
#[path = "authority/keys.rs"]
mod keys;
#[path = "authority/trust_bundle.rs"]
mod trust_bundle;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use client::{Client, block_on, code, item, roots};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P384_SHA384, SanType};
use serde_json::{Value, json};
use weft_identity::{Bundle, Credential, key::PrivateKey, wire::SignItem};
use weft_integration::{
    Cluster,
    kube::{
        Authority, AuthorityOptions, Fault, Token,
        authority::{AGENT_ACCOUNT, AUDIENCE, NAMESPACE},
    },
    wait,
};

/// Everything that is waited for here takes some seconds at most; more on a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: aside}
";

/// Makes a pod as a kubelet would report it, without running it; its UID.
fn pod(cluster: &Cluster, (namespace, name, account, node): (&str, &str, &str, &str), host: bool) -> Result<String> {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": node, "serviceAccountName": account, "hostNetwork": host,
        "containers": [{"name": "app", "image": "pause"}]}});
    let made = cluster.server.call("POST", &pods, Some(&object))?;
    let status = json!({"status": {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}});
    cluster.server.call("PATCH", &format!("{pods}/{name}/status"), Some(&status))?;
    Ok(made["metadata"]["uid"].as_str().context("a UID")?.to_owned())
}

/// A request that is granted to node-a's agent.
struct Web {
    uid: String,
    key: PrivateKey,
}

impl Web {
    fn on(cluster: &Cluster) -> Result<Self> {
        let uid = pod(cluster, ("shop", "web", "web", "node-a"), false)?;
        Ok(Self { uid, key: PrivateKey::generate()? })
    }

    fn item(&self) -> Result<SignItem> {
        item(("shop", "web", &self.uid), "web", &self.key)
    }

    /// A certificate, checked as the agent that has asked for it checks it.
    async fn certificate(&self, agent: &mut Client, bundle: &Bundle) -> Result<std::sync::Arc<Credential>> {
        let started = Instant::now();
        let chain = loop {
            match agent.ask(vec![self.item()?]).await? {
                // A busy machine may keep a replica from seeing that its key is in force; agents come again.
                Err(status) if code(&status) == "not_ready" && started.elapsed() < IN_TIME => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                answer => break client::outcomes(answer)?.remove(0),
            }
        };
        let chain = chain.map_err(|refusal| anyhow::anyhow!("refused: {refusal:?}"))?;
        let id = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
        let bundle = std::sync::Arc::new(Bundle::from_pem(bundle.to_pem().as_bytes())?);
        Ok(Credential::new(&id, &self.key, chain, bundle, SystemTime::now())?)
    }
}

fn started(options: AuthorityOptions) -> Result<(Cluster, Authority)> {
    let mut cluster = Cluster::new()?;
    cluster.apply(SHOP)?;
    let authority = Authority::start_with(&mut cluster, options)?;
    Ok((cluster, authority))
}

fn secret(cluster: &Cluster, name: &str) -> Result<Value> {
    cluster.server.call("GET", &format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}"), None)
}

#[test]
fn a_pod_gets_the_certificate_of_its_account_and_everybody_the_roots() -> Result<()> {
    let (cluster, authority) = started(AuthorityOptions::default())?;
    let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
    block_on(async {
        let token = &authority.agent("node-a")?.token;
        let mut agent = Client::connect(&authority, 0, &bundle, Some(token)).await?;
        let credential = web.certificate(&mut agent, &bundle).await?;
        let lasts = credential.svid().not_after.duration_since(SystemTime::now())?;
        ensure!(lasts > Duration::from_secs(23 * 3600) && lasts <= Duration::from_secs(24 * 3600), "{lasts:?}");
        let log = authority.log(0);
        let line = log.lines().find(|line| line.contains("a certificate is signed")).context("no line in the log")?;
        for part in [&web.uid, &credential.svid().serial, "node-a", "spiffe://cluster.local/ns/shop/sa/web"] {
            ensure!(line.contains(part), "{part} is not in {line}");
        }
        let mut watch = agent.watch().await??;
        let published = watch.message().await?.context("a bundle")?;
        ensure!(published.sha256 == bundle.sha256() && published.trust_domain == "cluster.local", "{published:?}");
        let ahead = u128::try_from(published.now_unix_ms)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        ensure!(now.abs_diff(ahead) < 20_000, "the authority says {ahead}, and it is {now}");
        ensure!(authority.metric(0, "weft_ca_certificates_total", &["builtin"])? == 1.0);
        Ok(())
    })
}

#[test]
fn whoever_may_not_ask_is_refused_with_its_own_word() -> Result<()> {
    let (cluster, authority) = started(AuthorityOptions::default())?;
    let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
    let agent = authority.agent("node-a")?.clone();
    let of_agents =
        |name: &str, uid: &str, node: &str| Token::bound((NAMESPACE, AGENT_ACCOUNT), AUDIENCE, (name, uid), node);
    let good = of_agents(&agent.name, &agent.uid, "node-a");
    // Pods that tokens are bound to: of another account, being deleted, on another node.
    let other = pod(&cluster, (NAMESPACE, "other", "other", "node-a"), false)?;
    let stops = pod(&cluster, (NAMESPACE, "stops", AGENT_ACCOUNT, "node-a"), true)?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/stops");
    cluster.server.call("PATCH", &path, Some(&json!({"metadata": {"finalizers": ["weft.test/stay"]}})))?;
    cluster.server.call("DELETE", &path, None)?;
    let ended = pod(&cluster, (NAMESPACE, "ended", AGENT_ACCOUNT, "node-a"), true)?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/ended/status");
    cluster.server.call("PATCH", &path, Some(&json!({"status": {"phase": "Failed"}})))?;
    let cases: Vec<(&str, Option<Token>)> = vec![
        ("bad_token", None),
        ("bad_token", Some(Token { audiences: vec!["istio-ca".to_owned()], ..good.clone() })),
        ("wrong_audience", Some(Token { knows_audiences: false, ..good.clone() })),
        ("not_an_agent", Some(Token { username: format!("system:serviceaccount:{NAMESPACE}:other"), ..good.clone() })),
        ("not_an_agent", Some(Token { username: "system:serviceaccount:shop:weft".to_owned(), ..good.clone() })),
        ("not_an_agent", Some(Token { username: "system:node:node-a".to_owned(), ..good.clone() })),
        ("token_unbound", Some(Token { pod: None, ..good.clone() })),
        ("agent_gone", Some(of_agents("weft-agent-gone", "00000000-0000-0000-0000-000000000001", "node-a"))),
        // The name is another pod's now.
        ("agent_gone", Some(of_agents(&agent.name, "00000000-0000-0000-0000-000000000002", "node-a"))),
        ("agent_gone", Some(of_agents("../../../../etc", "00000000-0000-0000-0000-000000000003", "node-a"))),
        ("agent_gone", Some(of_agents("ended", &ended, "node-a"))),
        ("agent_stops", Some(of_agents("stops", &stops, "node-a"))),
        ("agent_account", Some(of_agents("other", &other, "node-a"))),
        ("agent_node", Some(of_agents(&agent.name, &agent.uid, "node-b"))),
    ];
    block_on(async {
        for (number, (expected, says)) in cases.into_iter().enumerate() {
            let token = format!("case-{number}");
            let shown = format!("{says:?}");
            if let Some(says) = says {
                authority.faults.put_token(&token, says);
            }
            let mut client = Client::connect(&authority, 0, &bundle, Some(&token)).await?;
            // The watch may be behind what the API server has just been told.
            let started = Instant::now();
            let refused = loop {
                let refused = client.ask(vec![web.item()?]).await?.err().map(|status| code(&status));
                if refused.as_deref() == Some(expected) || started.elapsed() > IN_TIME {
                    break refused;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            ensure!(refused.as_deref() == Some(expected), "{shown}: {refused:?}, not {expected}");
            let watch = client.watch().await?.err().map(|status| code(&status));
            ensure!(watch.as_deref() == Some(expected), "{shown}, watching: {watch:?}, not {expected}");
            ensure!(authority.metric(0, "weft_ca_refusals_total", &[&format!("{expected:?}")])? >= 2.0, "{expected}");
        }
        let mut nobody = Client::connect(&authority, 0, &bundle, None).await?;
        ensure!(code(&nobody.ask(vec![]).await?.unwrap_err()) == "no_token");
        let mut client = Client::connect(&authority, 0, &bundle, Some(&agent.token)).await?;
        let many = vec![web.item()?; 65];
        ensure!(code(&client.ask(many).await?.unwrap_err()) == "batch_too_large");
        let huge = vec![SignItem { csr_der: vec![0; 400_000], ..web.item()? }];
        ensure!(client.ask(huge).await?.is_err(), "a message that is too large");
        // And it still answers, until it was asked for more than a node could need.
        web.certificate(&mut client, &bundle).await?;
        let batch = vec![SignItem { pod_uid: String::new(), ..web.item()? }; 64];
        for _ in 0..50 {
            if let Err(status) = client.ask(batch.clone()).await? {
                ensure!(code(&status) == "rate_limited", "{status}");
                return Ok(());
            }
        }
        anyhow::bail!("3,200 requests of one agent were answered")
    })
}

fn csr(names: Vec<SanType>, key: &KeyPair) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    (params.distinguished_name, params.subject_alt_names) = (DistinguishedName::new(), names);
    Ok(params.serialize_request(key)?.der().to_vec())
}

#[test]
fn what_may_not_be_had_is_refused_with_its_own_word_and_the_rest_of_the_batch_is_granted() -> Result<()> {
    let (cluster, authority) = started(AuthorityOptions::default())?;
    let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
    let far = pod(&cluster, ("shop", "far", "web", "node-b"), false)?;
    let host = pod(&cluster, ("shop", "host", "web", "node-a"), true)?;
    let plain = pod(&cluster, ("aside", "plain", "web", "node-a"), false)?;
    let done = pod(&cluster, ("shop", "done", "web", "node-a"), false)?;
    let path = "/api/v1/namespaces/shop/pods/done/status";
    cluster.server.call("PATCH", path, Some(&json!({"status": {"phase": "Succeeded"}})))?;
    let out = pod(&cluster, ("shop", "out", "web", "node-a"), false)?;
    let label = json!({"metadata": {"labels": {"weft.dev/mesh": "disabled"}}});
    cluster.server.call("PATCH", "/api/v1/namespaces/shop/pods/out", Some(&label))?;

    let good = web.item()?;
    let (p256, p384) = (KeyPair::generate()?, KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?);
    let uri = |text: &str| anyhow::Ok(SanType::URI(text.try_into()?));
    let mut forged = good.csr_der.clone();
    *forged.last_mut().context("a signature")? ^= 1;
    let with = |csr_der: Vec<u8>| SignItem { csr_der, ..good.clone() };
    let of = |name: &str, uid: &str| SignItem { pod_name: name.to_owned(), pod_uid: uid.to_owned(), ..good.clone() };
    let cases: Vec<(&str, SignItem)> = vec![
        ("", good.clone()),
        ("unknown_pod", of("web", "00000000-0000-0000-0000-000000000001")),
        ("unknown_pod", of("nobody", "00000000-0000-0000-0000-000000000001")),
        ("unknown_pod", of("web", "")),
        ("unknown_pod", of("../../../secrets/weft-ca-root", "x")),
        ("other_pod", of("host", &web.uid)),
        ("other_pod", SignItem { namespace: "aside".to_owned(), ..good.clone() }),
        ("other_account", SignItem { service_account: "admin".to_owned(), ..good.clone() }),
        ("other_node", of("far", &far)),
        ("pod_ended", of("done", &done)),
        ("host_network", of("host", &host)),
        ("not_meshed", SignItem { namespace: "aside".to_owned(), ..of("plain", &plain) }),
        ("not_meshed", of("out", &out)),
        ("csr_too_large", with(vec![0x30; 4097])),
        ("csr_garbage", with(Vec::new())),
        ("csr_garbage", with(b"garbage".to_vec())),
        ("csr_signature", with(forged)),
        ("csr_key", with(csr(vec![], &p384)?)),
        ("csr_names", with(csr(vec![uri("spiffe://cluster.local/ns/shop/sa/admin")?], &p256)?)),
        ("csr_names", with(csr(vec![SanType::DnsName("weft-ca.weft-system.svc".try_into()?)], &p256)?)),
        // No names at all: they are the authority's to say.
        ("", with(csr(vec![], &p256)?)),
    ];
    let expected: Vec<&str> = cases.iter().map(|(expected, _)| *expected).collect();
    let items: Vec<SignItem> = cases.iter().map(|(_, item)| item.clone()).collect();
    block_on(async {
        let mut agent = Client::connect(&authority, 0, &bundle, Some(&authority.agent("node-a")?.token)).await?;
        let mut last = Vec::new();
        let started = Instant::now();
        while started.elapsed() < IN_TIME {
            let answers = agent.sign(items.clone()).await?;
            last = answers
                .iter()
                .map(|one| one.as_ref().map_or_else(|refusal| refusal.code.clone(), |_| String::new()))
                .collect();
            if last == expected {
                return Ok(());
            }
            // The watch may be behind what the API server has just been told.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::bail!("{:#?}", expected.iter().zip(&last).collect::<Vec<_>>())
    })
}

#[test]
fn a_pod_that_the_watch_does_not_know_is_asked_for_once_and_outages_are_told_apart() -> Result<()> {
    let (cluster, authority) = started(AuthorityOptions {
        arguments: ["--takeover-s", "6"].map(str::to_owned).to_vec(),
        ..AuthorityOptions::default()
    })?;
    let bundle = roots(&authority)?;
    block_on(async {
        let token = &authority.agent("node-a")?.token;
        let mut agent = Client::connect(&authority, 0, &bundle, Some(token)).await?;
        ensure!(agent.ask(vec![]).await?.is_ok());
        // From here on, lists and watches bring nothing.
        authority.faults.set(&["GET /api/v1/pods?"], Fault::Answer(500, None, "{}"));
        let web = Web::on(&cluster)?;
        web.certificate(&mut agent, &bundle).await?;
        let lookups =
            || authority.faults.asked().iter().filter(|asked| asked.line.contains("/namespaces/shop/pods/web")).count();
        ensure!(lookups() == 1, "{:#?}", authority.faults.asked());
        // A token that was confirmed goes on for a while when nobody can be asked; another one is not taken.
        authority.faults.set(&["tokenreviews"], Fault::Answer(503, None, "{}"));
        web.certificate(&mut agent, &bundle).await?;
        let mut other = Client::connect(&authority, 0, &bundle, Some("another")).await?;
        ensure!(code(&other.ask(vec![]).await?.unwrap_err()) == "api_server");
        // And nothing is signed with a key that may not be in force any more.
        authority.faults.set(&["secrets/weft-ca-issuer"], Fault::Answer(503, None, "{}"));
        wait::until("the authority not to be ready", IN_TIME, || {
            Ok((authority.fetch(0, "/readyz")?.0 == 503).then_some(()))
        })?;
        ensure!(code(&agent.ask(vec![web.item()?]).await?.unwrap_err()) == "not_ready");
        ensure!(authority.metric(0, "weft_ca_problem", &["keys", "api_server"])? == 1.0);
        authority.faults.clear();
        authority.wait_ready(0)?;
        web.certificate(&mut agent, &bundle).await?;
        Ok(())
    })
}
