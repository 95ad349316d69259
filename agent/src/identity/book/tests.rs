use std::time::UNIX_EPOCH;

use weft_identity::testing::TestAuthority;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn pod(id: &str, account: &str) -> PodRef {
    PodRef { id: WorkloadId::new(id), name: id.into(), account: ServiceAccountKey::new("shop", account) }
}

fn held(authority: &TestAuthority, account: &str, epoch: u64) -> Held {
    Held {
        credential: authority.credential_for("shop", account, 24 * HOUR),
        key: Arc::new(PrivateKey::generate().unwrap()),
        epoch,
    }
}

fn problem(reason: &str) -> Problem {
    Problem { reason: reason.to_owned(), words: String::new() }
}

/// A clock of which both hands are moved.
struct Clock {
    start: SystemTime,
    now: Moment,
}

impl Clock {
    fn new() -> Self {
        let start = SystemTime::now();
        Self { start, now: Moment { wall: start, steady: HOUR } }
    }

    fn pass(&mut self, time: Duration) -> Moment {
        self.now = Moment { wall: self.now.wall + time, steady: self.now.steady + time };
        self.now
    }

    fn set(&mut self, wall: SystemTime) -> Moment {
        self.now.wall = wall;
        self.now
    }
}

/// A book with one account that has a certificate for a day, and the clock when it came.
fn with_certificate() -> (Book, Clock, ServiceAccountKey) {
    let (mut book, clock, authority) = (Book::default(), Clock::new(), TestAuthority::new("cluster.local"));
    let pod = pod("p1", "web");
    let account = pod.account.clone();
    assert!(book.use_account(pod.clone(), clock.now));
    assert_eq!(book.step(clock.now, 10).ask, [pod]);
    assert!(book.took(&account, held(&authority, "web", 0), 0.5, clock.now));
    (book, clock, account)
}

#[test]
fn an_account_is_asked_for_once_however_many_pods_run_as_it() {
    let (mut book, clock) = (Book::default(), Clock::new());
    for id in ["a", "b", "c"] {
        book.use_account(pod(id, "web"), clock.now);
    }
    book.use_account(pod("d", "db"), clock.now);
    let asked = book.step(clock.now, 10).ask;
    assert_eq!(asked, [pod("d", "db"), pod("a", "web")]);
    assert_eq!(book.step(clock.now, 10).ask, [], "not while it is being asked for");
}

#[test]
fn a_certificate_is_renewed_at_half_its_life_and_served_until_it_ends() {
    let (mut book, mut clock, account) = with_certificate();
    let five_minutes_short_of_half = 12 * HOUR - Duration::from_secs(450);
    assert_eq!(book.step(clock.pass(five_minutes_short_of_half), 10), Step::default());
    let due = book.step(clock.pass(Duration::from_secs(600)), 10);
    assert_eq!(due.ask.len(), 1);
    // Whatever fails now, what there is stays.
    while clock.now.wall < clock.start + 24 * HOUR - Duration::from_secs(200) {
        book.failed(&account, problem("unreachable"), 0.5, clock.now);
        assert!(book.iter().all(|(_, entry)| entry.held.is_some()));
        let wait = book.idle(clock.now);
        assert!(wait > Duration::ZERO && wait <= limits::IDENTITY_CLOCK_LOOK);
        clock.pass(Duration::from_secs(151));
        let step = book.step(clock.now, 10);
        assert_eq!(step.ask.len(), 1, "asked again after 150 s at the latest");
    }
    let step = book.step(clock.pass(Duration::from_secs(201)), 10);
    assert_eq!((step.dropped.len(), step.expired.len()), (1, 1));
    assert!(book.iter().all(|(_, entry)| entry.held.is_none()));
}

#[test]
fn renewals_are_spread_by_a_tenth_of_half_a_life() {
    let authority = TestAuthority::new("cluster.local");
    let held = held(&authority, "web", 0);
    let begins = held.credential.svid().not_before;
    let at = |jitter| renewal(&held.credential, jitter).duration_since(begins).unwrap();
    let half = at(0.5);
    assert_eq!(half, (24 * HOUR + Duration::from_secs(300)) / 2);
    assert_eq!((at(0.0), at(1.0)), (half.mul_f64(0.9), half.mul_f64(1.1)));
}

#[test]
fn pauses_double_up_to_a_named_maximum() {
    let at = |failures| pause(failures, 0.5);
    assert_eq!([at(0), at(1), at(2)], [500, 1000, 2000].map(Duration::from_millis));
    assert_eq!([at(9), at(40), at(u32::MAX)], [limits::IDENTITY_BACKOFF_MAX; 3]);
    assert!(pause(0, 0.0) < at(0) && at(0) < pause(0, 1.0));
}

#[test]
fn another_pod_asks_after_a_refusal() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    let both = [pod("a", "web"), pod("b", "web")];
    for pod in &both {
        book.use_account(pod.clone(), clock.now);
    }
    for round in 0..4 {
        assert_eq!(book.step(clock.pass(limits::IDENTITY_BACKOFF_MAX), 10).ask, [both[round % 2].clone()]);
        book.failed(&both[0].account, problem("pod_unknown"), 0.5, clock.now);
    }
}

#[test]
fn a_clock_set_forward_renews_at_once() {
    let (mut book, mut clock, _) = with_certificate();
    clock.pass(Duration::from_secs(30));
    assert_eq!(book.step(clock.now, 10), Step::default());
    clock.set(clock.now.wall + 13 * HOUR);
    let step = book.step(clock.pass(Duration::from_secs(30)), 10);
    assert_eq!((step.jumped, step.ask.len(), step.dropped.len()), (Some(13 * 3600), 1, 0));
    // By more than the certificate lives: it is gone, and asked for at once.
    let (mut book, mut clock, _) = with_certificate();
    book.step(clock.now, 10);
    clock.set(clock.now.wall + 26 * HOUR);
    let step = book.step(clock.now, 10);
    assert_eq!((step.jumped, step.ask.len(), step.expired.len()), (Some(26 * 3600), 1, 1));
}

#[test]
fn a_clock_set_back_by_less_than_a_certificate_is_backdated_renews_later_and_nothing_spins() {
    let (mut book, mut clock, _) = with_certificate();
    book.step(clock.now, 10);
    clock.set(clock.now.wall - Duration::from_secs(240));
    let step = book.step(clock.now, 10);
    assert_eq!((step.jumped, step.ask.len(), step.dropped.len()), (Some(-240), 0, 0));
    let mut rounds = 0;
    while book.step(clock.now, 10).ask.is_empty() {
        let wait = book.idle(clock.now);
        assert!(wait > Duration::ZERO, "no spinning");
        clock.pass(wait);
        rounds += 1;
    }
    let hours = clock.now.steady.as_secs() / 3600 - 1;
    assert!((11..=12).contains(&hours), "half a life and some minutes: {hours}");
    assert!(rounds < 2000);
}

#[test]
fn a_clock_set_back_before_a_certificate_keeps_it_and_asks_for_one_of_now_with_pauses() {
    let (mut book, mut clock, account) = with_certificate();
    book.step(clock.now, 10);
    clock.set(clock.now.wall - 2 * HOUR);
    let step = book.step(clock.now, 10);
    assert_eq!((step.jumped, step.ask.len(), step.dropped.len()), (Some(-2 * 3600), 1, 0));
    // The authority's clock is right, and what it gives begins later still.
    book.failed(&account, problem("not_yet_valid"), 0.5, clock.now);
    let mut asked = 0;
    let end = clock.now.steady + HOUR;
    while clock.now.steady < end {
        let wait = book.idle(clock.now);
        assert!(wait > Duration::ZERO, "no spinning");
        let step = book.step(clock.pass(wait), 10);
        assert_eq!(step.dropped, [], "what there is stays");
        if !step.ask.is_empty() {
            asked += 1;
            book.failed(&account, problem("not_yet_valid"), 0.5, clock.now);
        }
    }
    assert!((24..40).contains(&asked), "every {:?} at last: {asked}", limits::IDENTITY_BACKOFF_MAX);
    // The same with a clock far before any certificate.
    assert_eq!(book.step(clock.set(UNIX_EPOCH), 10).dropped, []);
}

#[test]
fn small_steps_of_the_clock_are_no_jumps() {
    let (mut book, mut clock, _) = with_certificate();
    book.step(clock.now, 10);
    for seconds in [4_i32, -4, 3, -3] {
        let wall = clock.now.wall;
        let moved = Duration::from_secs(seconds.unsigned_abs().into());
        clock.set(if seconds > 0 { wall + moved } else { wall - moved });
        assert_eq!(book.step(clock.now, 10).jumped, None);
    }
}

#[test]
fn an_account_that_nobody_uses_is_forgotten_after_a_while() {
    let (mut book, mut clock, account) = with_certificate();
    book.release(&WorkloadId::new("p1"), clock.now);
    assert_eq!(book.step(clock.pass(limits::IDENTITY_IDLE / 2), 10).dropped, []);
    assert!(!book.idle(clock.now).is_zero());
    // A pod that comes back in time finds it.
    book.use_account(pod("p2", "web"), clock.now);
    assert_eq!(book.step(clock.pass(limits::IDENTITY_IDLE), 10), Step::default());
    book.release(&WorkloadId::new("p2"), clock.now);
    assert_eq!(book.step(clock.pass(limits::IDENTITY_IDLE), 10).dropped, [account]);
    assert_eq!(book.iter().count(), 0);
}

#[test]
fn everything_is_asked_for_again_when_the_epoch_rises() {
    let (mut book, mut clock, account) = with_certificate();
    let authority = TestAuthority::new("cluster.local");
    assert_eq!(book.reissued(), 0);
    book.reissue(3, || 1.0, clock.now);
    assert_eq!(book.step(clock.now, 10).ask, []);
    assert_eq!(book.step(clock.pass(limits::IDENTITY_REISSUE_SPREAD), 10).ask.len(), 1);
    // An answer to what was asked before is asked for again at once.
    assert!(book.took(&account, held(&authority, "web", 2), 0.5, clock.now));
    assert_eq!((book.reissued(), book.step(clock.now, 10).ask.len()), (2, 1));
    assert!(book.took(&account, held(&authority, "web", 3), 0.5, clock.now));
    assert_eq!((book.reissued(), book.step(clock.now, 10).ask.len()), (3, 0));
    book.reissue(3, || 0.0, clock.now);
    assert_eq!(book.step(clock.now, 10).ask, [], "once for each epoch");
    // A new process learns the epoch after it has found what was kept.
    let mut book = Book::default();
    book.use_account(pod("p1", "web"), clock.now);
    assert!(book.took(&account, held(&authority, "web", 3), 0.5, clock.now));
    book.reissue(3, || 0.0, clock.now);
    assert_eq!((book.step(clock.now, 10).ask.len(), book.reissued()), (0, 3));
}

#[test]
fn no_more_is_asked_for_than_there_is_room() {
    let (mut book, clock) = (Book::default(), Clock::new());
    for account in 0..100 {
        book.use_account(pod(&format!("p{account}"), &format!("a{account}")), clock.now);
    }
    assert_eq!(book.step(clock.now, 0).ask.len(), 0);
    assert_eq!(book.step(clock.now, 64).ask.len(), 64);
    assert_eq!(book.step(clock.now, 64).ask.len(), 36);
}
