//! Against a server that is real: TLS, HTTP/2, gRPC, on a loopback port.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Response, codegen::tokio_stream::Stream};
use tower::Service as _;
use weft_identity::{
    authority::{Profile, Root},
    key::PrivateKey,
    request,
    testing::TestAuthority,
    wire::{SignResponse, SignResult, authority_server},
};
use weft_policy::names::{ServiceAccountKey, WorkloadId};

use super::{super::book::PodRef, *};

const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "weft-ca.test";

/// What the server has seen and what it says.
struct Played {
    authority: TestAuthority,
    bundle: watch::Sender<wire::Bundle>,
    tokens: Mutex<Vec<String>>,
    reports: Mutex<Vec<(String, u64)>>,
    watches: AtomicUsize,
    refuse: Mutex<Option<Status>>,
    huge: bool,
}

type Shared = Arc<Played>;

impl Played {
    fn new() -> Shared {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Self)) -> Shared {
        let authority = TestAuthority::new("cluster.local");
        let bundle = watch::Sender::new(message(&authority.bundle, 0));
        let mut played = Self {
            authority,
            bundle,
            tokens: Mutex::default(),
            reports: Mutex::default(),
            watches: AtomicUsize::default(),
            refuse: Mutex::default(),
            huge: false,
        };
        change(&mut played);
        Arc::new(played)
    }

    fn sign(&self, item: &SignItem) -> Outcome {
        let account = ServiceAccountKey::new(&item.namespace, &item.service_account);
        let id = self.authority.trust_domain.account(&account).unwrap();
        if item.pod_uid == "elsewhere" {
            let (code, words) = ("not_on_node".to_owned(), "the pod runs on another node".to_owned());
            return Outcome::Refusal(wire::Refusal { code, words, retryable: false });
        }
        let public = request::check(&item.csr_der, &id).unwrap().public_key;
        let chain = self.authority.issuer.sign(&id, &public, &Profile::default(), SystemTime::now()).unwrap();
        let mut certificates: Vec<Vec<u8>> = chain.iter().map(|certificate| certificate.to_vec()).collect();
        if self.huge {
            certificates.push(vec![0; 10 << 20]);
        }
        Outcome::Chain(wire::Chain { certificates })
    }
}

fn message(bundle: &Bundle, epoch: u64) -> wire::Bundle {
    wire::Bundle {
        roots_pem: bundle.to_pem(),
        sha256: bundle.sha256(),
        reissue_epoch: epoch,
        trust_domain: "cluster.local".to_owned(),
        now_unix_ms: 1,
    }
}

struct Answering(Shared);

#[tonic::async_trait]
impl authority_server::Authority for Answering {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.0.tokens.lock().unwrap().push(token.to_owned());
        if let Some(status) = self.0.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        let message = request.into_inner();
        self.0.reports.lock().unwrap().push((message.bundle_sha256, message.reissued_epoch));
        let results = message.items.iter().map(|item| SignResult { outcome: Some(self.0.sign(item)) }).collect();
        let ahead = SystemTime::now() + Duration::from_secs(100);
        let now_unix_ms = i64::try_from(ahead.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        Ok(Response::new(SignResponse { results, now_unix_ms, bundle_sha256: String::new() }))
    }

    type WatchBundleStream = std::pin::Pin<Box<dyn Stream<Item = Result<wire::Bundle, Status>> + Send>>;

    async fn watch_bundle(&self, _: Request<WatchBundleRequest>) -> Result<Response<Self::WatchBundleStream>, Status> {
        self.0.watches.fetch_add(1, Ordering::SeqCst);
        if let Some(status) = self.0.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        let mut bundles = self.0.bundle.subscribe();
        bundles.mark_changed();
        Ok(Response::new(Box::pin(futures_util::stream::unfold(bundles, |mut bundles| async move {
            bundles.changed().await.ok()?;
            let bundle = bundles.borrow_and_update().clone();
            Some((Ok(bundle), bundles))
        }))))
    }
}

/// A server, until it is dropped.
struct Server {
    addr: SocketAddr,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

async fn serve(played: &Shared, at: Option<SocketAddr>) -> Server {
    let key = PrivateKey::generate().unwrap();
    let ttl = Duration::from_secs(3600);
    let chain = played.authority.issuer.sign_server(&[NAME.to_owned()], &key, ttl, SystemTime::now()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls::authority_server(chain, &key).unwrap()));
    let listener = TcpListener::bind(at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tasks, played) = (Arc::<Mutex<Vec<JoinHandle<()>>>>::default(), played.clone());
    let inner = tasks.clone();
    tasks.lock().unwrap().push(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, played) = (acceptor.clone(), played.clone());
            inner.lock().unwrap().push(tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let server = authority_server::AuthorityServer::new(Answering(played));
                let service = hyper::service::service_fn(move |request| server.clone().call(request));
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }));
        }
    }));
    Server { addr, tasks }
}

/// What the kubelet would mount.
fn mounted(bundle: Option<&Bundle>, token: Option<&str>) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    if let Some(bundle) = bundle {
        std::fs::write(directory.path().join("roots"), bundle.to_pem()).unwrap();
    }
    if let Some(token) = token {
        std::fs::write(directory.path().join("token"), token).unwrap();
    }
    directory
}

fn config(addr: SocketAddr, mounted: &Path) -> RemoteConfig {
    RemoteConfig {
        address: addr.to_string(),
        server_name: Some(NAME.to_owned()),
        token_file: mounted.join("token"),
        bundle_file: mounted.join("roots"),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        call_timeout: Duration::from_secs(30),
    }
}

fn ask(uid: &str) -> Ask {
    let (account, domain) = (ServiceAccountKey::new("shop", "web"), TrustDomain::new("cluster.local").unwrap());
    let request = request::create(&domain.account(&account).unwrap(), &PrivateKey::generate().unwrap()).unwrap();
    Ask { pod: PodRef { id: WorkloadId::new(uid), name: uid.into(), account }, request }
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn certificates_are_asked_for_with_the_token_of_the_moment() {
    let played = Played::new();
    let server = serve(&played, None).await;
    let mounted = mounted(Some(&played.authority.bundle), Some(" first\n"));
    let remote = Remote::start(config(server.addr, mounted.path()), None).unwrap();
    let Answers { answers, clock_ahead_ms } = remote.sign(&[ask("one"), ask("elsewhere")]).await.unwrap();
    assert_eq!(answers[0].as_ref().unwrap().len(), 2);
    let refused = Problem { reason: "not_on_node".to_owned(), words: "the pod runs on another node".to_owned() };
    assert_eq!(answers[1], Err(refused));
    let ahead = clock_ahead_ms.unwrap();
    assert!((70_000..=130_000).contains(&ahead), "{ahead}");
    std::fs::write(mounted.path().join("token"), "second").unwrap();
    remote.sign(&[]).await.unwrap();
    let tokens = played.tokens.lock().unwrap().clone();
    assert_eq!((tokens.first().unwrap().as_str(), tokens.last().unwrap().as_str()), ("Bearer first", "Bearer second"));
}

#[tokio::test]
async fn an_authority_that_cannot_be_asked_is_told_by_its_reason() {
    let played = Played::new();
    let server = serve(&played, None).await;
    let good = mounted(Some(&played.authority.bundle), Some("token"));
    let reason = async |config: RemoteConfig| {
        Remote::start(config, None).unwrap().sign(&[ask("one")]).await.expect_err("it cannot").reason
    };
    let other = TestAuthority::new("cluster.local");
    let foreign = mounted(Some(&other.bundle), Some("token"));
    assert_eq!(reason(config(server.addr, foreign.path())).await, "authority_not_trusted");
    let wrong_name = RemoteConfig { server_name: Some("other.test".to_owned()), ..config(server.addr, good.path()) };
    assert_eq!(reason(wrong_name).await, "authority_not_trusted");
    let no_token = mounted(Some(&played.authority.bundle), None);
    assert_eq!(reason(config(server.addr, no_token.path())).await, "token");
    let no_roots = mounted(None, Some("token"));
    assert_eq!(reason(config(server.addr, no_roots.path())).await, "no_roots");

    for (code, expected) in [
        (Code::Unauthenticated, "unauthenticated"),
        (Code::PermissionDenied, "permission_denied"),
        (Code::ResourceExhausted, "too_many"),
        (Code::Unavailable, "unreachable"),
    ] {
        *played.refuse.lock().unwrap() = Some(Status::new(code, "no"));
        assert_eq!(reason(config(server.addr, good.path())).await, expected);
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = RemoteConfig {
        call_timeout: Duration::from_millis(300),
        ..config(listener.local_addr().unwrap(), good.path())
    };
    assert_eq!(reason(silent).await, "timeout");
    let garbage = listener.local_addr().unwrap();
    let talker = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        }
    });
    assert_eq!(reason(config(garbage, good.path())).await, "broken");
    talker.abort();
    let _ = talker.await;
    assert_eq!(reason(config(garbage, good.path())).await, "unreachable", "nobody listens");

    let huge = Played::with(|played| played.huge = true);
    let server = serve(&huge, None).await;
    let mounted = mounted(Some(&huge.authority.bundle), Some("token"));
    assert_eq!(reason(config(server.addr, mounted.path())).await, "bad_answer");
}

#[tokio::test]
async fn roots_come_from_the_file_first_and_from_the_authority_then() {
    let played = Played::new();
    let server = serve(&played, None).await;
    let mounted = mounted(None, Some("token"));
    let remote = Remote::start(config(server.addr, mounted.path()), None).unwrap();
    let mut trust = remote.trust();
    until("a problem", || trust.borrow().problem.clone().filter(|problem| problem.reason == "no_roots")).await;
    std::fs::write(mounted.path().join("roots"), played.authority.bundle.to_pem()).unwrap();
    until("the roots of the file", || trust.borrow().bundle.clone()).await;
    until("the authority's word", || trust.borrow().problem.is_none().then_some(())).await;

    let other = Root::generate(SystemTime::now()).unwrap();
    let both = vec![played.authority.root.certificate().clone(), other.certificate().clone()];
    let both = Bundle::from_der(both).unwrap();
    played.bundle.send_replace(message(&both, 3));
    until("both roots", || (trust.borrow().bundle.as_deref() == Some(&both)).then_some(())).await;
    assert_eq!(trust.borrow_and_update().epoch, 3);

    // It is told what is in force, without being asked for anything.
    remote.told(InForce { bundle_sha256: both.sha256(), reissued: 3 });
    until("a report", || played.reports.lock().unwrap().contains(&(both.sha256(), 3)).then_some(())).await;

    // What is not to be believed leaves everything as it is.
    for (bad, reason) in [
        (wire::Bundle { trust_domain: "elsewhere".to_owned(), ..message(&both, 9) }, "wrong_trust_domain"),
        (wire::Bundle { roots_pem: "garbage".to_owned(), ..message(&both, 9) }, "bad_roots"),
        (wire::Bundle { sha256: "0".repeat(64), ..message(&both, 9) }, "bad_roots"),
    ] {
        played.bundle.send_replace(bad);
        until(reason, || trust.borrow().problem.clone().filter(|problem| problem.reason == reason)).await;
        assert_eq!((trust.borrow().bundle.as_deref(), trust.borrow().epoch), (Some(&both), 3));
        played.bundle.send_replace(message(&both, 3));
        until("good again", || trust.borrow().problem.is_none().then_some(())).await;
    }
}

#[tokio::test]
async fn a_replica_that_dies_is_followed_by_the_next() {
    let played = Played::new();
    let server = serve(&played, None).await;
    let addr = server.addr;
    let mounted = mounted(Some(&played.authority.bundle), Some("token"));
    let remote = Remote::start(config(addr, mounted.path()), None).unwrap();
    until("a watch", || (played.watches.load(Ordering::SeqCst) == 1).then_some(())).await;
    drop(server);
    until("nobody", || std::net::TcpStream::connect(addr).is_err().then_some(())).await;
    let _server = serve(&played, Some(addr)).await;
    until("another watch", || (played.watches.load(Ordering::SeqCst) >= 2).then_some(())).await;
    let other = Root::generate(SystemTime::now()).unwrap();
    let both = vec![played.authority.root.certificate().clone(), other.certificate().clone()];
    let both = Bundle::from_der(both).unwrap();
    played.bundle.send_replace(message(&both, 0));
    let trust = remote.trust();
    until("its roots", || (trust.borrow().bundle.as_deref() == Some(&both)).then_some(())).await;
}

#[tokio::test]
async fn kept_roots_are_in_force_until_there_is_news() {
    let (kept, played) = (TestAuthority::new("cluster.local").bundle, Played::new());
    let directory = mounted(Some(&played.authority.bundle), Some("token"));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let remote = Remote::start(config(nobody, directory.path()), Some(kept.clone())).unwrap();
    assert_eq!(remote.trust().borrow().bundle, Some(kept), "the file may be older");
    // The authority is known by the file's roots all the same: what was kept may be too old.
    let server = serve(&played, Some(nobody)).await;
    let trust = remote.trust();
    until("news", || (trust.borrow().bundle.as_ref() == Some(&played.authority.bundle)).then_some(())).await;
    drop(server);
}

#[test]
fn addresses_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let start = |address: &str| {
        let config = RemoteConfig {
            address: address.to_owned(),
            server_name: None,
            ..config(SocketAddr::from(([127, 0, 0, 1], 1)), directory.path())
        };
        Remote::start(config, None).map(|_| ())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    for address in ["weft-ca.weft-system.svc:8443", "127.0.0.1:1", "[::1]:8443"] {
        assert_eq!(start(address), Ok(()), "{address}");
    }
    for address in ["", "weft-ca", "weft-ca:", "a b:1", "weft-ca:99999", "https://weft-ca:1"] {
        assert!(start(address).is_err(), "{address:?}");
    }
}
