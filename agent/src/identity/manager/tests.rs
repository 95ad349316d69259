use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use prometheus::Registry;
use rustls::pki_types::CertificateDer;
use tokio::{sync::Semaphore, task::JoinHandle};
use weft_identity::{
    Credentials, SpiffeId,
    authority::{Profile, Root},
    testing::TestAuthority,
};
use weft_policy::names::WorkloadId;

use super::{
    super::{authority::Signing, keep::tests::Memory},
    *,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// More calls than any test makes at one time.
const OPEN: usize = 1000;
const HOUR: Duration = Duration::from_secs(3600);

/// What the authority does with a call.
#[derive(Clone, Copy, Debug)]
enum Play {
    /// Signs what was asked for.
    Good,
    /// Signs for somebody else.
    WrongIdentity,
    /// Below another root.
    OtherRoot,
    Garbage,
    /// One certificate of 10 MiB.
    Huge,
    OtherKey,
    Expired,
    /// Begins in two hours: this node's clock is behind.
    Future,
    Empty,
    Refused,
    /// One answer less than was asked for.
    TooFew,
    Down,
}

/// Plays its script; after its end, everything is good.
struct Played {
    authority: TestAuthority,
    ttl: Duration,
    script: Mutex<VecDeque<Play>>,
    trust: watch::Sender<Trust>,
    told: watch::Sender<InForce>,
    gate: Semaphore,
    calls: AtomicUsize,
    most: AtomicUsize,
    now: AtomicUsize,
    largest: AtomicUsize,
}

impl Played {
    fn new(ttl: Duration, script: impl IntoIterator<Item = Play>) -> Arc<Self> {
        let authority = TestAuthority::new("cluster.local");
        let trust = watch::Sender::new(Trust { bundle: Some(authority.bundle.clone()), ..Trust::default() });
        Arc::new(Self {
            authority,
            ttl,
            script: Mutex::new(script.into_iter().collect()),
            trust,
            told: watch::Sender::default(),
            gate: Semaphore::new(OPEN),
            calls: AtomicUsize::default(),
            most: AtomicUsize::default(),
            now: AtomicUsize::default(),
            largest: AtomicUsize::default(),
        })
    }

    fn answer(&self, ask: &Ask, play: Play) -> Answer {
        let id = self.authority.trust_domain.account(&ask.pod.account).unwrap();
        let public = request::check(&ask.request, &id).unwrap().public_key;
        let sign = |id: &SpiffeId, public: &[u8], at| {
            Ok(self.authority.issuer.sign(id, public, &Profile::unchecked(self.ttl), at).unwrap())
        };
        let now = SystemTime::now();
        match play {
            Play::WrongIdentity => sign(&self.authority.id("shop", "admin"), &public, now),
            Play::OtherRoot => TestAuthority::new("cluster.local")
                .issuer
                .sign(&id, &public, &Profile::default(), now)
                .map_err(|_| unreachable!("it signs")),
            Play::Garbage => Ok(vec![b"garbage".to_vec().into()]),
            Play::Huge => Ok(vec![CertificateDer::from(vec![0x30; 10 << 20])]),
            Play::OtherKey => sign(&id, &PrivateKey::generate().unwrap().public(), now),
            Play::Expired => sign(&id, &public, now - 48 * HOUR),
            Play::Future => sign(&id, &public, now + 2 * HOUR),
            Play::Empty => Ok(Vec::new()),
            Play::Refused => {
                Err(Problem { reason: "not_on_node".to_owned(), words: "the pod is elsewhere".to_owned() })
            }
            Play::Good | Play::TooFew | Play::Down => sign(&id, &public, now),
        }
    }
}

impl Authority for Played {
    fn sign<'a>(&'a self, asks: &'a [Ask]) -> Signing<'a> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.largest.fetch_max(asks.len(), Ordering::SeqCst);
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _open = self.gate.acquire().await.unwrap();
            self.now.fetch_sub(1, Ordering::SeqCst);
            let play = self.script.lock().unwrap().pop_front().unwrap_or(Play::Good);
            let mut answers: Vec<Answer> = asks.iter().map(|ask| self.answer(ask, play)).collect();
            match play {
                Play::Down => return Err(Problem { reason: "unreachable".to_owned(), words: String::new() }),
                Play::TooFew => drop(answers.pop()),
                _ => {}
            }
            Ok(Answers { answers, clock_ahead_ms: Some(-1500) })
        })
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    fn told(&self, in_force: InForce) {
        self.told.send_replace(in_force);
    }

    fn name(&self) -> String {
        "played".to_owned()
    }
}

struct Running {
    store: Arc<Store>,
    registry: Registry,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start(authority: &Arc<Played>, keep: &Arc<Memory>, accounts: &[&str]) -> Running {
    let store = Store::new(authority.authority.trust_domain.clone(), authority.name());
    let registry = Registry::new();
    let metrics = IdentityMetrics::register(&registry, &store).unwrap();
    let manager = Manager::new(Arc::clone(&store), authority.clone(), keep.clone(), metrics);
    for account in accounts {
        store.use_account(pod(account));
    }
    Running { store, registry, task: tokio::spawn(manager.run()) }
}

fn pod(account: &str) -> PodRef {
    PodRef { id: WorkloadId::new(account), name: account.into(), account: key(account) }
}

fn key(account: &str) -> ServiceAccountKey {
    ServiceAccountKey::new("shop", account)
}

impl Running {
    fn serial(&self, account: &str) -> Option<String> {
        self.store.of(&key(account)).map(|credential| credential.svid().serial.clone())
    }

    fn problem(&self, account: &str) -> Option<String> {
        self.store.view().accounts.into_iter().find(|row| row.service_account == account)?.problem
    }

    fn failures(&self) -> Vec<(String, u64)> {
        let family =
            self.registry.gather().into_iter().find(|family| family.name() == "weft_certificate_failures_total");
        family.map_or_else(Vec::new, |family| {
            let row = |metric: &prometheus::proto::Metric| {
                (metric.get_label()[0].value().to_owned(), metric.get_counter().get_value() as u64)
            };
            family.get_metric().iter().map(row).collect()
        })
    }
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
async fn answers_that_are_not_taken_leave_what_there_is_and_are_told_apart() {
    for (play, reason) in [
        (Play::WrongIdentity, "wrong_identity"),
        (Play::OtherRoot, "unknown_issuer"),
        (Play::Garbage, "bad_encoding"),
        (Play::Huge, "too_large"),
        (Play::OtherKey, "wrong_key"),
        (Play::Expired, "expired"),
        (Play::Future, "not_yet_valid"),
        (Play::Empty, "no_certificate"),
        (Play::Refused, "not_on_node"),
        (Play::TooFew, "bad_answer"),
        (Play::Down, "unreachable"),
    ] {
        let authority = Played::new(HOUR, []);
        let agent = start(&authority, &Arc::default(), &["web"]);
        let first = until("the first certificate", || agent.serial("web")).await;
        // All at once, without the spread: as after new roots that do not trust what there is.
        authority.script.lock().unwrap().push_back(play);
        agent.store.book().hurry(
            &key("web"),
            Problem { reason: String::new(), words: String::new() },
            agent.store.now(),
        );
        agent.store.wanted.notify_one();
        until("the failure", || agent.failures().contains(&(reason.to_owned(), 1)).then_some(())).await;
        // What is served is the old one, until another has come: half a second later.
        let second = until("the next certificate", || agent.serial("web").filter(|serial| *serial != first)).await;
        assert_ne!(first, second, "{play:?}");
        assert_eq!(agent.problem("web"), None, "{play:?}");
        assert_eq!(authority.calls.load(Ordering::SeqCst), 3, "{play:?}: asked, failed, and asked again");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_again_and_again_and_never_missing() {
    let authority = Played::new(Duration::from_secs(3), []);
    let agent = start(&authority, &Arc::default(), &["web"]);
    let mut serials = vec![until("the first certificate", || agent.serial("web")).await];
    let start = Instant::now();
    while serials.len() < 4 {
        let credential = agent.store.of(&key("web")).expect("there is always one");
        assert!(!credential.is_expired(SystemTime::now()));
        if serials.last() != Some(&credential.svid().serial) {
            serials.push(credential.svid().serial.clone());
        }
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(2), "not faster than half a life: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_restart_with_the_authority_down_changes_no_certificate() {
    let (authority, keep) = (Played::new(HOUR, []), Arc::<Memory>::default());
    let agent = start(&authority, &keep, &["web", "db"]);
    let serial = until("certificates", || agent.serial("web").zip(agent.serial("db"))).await;
    drop(agent);
    authority.script.lock().unwrap().extend([Play::Down; 1000]);
    let calls = authority.calls.load(Ordering::SeqCst);
    let agent = start(&authority, &keep, &["web", "db"]);
    assert_eq!(until("what was kept", || agent.serial("web").zip(agent.serial("db"))).await, serial);
    assert_eq!(authority.calls.load(Ordering::SeqCst), calls, "nobody was asked");
    // One that was not kept is asked for, in vain, and said so.
    agent.store.use_account(pod("new"));
    until("a problem", || agent.problem("new").filter(|problem| problem.starts_with("unreachable"))).await;
    assert_eq!(agent.serial("new"), None);
}

#[tokio::test]
async fn what_was_kept_under_other_roots_is_asked_for_anew() {
    let keep = Arc::<Memory>::default();
    let agent = start(&Played::new(HOUR, []), &keep, &["web"]);
    let before = until("a certificate", || agent.serial("web")).await;
    drop(agent);
    let agent = start(&Played::new(HOUR, []), &keep, &["web"]);
    assert_ne!(until("another certificate", || agent.serial("web")).await, before);
}

#[tokio::test]
async fn an_authority_that_comes_back_is_found() {
    let authority = Played::new(HOUR, [Play::Down, Play::Down]);
    let agent = start(&authority, &Arc::default(), &["web"]);
    until("a problem", || agent.problem("web")).await;
    until("a certificate", || agent.serial("web")).await;
    assert_eq!((agent.problem("web"), agent.failures()), (None, vec![("unreachable".to_owned(), 2)]));
    let ahead = agent.registry.gather();
    let ahead = ahead.iter().find(|family| family.name() == "weft_authority_clock_ahead_seconds").unwrap();
    assert!((ahead.get_metric()[0].get_gauge().get_value() + 1.5).abs() < 1e-9);
}

#[tokio::test]
async fn an_expired_certificate_is_taken_out_of_force() {
    let authority = Played::new(Duration::from_secs(2), [Play::Good]);
    let agent = start(&authority, &Arc::default(), &["web"]);
    until("a certificate", || agent.serial("web")).await;
    authority.script.lock().unwrap().extend([Play::Down; 1000]);
    let mut changed = agent.store.changed();
    until("its end", || agent.serial("web").is_none().then_some(())).await;
    assert!(changed.has_changed().unwrap() || *changed.borrow_and_update() > 0);
    assert!(agent.failures().contains(&("expired".to_owned(), 1)));
}

#[tokio::test]
async fn peers_are_checked_with_new_roots_at_once() {
    let authority = Played::new(HOUR, []);
    let agent = start(&authority, &Arc::default(), &["web"]);
    let serial = until("a certificate", || agent.serial("web")).await;
    let epoch = agent.store.of(&key("web")).unwrap().epoch();
    let other = Root::generate(SystemTime::now()).unwrap();
    let both = vec![authority.authority.root.certificate().clone(), other.certificate().clone()];
    let both = Arc::new(Bundle::from_der(both).unwrap());
    authority.trust.send_modify(|trust| trust.bundle = Some(both.clone()));
    until("the new roots", || (agent.store.of(&key("web"))?.bundle() == &both).then_some(())).await;
    assert_eq!(agent.serial("web"), Some(serial.clone()), "the certificate is the same");
    assert_ne!(agent.store.of(&key("web")).unwrap().epoch(), epoch, "connections are not shared with it");
    until("a report", || (authority.told.borrow().bundle_sha256 == both.sha256()).then_some(())).await;
    // The authority wants everything anew, and is told when that is done.
    authority.trust.send_modify(|trust| trust.epoch = 5);
    until("another certificate", || agent.serial("web").filter(|new| *new != serial)).await;
    until("a report", || (authority.told.borrow().reissued == 5).then_some(())).await;
    // Roots that do not trust what there is: it stays, and is asked for at once.
    let foreign = Arc::new(Bundle::from_der(vec![other.certificate().clone()]).unwrap());
    let calls = authority.calls.load(Ordering::SeqCst);
    authority.trust.send_modify(|trust| trust.bundle = Some(foreign));
    until("a call", || (authority.calls.load(Ordering::SeqCst) > calls).then_some(())).await;
    assert!(agent.serial("web").is_some());
}

#[tokio::test]
async fn six_hundred_accounts_are_asked_for_in_eight_calls_at_a_time() {
    let authority = Played::new(HOUR, []);
    authority.gate.forget_permits(OPEN);
    let names: Vec<String> = (0..600).map(|number| format!("a{number}")).collect();
    let agent = start(&authority, &Arc::default(), &names.iter().map(String::as_str).collect::<Vec<_>>());
    until("eight calls", || (authority.now.load(Ordering::SeqCst) == limits::IDENTITY_CALLS_MAX).then_some(())).await;
    authority.gate.add_permits(OPEN);
    until("everything", || names.iter().all(|name| agent.serial(name).is_some()).then_some(())).await;
    assert_eq!(authority.most.load(Ordering::SeqCst), limits::IDENTITY_CALLS_MAX);
    assert_eq!(authority.largest.load(Ordering::SeqCst), identity_limits::BATCH_MAX);
    assert_eq!(authority.calls.load(Ordering::SeqCst), 600_usize.div_ceil(identity_limits::BATCH_MAX));
}
