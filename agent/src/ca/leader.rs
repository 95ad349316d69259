//! Makes keys, and rotates the root. One replica does, the holder of a Lease; and what it writes is written only where nothing was, or
//! over the version that it has read, so that two who both believe to hold it make one root between them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use weft_identity::{
    Bundle, TrustDomain,
    authority::{
        Issuer, Profile, Root, Rotation,
        rotation::{Observed, Phase, Roots},
    },
    limits as identity_limits,
};
use weft_policy::names::ServiceAccountKey;

use super::{
    api::Api,
    config::RootsRef,
    limits,
    metrics::CaMetrics,
    problem::{Complaint, Problem},
    reports::Reports,
    stored::{self, CERTIFICATE, ISSUER, KEY, ROOT, ROOTS},
    trial::Proof,
    trust_bundle::TrustBundle,
};
use crate::{
    limits as agent_limits,
    status::{Identity, lease::Lease},
    watch::kube::inventory::Inventory,
};

/// How long the steps of a rotation take at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the publication of both roots until something is signed below the new one.
    pub(super) propagation: Duration,
    /// From a new issuer until nobody signs with the one before.
    pub(super) takeover: Duration,
}

pub(super) struct Leader {
    api: Api,
    lease: Lease,
    holder: String,
    trust_domain: TrustDomain,
    profile: Profile,
    pace: Pace,
    /// The agents' service account.
    agents: ServiceAccountKey,
    inventory: Arc<Inventory>,
    reports: Arc<Reports>,
    metrics: CaMetrics,
    trust_bundle: TrustBundle,
    /// Where somebody else signs: what they have signed, and the roots that it is to lead to.
    elsewhere: Option<(Arc<Proof>, RootsRef)>,
    /// This replica has seen something that the leader should look at.
    changed: Arc<Notify>,
    /// Whether the last look has found nothing to do, and nothing to wait for.
    idle: bool,
    /// Since when the issuer is seen that there is.
    issuer_since: Option<([u8; 32], Instant)>,
    /// What was said last of what a rotation waits for.
    said: Option<(Phase, usize)>,
}

/// What a leader needs besides the API server.
pub(super) struct Office {
    pub(super) trust_domain: TrustDomain,
    pub(super) profile: Profile,
    pub(super) pace: Pace,
    pub(super) agents: ServiceAccountKey,
    pub(super) inventory: Arc<Inventory>,
    pub(super) reports: Arc<Reports>,
    pub(super) metrics: CaMetrics,
    /// Where somebody else signs.
    pub(super) elsewhere: Option<(Arc<Proof>, RootsRef)>,
    /// Told when there is something to look at.
    pub(super) changed: Arc<Notify>,
}

impl Leader {
    pub(super) fn new(client: &Client, api: Api, identity: &Identity, office: Office) -> Self {
        let Office { trust_domain, profile, pace, agents, inventory, reports, metrics, elsewhere, changed } = office;
        Self {
            lease: Lease::new(client.clone(), identity, stored::LEASE),
            holder: identity.holder.clone(),
            trust_bundle: TrustBundle::new(api.clone(), metrics.clone()),
            api,
            trust_domain,
            profile,
            pace,
            agents,
            inventory,
            reports,
            metrics,
            elsewhere,
            changed,
            idle: false,
            issuer_since: None,
            said: None,
        }
    }

    /// Leads for as long as this replica holds the Lease, and waits for it otherwise. Never ends.
    pub(super) async fn run(mut self) {
        let mut complaint = Complaint::new("leader", self.metrics.clone());
        let mut renew = interval(agent_limits::LEASE_RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::clone(&self.changed);
        let idle_look = limits::LOOK_IDLE.min(self.pace.takeover / 4).max(limits::LOOK);
        let mut next_look = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = renew.tick() => {
                    let held = self.lease.is_held();
                    self.lease.renew().await;
                    self.metrics.leader.set(self.lease.is_held().into());
                    if self.lease.is_held() && !held {
                        tracing::info!(holder = self.holder, "this replica makes and rotates keys");
                        self.issuer_since = None;
                        next_look = Instant::now();
                    }
                }
                // Not before the next whole look: whoever changes something all the time makes nobody look more often than that.
                () = changed.notified() => next_look = next_look.min(Instant::now() + limits::LOOK),
                () = sleep_until(next_look) => {
                    let leads = self.lease.is_held();
                    self.idle = leads;
                    let outcome = if leads { self.lead().await } else { Ok(()) };
                    self.idle &= outcome.is_ok();
                    complaint.note(outcome);
                    next_look = Instant::now() + if self.idle { idle_look } else { limits::LOOK };
                }
            }
        }
    }

    /// Looks once, and does what there is to do.
    async fn lead(&mut self) -> Result<(), Problem> {
        if let Some((proof, roots)) = self.elsewhere.clone() {
            return self.publish_elsewhere(&proof, &roots).await;
        }
        let issuer: Option<Secret> = self.api.get(&self.api.core("secrets", Some(ISSUER))).await?;
        if let Some(issuer) = issuer.as_ref().filter(|issuer| !stored::is_ours(&issuer.metadata)) {
            return self.publish_users(issuer).await;
        }
        let root = self.root(issuer.is_some()).await?;
        let rotation = stored::rotation(&root).map_err(|error| {
            Problem::new("bad_rotation", format_args!("Secret {ROOT}: annotation {}: {error}", stored::ROTATION))
        })?;
        self.tell_phase(rotation);
        self.rotate(root, rotation, issuer).await
    }

    /// The root's Secret. It is made once; one that was there and is gone is not replaced, because nothing that was signed would be
    /// trusted any more.
    async fn root(&self, was_there: bool) -> Result<Secret, Problem> {
        let path = self.api.core("secrets", Some(ROOT));
        if let Some(root) = self.api.get(&path).await? {
            return Ok(root);
        }
        let bundle: Option<ConfigMap> = self.api.get(&self.api.core("configmaps", Some(stored::BUNDLE))).await?;
        if was_there || bundle.is_some_and(|bundle| stored::is_ours(&bundle.metadata)) {
            let message = format!(
                "Secret {}/{ROOT} is gone; put it back, or delete {ISSUER} and {} too to begin anew",
                self.api.namespace(),
                stored::BUNDLE
            );
            return Err(Problem::new("root_gone", message));
        }
        let root = Root::generate(SystemTime::now()).map_err(|error| Problem::new("generate", error))?;
        let secret = stored::new_root(self.api.namespace(), &root);
        match self.api.create(&self.api.core("secrets", None), &secret).await? {
            Some(made) => {
                tracing::info!(secret = ROOT, "a root is made");
                Ok(made)
            }
            // Somebody else was faster: it is theirs.
            None => self
                .api
                .get(&path)
                .await?
                .ok_or_else(|| Problem::new("root_gone", format_args!("Secret {ROOT} comes and goes"))),
        }
    }

    /// A user's issuer: their roots are published as they are, once what it signs would be trusted with them.
    async fn publish_users(&mut self, issuer: &Secret) -> Result<(), Problem> {
        let value = |key| stored::value(issuer, ISSUER, key).map_err(|error| Problem::new("no_key", error));
        let wrong =
            |error: &dyn std::fmt::Display, reason| Problem::new(reason, format_args!("Secret {ISSUER}: {error}"));
        let bundle = Bundle::from_pem(value(ROOTS)?).map_err(|error| wrong(&error, "bad_bundle"))?;
        Issuer::from_pem(value(CERTIFICATE)?, value(KEY)?, &bundle, &self.profile, SystemTime::now())
            .map_err(|error| wrong(&error, error.reason()))?;
        self.publish(&bundle, Rotation::default()).await
    }

    /// Another signer's roots are published as the user gives them, once something that it has signed leads to them.
    async fn publish_elsewhere(&mut self, proof: &Proof, of: &RootsRef) -> Result<(), Problem> {
        let RootsRef { name, key } = of;
        let map: Option<ConfigMap> = self.api.get(&self.api.core("configmaps", Some(name))).await?;
        let pem = map.as_ref().and_then(|map| map.data.as_ref()?.get(key)).ok_or_else(|| {
            let namespace = self.api.namespace();
            let message = format!("ConfigMap {namespace}/{name} has to have the roots of the issuer, as PEM, in {key}");
            Problem::new("no_roots", message)
        })?;
        let wrong = |error: &dyn std::fmt::Display, reason| {
            Problem::new(reason, format_args!("ConfigMap {name}, key {key}: {error}"))
        };
        let bundle = Bundle::from_pem(pem.as_bytes()).map_err(|error| wrong(&error, "bad_bundle"))?;
        match proof.leads_to(&bundle) {
            // Whoever orders it tells what is wrong.
            None => {
                self.idle = false;
                Ok(())
            }
            Some(Ok(())) => self.publish(&bundle, Rotation::default()).await,
            Some(Err(error)) => Err(wrong(&error, "untrusted")),
        }
    }

    /// Writes the bundle, where it is not what it should be; for others too.
    async fn publish(&mut self, bundle: &Bundle, rotation: Rotation) -> Result<(), Problem> {
        self.publish_map(bundle, rotation).await?;
        self.trust_bundle.keep(bundle, &self.trust_domain).await;
        Ok(())
    }

    async fn publish_map(&mut self, bundle: &Bundle, rotation: Rotation) -> Result<(), Problem> {
        let path = self.api.core("configmaps", Some(stored::BUNDLE));
        let before: Option<ConfigMap> = self.api.get(&path).await?;
        let map = stored::bundle_map(self.api.namespace(), bundle, &self.trust_domain, rotation, before.clone());
        if before.as_ref() == Some(&map) {
            return Ok(());
        }
        self.idle = false;
        let written = match before {
            None => self.api.create(&self.api.core("configmaps", None), &map).await?,
            Some(_) => self.api.replace(&path, &map).await?,
        };
        match written {
            Some(_) => {
                tracing::info!(configmap = stored::BUNDLE, sha256 = bundle.sha256(), %rotation, "the bundle is published");
                Ok(())
            }
            None => Err(lost(stored::BUNDLE)),
        }
    }

    /// Makes the world as this phase of a rotation wants it, and goes on to the next one where it is time.
    async fn rotate(&mut self, mut root: Secret, rotation: Rotation, issuer: Option<Secret>) -> Result<(), Problem> {
        let now = SystemTime::now();
        self.idle &= rotation.phase == Phase::Steady;
        let desired = rotation.desired();
        if desired.next_root && stored::next(&root).is_none() && !desired.promote {
            if rotation.phase != Phase::Prepare {
                let message =
                    format!("Secret {ROOT} has lost the next root while a rotation is under way ({rotation})");
                return Err(Problem::new("next_root_gone", message));
            }
            let next = Root::generate(now).map_err(|error| Problem::new("generate", error))?;
            stored::set_next(&mut root, &next);
            root = self.replace_root(&root).await?;
            tracing::info!(secret = ROOT, "the next root is made");
        }
        let current = stored::value(&root, ROOT, CERTIFICATE).map_err(|error| Problem::new("no_key", error))?.to_vec();
        let next = stored::next(&root).map(|(certificate, _)| certificate.to_vec());
        let following = next.clone().unwrap_or_else(|| current.clone());
        let pem = match desired.bundle {
            Roots::Current => current.clone(),
            Roots::Both => [current.as_slice(), b"\n", following.as_slice()].concat(),
            Roots::Next => following.clone(),
        };
        let bad = |error: &dyn std::fmt::Display| Problem::new("bad_root", format_args!("Secret {ROOT}: {error}"));
        let bundle = Bundle::from_pem(&pem).map_err(|error| bad(&error))?;
        self.publish(&bundle, rotation).await?;

        let signing = if desired.signs == Roots::Next { &following } else { &current };
        let signing_bundle = Bundle::from_pem(signing).map_err(|error| bad(&error))?;
        let signs = self.issuer(&root, desired.signs, &signing_bundle, issuer).await?;
        if desired.promote && next.is_some() {
            stored::promote(&mut root);
            root = self.replace_root(&root).await?;
            tracing::info!(secret = ROOT, "the next root has taken the place of the one before");
        }

        let waiting = self.waiting(rotation, &bundle).await?;
        let ends = Bundle::from_pem(&current).ok().and_then(|bundle| bundle.not_after());
        let old = ends.is_some_and(|ends| ends < now + limits::ROOT_ROTATE_BEFORE);
        let seen = Observed {
            asked: stored::is_asked(&root) || old,
            next_root: stored::next(&root).is_some(),
            bundle: true,
            signs,
            promoted: stored::next(&root).is_none(),
            all_trust: self.inventory.is_listed() && waiting.trust == 0,
            all_reissued: self.inventory.is_listed() && waiting.reissue == 0,
        };
        self.say(rotation, &waiting);
        let Some(following) = rotation.next(&seen, now, self.profile.ttl(), self.pace.propagation) else {
            return Ok(());
        };
        self.idle = false;
        stored::set_rotation(&mut root, following, rotation.phase == Phase::Steady);
        self.replace_root(&root).await?;
        tracing::info!(from = %rotation, to = %following, "the rotation of the root goes on");
        if following.phase == Phase::Steady {
            self.api.delete(&self.api.core("configmaps", Some(stored::REPORTS))).await?;
        }
        Ok(())
    }

    /// Sees to an issuer below the root that is to sign. Whether everybody signs with it.
    async fn issuer(
        &mut self,
        root: &Secret,
        which: Roots,
        bundle: &Bundle,
        issuer: Option<Secret>,
    ) -> Result<bool, Problem> {
        let now = SystemTime::now();
        let good = issuer.as_ref().and_then(|issuer| {
            let (chain, key) =
                (stored::value(issuer, ISSUER, CERTIFICATE).ok()?, stored::value(issuer, ISSUER, KEY).ok()?);
            let loaded = Issuer::from_pem(chain, key, bundle, &self.profile, now).ok()?;
            let is_old = loaded.not_after() < now + identity_limits::ISSUER_LIFE / limits::ISSUER_RENEW_PART;
            (!is_old).then(|| <[u8; 32]>::from(Sha256::digest(chain)))
        });
        if let Some(digest) = good {
            if self.issuer_since.is_none_or(|(before, _)| before != digest) {
                self.issuer_since = Some((digest, Instant::now()));
            }
            return Ok(self.issuer_since.is_some_and(|(_, since)| since.elapsed() >= self.pace.takeover));
        }
        let (certificate, key) = match (which, stored::next(root)) {
            (Roots::Next, Some((certificate, key))) => (Some(certificate), key),
            _ => (stored::value(root, ROOT, CERTIFICATE).ok(), stored::value(root, ROOT, KEY).ok()),
        };
        let (Some(certificate), Some(key)) = (certificate, key) else {
            let message = format!(
                "a new issuer is needed, and Secret {ROOT} has no key to sign it with; put the root's key back for as long as that takes"
            );
            return Err(Problem::new("no_root_key", message));
        };
        let signed = Root::from_pem(certificate, key, now).and_then(|root| root.issuer(now));
        let signed = signed.map_err(|error| Problem::new(error.reason(), format_args!("Secret {ROOT}: {error}")))?;
        let secret = stored::issuer_secret(self.api.namespace(), &signed, issuer.as_ref());
        let written = match issuer {
            None => self.api.create(&self.api.core("secrets", None), &secret).await?,
            Some(_) => self.api.replace(&self.api.core("secrets", Some(ISSUER)), &secret).await?,
        };
        if written.is_none() {
            return Err(lost(ISSUER));
        }
        self.idle = false;
        tracing::info!(secret = ISSUER, "an issuer is made");
        Ok(false)
    }

    async fn replace_root(&self, root: &Secret) -> Result<Secret, Problem> {
        self.api.replace(&self.api.core("secrets", Some(ROOT)), root).await?.ok_or_else(|| lost(ROOT))
    }

    /// Which agents have not reported what this phase waits for.
    async fn waiting(&self, rotation: Rotation, bundle: &Bundle) -> Result<Waiting, Problem> {
        if !matches!(rotation.phase, Phase::Announce { .. } | Phase::Reissue { .. }) {
            return Ok(Waiting::default());
        }
        let path = self.api.core("configmaps", Some(stored::REPORTS));
        let map: Option<ConfigMap> = self.api.get(&path).await?;
        let map = match map {
            Some(map) => map,
            None => {
                let made = stored::reports_map(self.api.namespace());
                self.api.create(&self.api.core("configmaps", None), &made).await?.unwrap_or(made)
            }
        };
        let sha256 = bundle.sha256();
        let written = map.data.unwrap_or_default();
        let reports = self.reports.merged(written.values());
        let mut waiting = Waiting::default();
        // One that has no address has not started, and will mount what is published by then. One that is being deleted may still serve.
        let running = self.inventory.pods_of(&self.agents);
        for (uid, pod) in running.iter().filter(|(_, pod)| !pod.ended && !pod.node.is_empty() && !pod.ips.is_empty()) {
            let of_agent = reports.get(uid).map_or(&[][..], Vec::as_slice);
            let trusts = of_agent.iter().any(|report| report.trusts(&sha256));
            let reissued = of_agent.iter().any(|report| report.epoch >= rotation.epoch);
            waiting.trust += usize::from(!trusts);
            waiting.reissue += usize::from(!reissued);
            let is_awaited = match rotation.phase {
                Phase::Announce { .. } => !trusts,
                _ => !reissued,
            };
            if is_awaited {
                waiting.example.get_or_insert_with(|| format!("{} on {}", pod.meta.name, pod.node));
            }
        }
        Ok(waiting)
    }

    fn tell_phase(&self, rotation: Rotation) {
        self.metrics.phase.reset();
        let word = rotation.to_string();
        let word = word.split(['@', '/']).next().unwrap_or_default();
        self.metrics.phase.with_label_values(&[word]).set(1);
    }

    /// Says what a rotation waits for, when that has changed.
    fn say(&mut self, rotation: Rotation, waiting: &Waiting) {
        let awaited = match rotation.phase {
            Phase::Announce { .. } => waiting.trust,
            Phase::Reissue { .. } => waiting.reissue,
            _ => 0,
        };
        self.metrics.awaited.set(i64::try_from(awaited).unwrap_or(i64::MAX));
        if rotation.phase == Phase::Steady || self.said == Some((rotation.phase, awaited)) {
            return;
        }
        self.said = Some((rotation.phase, awaited));
        let example = waiting.example.as_deref().unwrap_or("none");
        tracing::info!(%rotation, waits_for = rotation.waits_for(), agents = awaited, example, "a rotation of the root is under way");
    }
}

/// Agents that have not reported.
#[derive(Debug, Default)]
struct Waiting {
    /// That they trust the bundle.
    trust: usize,
    /// That their certificates are new.
    reissue: usize,
    /// One of those that count now.
    example: Option<String>,
}

fn lost(object: &str) -> Problem {
    Problem::new("conflict", format_args!("{object} was changed by somebody else; it is looked at again"))
}
