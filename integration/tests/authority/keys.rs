//! The authority's keys: made once, kept over restarts, brought by a user, and rotated while its leader dies.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;
use weft_identity::{Bundle, Credential};
use weft_integration::{
    Cluster, command,
    kube::{Authority, AuthorityOptions, Fault, authority::NAMESPACE},
    wait,
};

use crate::{
    IN_TIME, Web,
    client::{Client, block_on, roots},
    secret, started,
};

/// How often the agent of the test acts: four questions each time, of 20 a second that it may ask.
const ACTS: Duration = Duration::from_millis(250);

fn two() -> AuthorityOptions {
    AuthorityOptions { replicas: 2, ..AuthorityOptions::default() }
}

#[test]
fn replicas_that_all_believe_to_lead_make_one_root_between_them() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.apply(crate::SHOP)?;
    let mut authority = Authority::prepare(&mut cluster, two())?;
    // Everybody who asks for the Lease is told that there is none, and then that it is his.
    authority.faults.set(&["GET", "/leases/"], Fault::Answer(404, None, "{}"));
    authority.faults.set(&["POST", "/leases"], Fault::Answer(201, None, "{}"));
    for replica in 0..2 {
        authority.launch(replica)?;
    }
    for replica in 0..2 {
        authority.wait_ready(replica)?;
        ensure!(authority.metric(replica, "weft_ca_leader", &[])? == 1.0, "replica {replica} does not lead");
    }
    let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
    ensure!(bundle.roots().len() == 1);
    let made = |words: &str| (0..2).filter(|replica| authority.log(*replica).contains(words)).count();
    ensure!(made("a root is made") == 1 && made("an issuer is made") == 1);
    block_on(async {
        for replica in 0..2 {
            let token = &authority.agent("node-a")?.token;
            let mut agent = Client::connect(&authority, replica, &bundle, Some(token)).await?;
            web.certificate(&mut agent, &bundle).await?;
        }
        Ok(())
    })
}

#[test]
fn keys_survive_restarts_and_what_was_deleted_is_put_back_or_told() -> Result<()> {
    let (cluster, mut authority) = started(AuthorityOptions::default())?;
    let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
    let (root, issuer) = (secret(&cluster, "weft-ca-root")?, secret(&cluster, "weft-ca-issuer")?);
    authority.kill(0)?;
    authority.launch(0)?;
    authority.wait_ready(0)?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/weft-trust-bundle");
    cluster.server.call("DELETE", &path, None)?;
    wait::until("the bundle to be published again", IN_TIME, || {
        Ok((cluster.server.request("GET", &path, None)?.code == 200).then_some(()))
    })?;
    ensure!(secret(&cluster, "weft-ca-root")? == root && secret(&cluster, "weft-ca-issuer")? == issuer);
    // Garbage in its place is put right, too.
    cluster.server.call("PATCH", &path, Some(&json!({"data": {"ca.crt": "garbage", "other": "kept"}})))?;
    wait::until("the bundle to be put right", IN_TIME, || {
        let map = cluster.server.call("GET", &path, None)?;
        let pem = map["data"]["ca.crt"].as_str().unwrap_or_default();
        Ok((pem == bundle.to_pem() && map["data"]["other"] == "kept").then_some(()))
    })?;
    // A root that is gone is not replaced: nothing that was signed would be trusted.
    let root = format!("/api/v1/namespaces/{NAMESPACE}/secrets/weft-ca-root");
    cluster.server.call("DELETE", &root, None)?;
    wait::until("it to be told", IN_TIME, || {
        Ok((authority.metric(0, "weft_ca_problem", &["leader", "root_gone"])? == 1.0).then_some(()))
    })?;
    ensure!(cluster.server.request("GET", &root, None)?.code == 404);
    block_on(async {
        let token = &authority.agent("node-a")?.token;
        let mut agent = Client::connect(&authority, 0, &bundle, Some(token)).await?;
        web.certificate(&mut agent, &bundle).await
    })?;
    authority.stop(0)
}

/// A user's own CA, and an issuer below it: certificates and the issuer's key, PEM.
struct Users {
    root: String,
    issuer: String,
    key: String,
}

fn users(change: impl Fn(&mut CertificateParams)) -> Result<Users> {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root, root_key, key) = (params("user's root"), KeyPair::generate()?, KeyPair::generate()?);
    let mut issuer = params("user's issuer");
    change(&mut issuer);
    let issuer = issuer.signed_by(&key, &Issuer::from_params(&root, &root_key))?;
    Ok(Users { root: root.self_signed(&root_key)?.pem(), issuer: issuer.pem(), key: key.serialize_pem() })
}

impl Users {
    fn apply(&self, cluster: &Cluster) -> Result<()> {
        let mut kubectl = cluster.server.kubectl();
        kubectl.args([
            "create",
            "secret",
            "generic",
            "weft-ca-issuer",
            "-n",
            NAMESPACE,
            "--dry-run=client",
            "-o",
            "yaml",
        ]);
        for (key, value) in [("tls.crt", &self.issuer), ("tls.key", &self.key), ("ca.crt", &self.root)] {
            kubectl.arg(format!("--from-literal={key}={value}"));
        }
        cluster.server.apply(&command::output(&mut kubectl)?).map(drop)
    }
}

#[test]
fn a_users_intermediate_signs_and_one_that_would_break_later_is_refused_aloud() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.apply(crate::SHOP)?;
    let mut authority = Authority::prepare(&mut cluster, AuthorityOptions::default())?;
    let good = users(|_| {})?;
    // Nothing is served with one that is no CA, and nothing is made in its place.
    users(|params| params.is_ca = IsCa::ExplicitNoCa)?.apply(&cluster)?;
    authority.launch(0)?;
    wait::until("it to be told", IN_TIME, || {
        Ok((authority.metric(0, "weft_ca_problem", &["leader", "not_ca"])? == 1.0).then_some(()))
    })?;
    ensure!(authority.fetch(0, "/readyz")?.0 == 503);
    good.apply(&cluster)?;
    authority.wait_ready(0)?;
    ensure!(
        cluster.server.request("GET", &format!("/api/v1/namespaces/{NAMESPACE}/secrets/weft-ca-root"), None)?.code
            == 404
    );
    let (bundle, web) = (roots(&authority)?, Web::on(&cluster)?);
    ensure!(*bundle == Bundle::from_pem(good.root.as_bytes())?, "the user's root is what is trusted");
    let constraint = |params: &mut CertificateParams| {
        // Permitted URIs: [6] "cluster.local" (RFC 5280, 4.2.1.10), under which rustls refuses everything.
        let content = [&[0x30, 0x13, 0xa0, 0x11, 0x30, 0x0f, 0x86, 0x0d][..], b"cluster.local"].concat();
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], content));
    };
    let ends = |params: &mut CertificateParams| {
        params.not_after = (std::time::SystemTime::now() + Duration::from_secs(3600)).into();
    };
    let mut foreign = users(|_| {})?;
    foreign.root.clone_from(&good.root);
    for (reason, bad) in [("uri_constraints", users(constraint)?), ("too_short", users(ends)?), ("untrusted", foreign)]
    {
        bad.apply(&cluster)?;
        wait::until(reason, IN_TIME, || {
            Ok((authority.metric(0, "weft_ca_problem", &["leader", reason])? == 1.0).then_some(()))
        })?;
        // The one before goes on.
        block_on(async {
            let token = &authority.agent("node-a")?.token;
            let mut agent = Client::connect(&authority, 0, &bundle, Some(token)).await?;
            web.certificate(&mut agent, &bundle).await
        })?;
    }
    good.apply(&cluster)?;
    wait::until("all to be well", IN_TIME, || {
        let (_, text) = authority.fetch(0, "/metrics")?;
        let is_bad = |line: &str| line.starts_with("weft_ca_problem{") && line.ends_with(" 1");
        Ok((!text.lines().any(is_bad)).then_some(()))
    })
}

/// Agent of node-a: follows the roots, and asks for everything again when it is told to.
struct Agent {
    client: Client,
    bundle: Arc<Bundle>,
    credential: Arc<Credential>,
    epoch: u64,
}

impl Agent {
    /// Connects to a replica that answers, with the roots in force.
    async fn connect(authority: &Authority, bundle: &Bundle) -> Result<Client> {
        let token = &authority.agent("node-a")?.token;
        for replica in [0, 1] {
            if let Ok(mut client) = Client::connect(authority, replica, bundle, Some(token)).await
                && client.ask(vec![]).await.is_ok_and(|answer| answer.is_ok())
            {
                return Ok(client);
            }
        }
        anyhow::bail!("no replica answers an agent that trusts {}", bundle.sha256())
    }

    /// What an agent does all the time: takes the roots up as they are published, then asks anew where that is wanted. Everything in
    /// force must be trusted with the roots in force at every moment.
    async fn act(&mut self, authority: &Authority, web: &Web) -> Result<()> {
        let mut watch = match self.client.watch().await {
            Ok(Ok(watch)) => watch,
            _ => {
                self.client = Self::connect(authority, &self.bundle).await?;
                self.client.watch().await??
            }
        };
        let published = watch.message().await?.context("a bundle")?;
        if published.sha256 != self.bundle.sha256() {
            self.bundle = Arc::new(Bundle::from_pem(published.roots_pem.as_bytes())?);
            self.client.trusts = self.bundle.sha256();
        }
        if published.reissue_epoch > self.epoch {
            self.credential = web.certificate(&mut self.client, &self.bundle).await?;
            self.epoch = published.reissue_epoch;
            self.client.reissued = self.epoch;
        }
        // Whoever has asked just now, and whoever asked long ago, is trusted by everybody who has these roots.
        web.certificate(&mut self.client, &self.bundle).await?;
        let chain = self.credential.chain().to_vec();
        let (id, now) = (self.credential.id().clone(), std::time::SystemTime::now());
        Credential::new(&id, &web.key, chain, self.bundle.clone(), now)?;
        let told = self.client.ask(vec![]).await?;
        told.map(drop).map_err(|status| anyhow::anyhow!("a report is refused: {status}"))
    }
}

#[test]
fn the_root_is_rotated_with_the_leader_killed_at_each_step_and_nothing_in_force_is_ever_distrusted() -> Result<()> {
    let arguments = ["--propagation-s", "2", "--takeover-s", "6"].map(str::to_owned).to_vec();
    let (cluster, mut authority) = started(AuthorityOptions { replicas: 2, arguments })?;
    let (before, web) = (roots(&authority)?, Web::on(&cluster)?);
    block_on(async {
        let mut client = Agent::connect(&authority, &before).await?;
        let credential = web.certificate(&mut client, &before).await?;
        let mut agent = Agent { client, bundle: before.clone(), credential, epoch: 0 };
        agent.act(&authority, &web).await?;
        authority.rotate_root(&cluster)?;
        let (mut seen, began) = (BTreeSet::new(), Instant::now());
        let mut acted = Instant::now();
        loop {
            ensure!(began.elapsed() < 3 * IN_TIME, "it is in {} after {seen:?}", authority.phase(&cluster)?);
            let now = authority.phase(&cluster)?;
            if now != "steady" && seen.insert(now.clone()) {
                // The one that leads dies as soon as it has written down where it is.
                let leads = authority.leader(&cluster)?;
                authority.kill(leads)?;
                // At one step it stays away until the other has taken over.
                while now == "announce" && authority.leader(&cluster)? == leads {
                    ensure!(began.elapsed() < 3 * IN_TIME, "nobody leads");
                    agent.act(&authority, &web).await?;
                    tokio::time::sleep(ACTS).await;
                }
                authority.launch(leads)?;
                authority.wait_ready(leads)?;
            }
            // As often as an agent may ask without being told to wait.
            if acted.elapsed() >= ACTS {
                agent.act(&authority, &web).await?;
                acted = Instant::now();
            }
            if now == "steady" && !seen.is_empty() && agent.bundle != before && agent.bundle.roots().len() == 1 {
                break;
            }
        }
        let all: BTreeSet<String> = ["prepare", "announce", "switch", "reissue", "retire"].map(str::to_owned).into();
        ensure!(seen == all, "{seen:?}");
        ensure!(agent.epoch == 1, "certificates were asked for again {} times", agent.epoch);
        ensure!(before.roots()[0] != agent.bundle.roots()[0]);
        let root = secret(&cluster, "weft-ca-root")?;
        ensure!(root["data"]["next.crt"].is_null() && root["data"]["next.key"].is_null(), "the next root is the root");
        Ok(())
    })
}
