//! Asks the authority, checks what it answers, and puts it in force.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use weft_identity::{Bundle, Credential, key::PrivateKey, limits as identity_limits, request};
use weft_policy::names::ServiceAccountKey;

use super::{
    authority::{Answer, Answers, Ask, Authority, InForce, Trust},
    book::{Held, PodRef, Problem, Step},
    keep::{self, Keep},
    metrics::IdentityMetrics,
    store::Store,
};
use crate::limits;

/// What became of one call: what was asked with, and the answer.
type Called = (Vec<(PodRef, PrivateKey)>, u64, Result<Answers, Problem>);

/// Follows the store's wants and the authority's roots, until it is dropped.
pub struct Manager {
    store: Arc<Store>,
    authority: Arc<dyn Authority>,
    keep: Arc<dyn Keep>,
    metrics: IdentityMetrics,
    trust: watch::Receiver<Trust>,
    calls: JoinSet<Called>,
    complained_of_keep: bool,
    /// Until when pods of an earlier agent may still be found and want what it kept.
    clean_at: Option<Duration>,
}

impl Manager {
    /// Asks `authority` for what `store` wants.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        authority: Arc<dyn Authority>,
        keep: Arc<dyn Keep>,
        metrics: IdentityMetrics,
    ) -> Self {
        let trust = authority.trust();
        Self {
            store,
            authority,
            keep,
            metrics,
            trust,
            calls: JoinSet::new(),
            complained_of_keep: false,
            clean_at: None,
        }
    }

    /// Never ends by itself.
    pub async fn run(mut self) {
        self.take_trust();
        self.clean_at = Some(self.store.now().steady + limits::IDENTITY_IDLE);
        loop {
            self.clean();
            let room = limits::IDENTITY_CALLS_MAX.saturating_sub(self.calls.len()) * identity_limits::BATCH_MAX;
            let has_roots = self.bundle().is_some();
            // Without roots no answer could be checked.
            let step = self.store.book().step(self.store.now(), if has_roots { room } else { 0 });
            self.act(step);
            let wait = match (has_roots, self.calls.len() < limits::IDENTITY_CALLS_MAX) {
                (true, true) => self.store.book().idle(self.store.now()),
                _ => limits::IDENTITY_CLOCK_LOOK,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.store.wanted.notified() => {}
                Some(called) = self.calls.join_next() => if let Ok(called) = called {
                    self.answered(called);
                },
                Ok(()) = self.trust.changed() => self.take_trust(),
            }
        }
    }

    /// Forgets what was kept for accounts that nobody uses any more. Once, when the pods of this node are known.
    fn clean(&mut self) {
        if self.clean_at.take_if(|at| *at <= self.store.now().steady).is_none() {
            return;
        }
        let used: HashSet<_> = self.store.book().iter().map(|(account, _)| account.clone()).collect();
        for account in keep::accounts(&*self.keep).iter().filter(|account| !used.contains(account)) {
            keep::remove(&*self.keep, account);
        }
    }

    fn bundle(&self) -> Option<Arc<Bundle>> {
        self.store.trust().bundle.clone()
    }

    fn act(&mut self, step: Step) {
        if let Some(seconds) = step.jumped {
            self.metrics.clock_jumped();
            tracing::warn!(seconds, "the wall clock was set; renewals are thought over");
        }
        for account in &step.dropped {
            keep::remove(&*self.keep, account);
            if step.expired.contains(account) {
                self.metrics.failed("expired");
                tracing::error!(%account, "certificate has expired and none came in its place; its pods take no mutual TLS");
            }
        }
        if !step.dropped.is_empty() {
            self.store.publish();
        }
        let (mut asks, mut news) = (Vec::new(), false);
        for pod in step.ask {
            // After a restart there may be one already. It is taken as if it had just come, with everything that is checked then.
            if self.take_kept(&pod) {
                news = true;
                continue;
            }
            match self.prepare(&pod) {
                Ok((key, ask)) => asks.push((pod, key, ask)),
                Err(problem) => self.failed(&pod.account, problem),
            }
        }
        if news {
            self.store.publish();
        }
        while !asks.is_empty() {
            let rest = asks.split_off(asks.len().min(identity_limits::BATCH_MAX));
            self.call(std::mem::replace(&mut asks, rest));
        }
    }

    fn prepare(&self, pod: &PodRef) -> Result<(PrivateKey, Ask), Problem> {
        let problem = |reason: &str, words: String| Problem { reason: reason.to_owned(), words };
        let id =
            self.store_domain().account(&pod.account).map_err(|error| problem("bad_account", error.to_string()))?;
        let key = PrivateKey::generate().map_err(|error| problem("bad_key", error.to_string()))?;
        let request = request::create(&id, &key).map_err(|error| problem("bad_key", error.to_string()))?;
        Ok((key, Ask { pod: pod.clone(), request }))
    }

    fn store_domain(&self) -> &weft_identity::TrustDomain {
        weft_identity::Credentials::trust_domain(&*self.store)
    }

    fn call(&mut self, asks: Vec<(PodRef, PrivateKey, Ask)>) {
        let authority = Arc::clone(&self.authority);
        // Before the call: what the epoch rises to while it is under way is asked for again.
        let epoch = self.store.book().epoch();
        self.calls.spawn(async move {
            let (keys, asks): (Vec<_>, Vec<_>) = asks.into_iter().map(|(pod, key, ask)| ((pod, key), ask)).unzip();
            // In a task of its own: whatever becomes of it, the accounts are asked for again.
            let answers = tokio::spawn(async move { authority.sign(&asks).await }).await;
            let answers = answers.unwrap_or_else(|error| {
                Err(Problem {
                    reason: "broken".to_owned(),
                    words: format!("the call has ended without an answer: {error}"),
                })
            });
            (keys, epoch, answers)
        });
    }

    fn answered(&mut self, (asked, epoch, answers): Called) {
        let answers = match answers {
            Ok(Answers { answers, clock_ahead_ms }) if answers.len() == asked.len() => {
                if let Some(ahead) = clock_ahead_ms {
                    self.metrics.clock_ahead(ahead);
                }
                answers
            }
            Ok(Answers { answers, .. }) => {
                let words = format!("{} answers to {} requests", answers.len(), asked.len());
                let problem = Problem { reason: "bad_answer".to_owned(), words };
                vec![Err(problem); asked.len()]
            }
            Err(problem) => vec![Err(problem); asked.len()],
        };
        let mut news = false;
        for ((pod, key), answer) in asked.into_iter().zip(answers) {
            match self.take(&pod.account, key, answer, epoch) {
                Ok(()) => news = true,
                Err(problem) => self.failed(&pod.account, problem),
            }
        }
        if news {
            self.store.publish();
            self.tell();
        }
    }

    /// Checks an answer, and puts it in the book.
    fn take(
        &mut self,
        account: &ServiceAccountKey,
        key: PrivateKey,
        answer: Answer,
        epoch: u64,
    ) -> Result<(), Problem> {
        let chain = answer?;
        let problem = |reason: &str, words: String| Problem { reason: reason.to_owned(), words };
        let id = self.store_domain().account(account).map_err(|error| problem("bad_account", error.to_string()))?;
        let bundle =
            self.bundle().ok_or_else(|| problem("no_roots", "there are no roots to check it with".to_owned()))?;
        let now = self.store.now();
        let credential = Credential::new(&id, &key, chain, bundle, now.wall)
            .map_err(|error| problem(error.reason(), format!("the authority's answer is not taken: {error}")))?;
        if let Err(error) = keep::put(&*self.keep, &id, &key, credential.chain(), epoch)
            && !std::mem::replace(&mut self.complained_of_keep, true)
        {
            tracing::warn!(error, "certificates are not kept over a restart of the agent");
        }
        let svid = credential.svid();
        tracing::info!(%id, serial = svid.serial, "certificate is in force");
        self.metrics.renewed();
        self.store.book().took(account, Held { credential, key: Arc::new(key), epoch }, fastrand::f64(), now);
        Ok(())
    }

    /// Takes what an earlier agent kept. What cannot be used is asked for instead.
    fn take_kept(&self, pod: &PodRef) -> bool {
        let has_one = |account| self.store.book().iter().any(|(other, entry)| other == account && entry.was_held());
        if has_one(&pod.account) {
            return false;
        }
        let (Some(bundle), Ok(id)) = (self.bundle(), self.store_domain().account(&pod.account)) else { return false };
        let Some(kept) = keep::get(&*self.keep, &id) else { return false };
        let now = self.store.now();
        match Credential::new(&id, &kept.key, kept.chain, bundle, now.wall) {
            Ok(credential) => {
                tracing::info!(%id, serial = credential.svid().serial, "certificate of the agent before this one is in force");
                let held = Held { credential, key: Arc::new(kept.key), epoch: kept.epoch };
                self.store.book().took(&pod.account, held, fastrand::f64(), now)
            }
            Err(error) => {
                tracing::info!(%id, reason = error.reason(), "the kept certificate is of no use any more");
                keep::remove(&*self.keep, &pod.account);
                false
            }
        }
    }

    fn failed(&self, account: &ServiceAccountKey, problem: Problem) {
        self.metrics.failed(&problem.reason);
        let mut book = self.store.book();
        let is_news = book.iter().any(|(other, entry)| other == account && entry.problem.as_ref() != Some(&problem));
        if is_news {
            tracing::warn!(%account, reason = problem.reason, error = problem.words, "no new certificate; the one in use stays until it ends");
        }
        book.failed(account, problem, fastrand::f64(), self.store.now());
    }

    /// Checks every peer with other roots from now on.
    fn take_trust(&mut self) {
        let trust = self.trust.borrow_and_update().clone();
        let before = std::mem::replace(&mut *self.store.trust(), trust.clone());
        let now = self.store.now();
        self.store.book().reissue(trust.epoch, fastrand::f64, now);
        if let Some(bundle) = trust.bundle
            && before.bundle.as_ref() != Some(&bundle)
        {
            tracing::info!(sha256 = bundle.sha256(), roots = bundle.roots().len(), "roots are in force");
            if let Err(error) = keep::put_bundle(&*self.keep, &bundle) {
                tracing::warn!(error, "roots are not kept over a restart of the agent");
            }
            self.change_roots(&bundle);
        }
        self.tell();
    }

    fn change_roots(&self, bundle: &Arc<Bundle>) {
        let now = self.store.now();
        let held: Vec<(ServiceAccountKey, Held)> = {
            let book = self.store.book();
            book.iter().filter_map(|(account, entry)| Some((account.clone(), entry.held.clone()?))).collect()
        };
        for (account, held) in held {
            let (id, chain) = (held.credential.id(), held.credential.chain().to_vec());
            match Credential::new(id, &held.key, chain, Arc::clone(bundle), now.wall) {
                Ok(credential) => self.store.book().replaced(&account, credential),
                Err(error) => {
                    // Peers with the same roots would refuse it, too. Until another comes it goes on as it is: it may still be taken.
                    tracing::warn!(%account, error = %error, "certificate is not trusted with the new roots, and is renewed at once");
                    let problem = Problem { reason: error.reason().to_owned(), words: error.to_string() };
                    self.store.book().hurry(&account, problem, now);
                }
            }
        }
        self.store.publish();
    }

    fn tell(&self) {
        let bundle_sha256 = self.bundle().map(|bundle| bundle.sha256()).unwrap_or_default();
        let reissued = self.store.book().reissued();
        self.authority.told(InForce { bundle_sha256, reissued });
    }
}

#[cfg(test)]
mod tests;
