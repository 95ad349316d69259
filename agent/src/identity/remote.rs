//! The authority of a cluster, asked over gRPC.
//!
//! Every call makes its own connection: one for up to 64 certificates that live for a day. So no call is stuck on a replica that is
//! gone, and every handshake is checked with the roots of that moment. Watching the roots has a connection that stays.

use std::{
    io::Read as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Status, metadata::MetadataValue};
use weft_identity::{
    Bundle, TrustDomain, limits as identity_limits,
    refusal::{By, Reason},
    tls,
    wire::{self, SignItem, SignRequest, WatchBundleRequest, authority_client::AuthorityClient, sign_result::Outcome},
};

use super::{
    authority::{Answer, Answers, Ask, Authority, InForce, Signing, Trust},
    book::{Problem, pause},
};
use crate::limits;

type Connector = HttpsConnector<HttpConnector>;
type Stub = AuthorityClient<Client<Connector, tonic::body::Body>>;

/// Where the authority is, and what it and we are recognised by.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// `host:port`.
    pub address: String,
    /// The name in its certificate; the host where it is not told.
    pub server_name: Option<String>,
    /// Our token, read for every call: the kubelet writes another one before it ends.
    pub token_file: PathBuf,
    /// The roots, as the cluster publishes them.
    pub bundle_file: PathBuf,
    /// Whose names there are.
    pub trust_domain: TrustDomain,
    /// How long a call may take: [`limits::AUTHORITY_CALL_TIMEOUT`], except in tests.
    pub call_timeout: Duration,
}

/// The command line names no authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of an authority: expected HOST:PORT")]
pub struct AddressError(String);

/// Asks the authority of a cluster.
pub struct Remote {
    config: RemoteConfig,
    origin: Uri,
    server_name: ServerName<'static>,
    trust: watch::Sender<Trust>,
    told: watch::Sender<InForce>,
    /// What the bundle's file said last.
    file: Mutex<Option<Arc<Bundle>>>,
}

fn problem(reason: &str, words: impl Into<String>) -> Problem {
    Problem { reason: reason.to_owned(), words: words.into() }
}

impl Remote {
    /// Begins to watch the roots. `kept` are those that an earlier agent had in force.
    ///
    /// # Errors
    /// The address is none.
    pub fn start(config: RemoteConfig, kept: Option<Arc<Bundle>>) -> Result<Arc<Self>, AddressError> {
        let wrong = || AddressError(config.address.clone());
        let origin: Uri = format!("https://{}", config.address).parse().map_err(|_| wrong())?;
        let (Some(host), Some(_)) = (origin.host(), origin.port_u16()) else { return Err(wrong()) };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = config.server_name.clone().unwrap_or(host);
        let server_name = ServerName::try_from(name.clone()).map_err(|_| AddressError(name))?;
        let trust = watch::Sender::new(Trust { bundle: kept, ..Trust::default() });
        let (told, file) = (watch::Sender::default(), Mutex::default());
        let remote = Arc::new(Self { config, origin, server_name, trust, told, file });
        remote.read_file();
        tokio::spawn(watch_roots(Arc::downgrade(&remote)));
        tokio::spawn(report(Arc::downgrade(&remote)));
        Ok(remote)
    }

    /// Roots out of the file are in force until the authority has said something, and again when they change while it cannot be asked.
    fn read_file(&self) {
        let read = || {
            let mut pem = Vec::new();
            let limit = u64::try_from(identity_limits::BUNDLE_MAX).unwrap_or(u64::MAX).saturating_add(1);
            let file =
                std::fs::File::open(&self.config.bundle_file).and_then(|file| file.take(limit).read_to_end(&mut pem));
            file.map_err(|error| problem("no_roots", format!("{}: {error}", self.config.bundle_file.display())))?;
            Bundle::from_pem(&pem)
                .map_err(|error| problem("bad_roots", format!("{}: {error}", self.config.bundle_file.display())))
        };
        match read() {
            Ok(bundle) => {
                let bundle = Arc::new(bundle);
                let mut known = self.file.lock().unwrap_or_else(PoisonError::into_inner);
                let is_first = known.is_none();
                let is_news = known.as_ref() != Some(&bundle);
                *known = Some(Arc::clone(&bundle));
                drop(known);
                let has_some = self.trust.borrow().bundle.is_some();
                if is_news && !(is_first && has_some) {
                    self.trust.send_modify(|trust| trust.bundle = Some(bundle));
                }
            }
            Err(problem) => self.complain(problem),
        }
    }

    fn complain(&self, problem: Problem) {
        self.trust.send_if_modified(|trust| {
            let is_news = trust.problem.as_ref() != Some(&problem);
            if is_news {
                tracing::warn!(
                    reason = problem.reason,
                    error = problem.words,
                    "no news of the roots; those in force stay"
                );
                trust.problem = Some(problem);
            }
            is_news
        });
    }

    /// Whom we take for the authority: who is signed by a root in force, or by one of the file, which may be newer than what was kept.
    fn connect(&self) -> Result<Stub, Problem> {
        let in_force = self.trust.borrow().bundle.clone();
        let of_file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let roots: Vec<CertificateDer<'static>> =
            in_force.iter().chain(&of_file).flat_map(|bundle| bundle.roots().iter().cloned()).collect();
        if roots.is_empty() {
            return Err(problem("no_roots", "there are no roots yet to know the authority by"));
        }
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let mut tls = tls::authority_client(Arc::new(store)).map_err(|error| problem("tls", error.to_string()))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limits::AUTHORITY_CONNECT_TIMEOUT));
        let name = Arc::new(FixedServerNameResolver::new(self.server_name.clone()));
        let https = HttpsConnector::new(tcp, tls, true, name);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(limits::AUTHORITY_PING)
            .http2_keep_alive_timeout(limits::AUTHORITY_PING)
            .build(https);
        Ok(AuthorityClient::with_origin(client, self.origin.clone())
            .max_decoding_message_size(limits::AUTHORITY_ANSWER_MAX))
    }

    fn authorized<T>(&self, message: T) -> Result<Request<T>, Problem> {
        let path = self.config.token_file.display();
        let mut token = String::new();
        std::fs::File::open(&self.config.token_file)
            .and_then(|file| file.take(limits::TOKEN_BYTES_MAX).read_to_string(&mut token))
            .map_err(|error| problem("token", format!("{path}: {error}")))?;
        let mut value: MetadataValue<_> =
            format!("Bearer {}", token.trim()).parse().map_err(|_| problem("token", format!("{path} has no token")))?;
        value.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }

    async fn call(&self, asks: &[Ask]) -> Result<Answers, Problem> {
        let in_force = self.told.borrow().clone();
        let items = asks.iter().map(|Ask { pod, request }| SignItem {
            pod_uid: pod.id.to_string(),
            pod_name: pod.name.to_string(),
            namespace: pod.account.namespace.to_string(),
            service_account: pod.account.name.to_string(),
            csr_der: request.clone(),
        });
        let message = SignRequest {
            items: items.collect(),
            bundle_sha256: in_force.bundle_sha256,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            reissued_epoch: in_force.reissued,
        };
        let (mut stub, request) = (self.connect()?, self.authorized(message)?);
        let asked = SystemTime::now();
        let reply = timeout(self.config.call_timeout, stub.sign(request))
            .await
            .map_err(|_| problem("timeout", format!("no answer within {} s", self.config.call_timeout.as_secs())))?
            .map_err(|status| of_status(&status))?
            .into_inner();
        Ok(Answers {
            answers: reply.results.into_iter().map(of_result).collect(),
            clock_ahead_ms: clock_ahead(reply.now_unix_ms, asked, SystemTime::now()),
        })
    }

    /// Takes roots that the authority gave out.
    fn take(&self, message: &wire::Bundle) -> Result<(), Problem> {
        if message.trust_domain != self.config.trust_domain.as_str() {
            let words = format!(
                "the authority's trust domain is {:?}, ours is {}",
                shorten(&message.trust_domain),
                self.config.trust_domain
            );
            return Err(problem("wrong_trust_domain", words));
        }
        let bundle =
            Bundle::from_pem(message.roots_pem.as_bytes()).map_err(|error| problem("bad_roots", error.to_string()))?;
        if bundle.sha256() != message.sha256 {
            return Err(problem("bad_roots", "their hash is another than the authority says"));
        }
        self.trust.send_modify(|trust| {
            if trust.bundle.as_deref() != Some(&bundle) {
                trust.bundle = Some(Arc::new(bundle));
            }
            trust.epoch = trust.epoch.max(message.reissue_epoch);
            trust.problem = None;
        });
        Ok(())
    }

    /// Follows the authority's roots until the stream ends. Returns whether it said anything.
    async fn follow(&self) -> (bool, Problem) {
        let in_force = self.told.borrow().clone();
        let message = WatchBundleRequest {
            bundle_sha256: in_force.bundle_sha256,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            reissued_epoch: in_force.reissued,
        };
        let (mut stub, request) = match self.connect().and_then(|stub| Ok((stub, self.authorized(message)?))) {
            Ok(ready) => ready,
            Err(problem) => return (false, problem),
        };
        let mut stream = match timeout(self.config.call_timeout, stub.watch_bundle(request)).await {
            Ok(Ok(stream)) => stream.into_inner(),
            Ok(Err(status)) => return (false, of_status(&status)),
            Err(_) => return (false, problem("timeout", "the authority does not answer")),
        };
        let mut has_spoken = false;
        loop {
            match stream.message().await {
                Ok(Some(bundle)) => match self.take(&bundle) {
                    Ok(()) => has_spoken = true,
                    Err(problem) => return (false, problem),
                },
                Ok(None) => return (has_spoken, problem("closed", "the authority has ended the watch")),
                Err(status) => return (has_spoken, of_status(&status)),
            }
        }
    }
}

impl Authority for Remote {
    fn sign<'a>(&'a self, asks: &'a [Ask]) -> Signing<'a> {
        Box::pin(self.call(asks))
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    fn told(&self, in_force: InForce) {
        self.told.send_if_modified(|told| {
            let is_news = *told != in_force;
            *told = in_force;
            is_news
        });
    }

    fn name(&self) -> String {
        self.config.address.clone()
    }
}

/// Until the authority is dropped.
async fn watch_roots(remote: std::sync::Weak<Remote>) {
    let mut failures = 0;
    loop {
        let Some(remote) = remote.upgrade() else { return };
        remote.read_file();
        let (has_spoken, problem) = remote.follow().await;
        failures = if has_spoken { 0 } else { failures + 1 };
        // A replica that stops ends its streams; that is no trouble unless the next one does so, too.
        if !has_spoken {
            remote.complain(problem);
        }
        drop(remote);
        tokio::time::sleep(pause(failures, fastrand::f64()).min(limits::AUTHORITY_WATCH_BACKOFF_MAX)).await;
    }
}

/// Tells the authority what is in force here, whenever that has changed: a call that asks for nothing.
async fn report(remote: std::sync::Weak<Remote>) {
    let Some(mut told) = remote.upgrade().map(|remote| remote.told.subscribe()) else { return };
    let mut failures = 0;
    loop {
        if told.changed().await.is_err() {
            return;
        }
        loop {
            told.mark_unchanged();
            let Some(remote) = remote.upgrade() else { return };
            let reported = remote.call(&[]).await;
            drop(remote);
            let Err(problem) = reported else {
                failures = 0;
                break;
            };
            tracing::debug!(
                reason = problem.reason,
                error = problem.words,
                "what is in force here could not be reported; tried again"
            );
            tokio::time::sleep(pause(failures, fastrand::f64()).min(limits::AUTHORITY_WATCH_BACKOFF_MAX)).await;
            failures += 1;
        }
    }
}

/// One item's answer. Sizes are checked with everything else where it is taken.
fn of_result(result: wire::SignResult) -> Answer {
    match result.outcome {
        Some(Outcome::Chain(chain)) => Ok(chain.certificates.into_iter().map(CertificateDer::from).collect()),
        Some(Outcome::Refusal(refusal)) => Err(problem(&shorten(&refusal.code), shorten(&refusal.words))),
        None => Err(problem("bad_answer", "neither a certificate nor a refusal")),
    }
}

/// Why a call failed, by what gRPC says; a broken connection is told by what broke it.
fn of_status(status: &Status) -> Problem {
    let mut words = shorten(status.message());
    let (mut source, mut is_unreachable) = (std::error::Error::source(status), false);
    while let Some(error) = source {
        let is_connect = |error: &hyper_util::client::legacy::Error| error.is_connect();
        is_unreachable |= error.downcast_ref().is_some_and(is_connect);
        words = shorten(&format!("{words}: {error}"));
        if let Some(refusal) = error.downcast_ref::<std::io::Error>().map(weft_identity::refusal)
            && refusal.by == By::Us
        {
            let reason = match refusal.reason {
                Reason::Garbage | Reason::Protocol | Reason::ProtocolVersion | Reason::Algorithms => "broken",
                _ => "authority_not_trusted",
            };
            return problem(reason, refusal.to_string());
        }
        source = error.source();
    }
    let reason = match status.code() {
        _ if is_unreachable => "unreachable",
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "too_many",
        Code::InvalidArgument => "bad_request",
        Code::DeadlineExceeded | Code::Cancelled => "timeout",
        Code::Unavailable => "unreachable",
        Code::Unimplemented | Code::OutOfRange | Code::DataLoss => "bad_answer",
        // What is not gRPC at all comes as one of these, as does what the transport says.
        Code::Unknown | Code::Internal => "broken",
        _ => "refused",
    };
    problem(reason, words)
}

fn shorten(text: &str) -> String {
    let mut end = text.len().min(limits::AUTHORITY_WORDS_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// By how much the authority's clock is ahead: it was read in the middle between question and answer, more or less.
fn clock_ahead(authority_ms: i64, asked: SystemTime, answered: SystemTime) -> Option<i64> {
    let ms = |moment: SystemTime| i64::try_from(moment.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok();
    let (asked, answered) = (ms(asked)?, ms(answered)?);
    (authority_ms > 0).then(|| authority_ms.saturating_sub(asked.midpoint(answered)))
}

#[cfg(test)]
mod tests;
