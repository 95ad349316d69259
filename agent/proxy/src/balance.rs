//! One worker's choices: which backend of a split is next, and which endpoint of a backend. State stays in the worker; nothing here
//! waits or dials.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_policy::{
    backend_policy::Balance,
    endpoints::{Endpoint, EndpointCell, EndpointSet},
    matcher::RequestHead,
    split::{Backend, NoBackend, Split, SplitState},
};

pub(crate) use self::load::{EndpointLoad, InFlight};
use self::table::Tables;

mod ewma;
mod load;
mod maglev;
mod pick;
mod ring;
mod slow_start;
mod table;

/// Who asks for an endpoint, and for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    /// The client's address.
    pub(crate) source: IpAddr,
    /// What its connection was meant for.
    pub(crate) destination: IpAddr,
    /// The request, if there is one.
    pub(crate) head: Option<RequestHead<'a>>,
}

#[derive(Debug)]
struct CellState {
    set: Arc<EndpointSet>,
    loads: Vec<Rc<EndpointLoad>>,
    tables: Tables,
    /// The next in turn.
    next: usize,
    used: Instant,
}

impl CellState {
    fn new(set: Arc<EndpointSet>) -> Self {
        Self::after(set, &[], 0, None)
    }

    /// One that keeps what is known of endpoints that were there before. Others have come at `now`.
    fn after(set: Arc<EndpointSet>, before: &[Rc<EndpointLoad>], next: usize, now: Option<Instant>) -> Self {
        let known = |endpoint: &Endpoint| before.iter().find(|load| load.endpoint == *endpoint).cloned();
        let timed = set.policy.balance == Balance::PeakEwma;
        let load = |endpoint: &Endpoint| {
            let load = known(endpoint).unwrap_or_else(|| EndpointLoad::since(endpoint.clone(), now));
            load.timed.set(timed);
            load
        };
        let loads = set.ready.iter().map(load).collect();
        Self { set, loads, tables: Tables::default(), next, used: Instant::now() }
    }

    fn choose(&mut self, asker: &Asker<'_>, tried: &[SocketAddr], random: &mut fastrand::Rng) -> Option<usize> {
        let Self { set, loads, tables, next, .. } = self;
        let policy = &*set.policy;
        let ready = set.ready_like(asker.destination);
        let first = if std::ptr::eq(ready.as_ptr(), set.ready.as_ptr()) { 0 } else { set.ready.len() - ready.len() };
        let (loads, count) = (&loads[first..first + ready.len()], ready.len());
        let takes = |place: usize| !tried.contains(&loads[place].endpoint.address);
        let place = match policy.balance {
            balance if balance.hashes() => match policy.hash(asker.head.as_ref(), asker.source) {
                Some(hash) => {
                    let addresses = ready.iter().map(|endpoint| endpoint.address);
                    tables.of(first..first + count, balance, addresses).find(hash, takes)
                }
                // Nothing to go by: better spread than all upon one.
                None => pick::at_random(random, count, takes),
            },
            balance => {
                let mut spread = |takes: &dyn Fn(usize) -> bool| match balance {
                    Balance::RoundRobin => pick::in_turn(next, count, takes),
                    Balance::PeakEwma => {
                        let now = Instant::now();
                        pick::cheaper_of_two(random, count, takes, |place| loads[place].cost(now))
                    }
                    Balance::LeastRequest => {
                        pick::cheaper_of_two(random, count, takes, |place| f64::from(loads[place].in_flight()))
                    }
                    _ => pick::at_random(random, count, takes),
                };
                match policy.slow_start {
                    None => spread(&takes),
                    Some(window) => slowly(window, loads, &takes, spread),
                }
            }
        }?;
        Some(first + place)
    }
}

/// Chooses, and again without an endpoint that has just come, as often as that is to be passed over. If only such are left, one of them is it.
fn slowly(
    window: Duration,
    loads: &[Rc<EndpointLoad>],
    takes: &dyn Fn(usize) -> bool,
    mut spread: impl FnMut(&dyn Fn(usize) -> bool) -> Option<usize>,
) -> Option<usize> {
    let now = Instant::now();
    let first = spread(takes)?;
    let warmth = |place: usize| loads[place].warmth(window, now);
    if fastrand::f64() < warmth(first) {
        return Some(first);
    }
    spread(&|place| takes(place) && warmth(place) >= 1.0).or(Some(first))
}

/// One worker's state of every split and endpoint set that it has used.
#[derive(Debug)]
pub(crate) struct Balancer {
    cells: HashMap<u64, CellState>,
    splits: HashMap<u64, (SplitState, Instant)>,
    random: fastrand::Rng,
    now: Instant,
}

impl Balancer {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            cells: HashMap::new(),
            splits: HashMap::new(),
            random: fastrand::Rng::with_seed(seed),
            now: Instant::now(),
        }
    }

    /// The next backend of a split, and whether others were passed over because nothing of theirs is ready.
    pub(crate) fn backend<'split>(&mut self, split: &'split Split) -> Result<(&'split Backend, bool), NoBackend> {
        let now = self.now;
        let (state, used) = self.splits.entry(split.id()).or_insert_with(|| (SplitState::default(), now));
        *used = now;
        let backend = split.pick(state)?;
        Ok((backend, state.skipped() > 0))
    }

    /// Takes back a choice of a split, by its id, that was not used.
    pub(crate) fn give_back(&mut self, split: u64, backend: usize) {
        if let Some((state, _)) = self.splits.get_mut(&split) {
            state.give_back(backend);
        }
    }

    /// An endpoint that is ready and was not tried, or none, as the policy of its port has it; of the address family of the destination if
    /// there is one.
    pub(crate) fn endpoint(
        &mut self,
        cell: &EndpointCell,
        asker: &Asker<'_>,
        tried: &[SocketAddr],
    ) -> Option<Rc<EndpointLoad>> {
        let now = self.now;
        let set = cell.load();
        let state = self.cells.entry(cell.id()).or_insert_with(|| CellState::new(Arc::clone(&set)));
        if !Arc::ptr_eq(&state.set, &set) {
            *state = CellState::after(Arc::clone(&set), &state.loads, state.next, Some(Instant::now()));
        }
        state.used = now;
        let place = state.choose(asker, tried, &mut self.random)?;
        Some(Rc::clone(&state.loads[place]))
    }

    /// Forgets what was not used for a while: splits and cells get new ids when they are compiled again.
    pub(crate) fn sweep(&mut self, now: Instant, idle: Duration) {
        self.now = now;
        self.cells.retain(|_, state| now.duration_since(state.used) < idle);
        self.splits.retain(|_, (_, used)| now.duration_since(*used) < idle);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};
    use weft_policy::{
        backend_policy::{BackendPolicy, HashKey},
        names::{ObjectRef, ServiceKey},
    };

    use super::*;

    const V4: Asker<'_> = asker(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    const V6: Asker<'_> = asker(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));

    const fn asker<'a>(destination: IpAddr) -> Asker<'a> {
        Asker { source: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)), destination, head: None }
    }

    fn endpoints(count: u8, balance: Balance) -> EndpointSet {
        let endpoint = |n: u8| Endpoint { address: SocketAddr::from(([127, 0, 0, n], 80)), workload: None, node: None };
        EndpointSet {
            ready: (1..=count).map(endpoint).collect(),
            policy: BackendPolicy::shared(balance),
            ..EndpointSet::default()
        }
    }

    fn cell(count: u8, balance: Balance) -> EndpointCell {
        EndpointCell::new(endpoints(count, balance))
    }

    fn next(balancer: &mut Balancer, cell: &EndpointCell) -> String {
        balancer.endpoint(cell, &V4, &[]).unwrap().endpoint.address.ip().to_string()
    }

    #[test]
    fn round_robin_takes_each_in_turn() {
        let (cell, mut balancer) = (cell(3, Balance::RoundRobin), Balancer::new(1));
        let picks: Vec<_> = (0..6).map(|_| next(&mut balancer, &cell)).collect();
        assert_eq!(picks, ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    }

    #[test]
    fn least_request_of_two_evens_out() {
        let (cell, mut balancer) = (cell(2, Balance::LeastRequest), Balancer::new(7));
        let held: Vec<_> = (0..100).map(|_| balancer.endpoint(&cell, &V4, &[]).unwrap().begin()).collect();
        let loads: Vec<_> = balancer.cells[&cell.id()].loads.iter().map(|load| load.in_flight()).collect();
        assert_eq!(loads, [50, 50]);
        drop(held);
        assert!(balancer.cells[&cell.id()].loads.iter().all(|load| load.in_flight() == 0));
    }

    #[test]
    fn peak_ewma_leaves_alone_what_failed_and_forgets_with_another_policy() {
        let (cell, mut balancer) = (cell(2, Balance::PeakEwma), Balancer::new(7));
        let first = balancer.endpoint(&cell, &V4, &[]).unwrap();
        first.begin().failed();
        for _ in 0..50 {
            let load = balancer.endpoint(&cell, &V4, &[]).unwrap();
            assert_ne!(load.endpoint, first.endpoint);
            load.begin().answered();
        }
        cell.store(endpoints(2, Balance::Random));
        let chosen: std::collections::BTreeSet<_> = (0..100).map(|_| next(&mut balancer, &cell)).collect();
        assert_eq!(chosen.len(), 2);
    }

    #[test]
    fn tried_endpoints_are_not_chosen_again() {
        for balance in Balance::ALL {
            let (cell, mut balancer) = (cell(4, balance), Balancer::new(3));
            let mut tried = Vec::new();
            while let Some(load) = balancer.endpoint(&cell, &V4, &tried) {
                assert!(!tried.contains(&load.endpoint.address));
                tried.push(load.endpoint.address);
            }
            assert_eq!(tried.len(), 4, "{balance:?}");
        }
    }

    #[test]
    fn endpoints_of_the_same_family_come_first() {
        let addresses = ["127.0.0.1:80", "127.0.0.2:80", "[::1]:80", "[::2]:80"];
        for balance in Balance::ALL {
            let ready =
                addresses.map(|address| Endpoint { address: address.parse().unwrap(), workload: None, node: None });
            let policy = BackendPolicy::shared(balance);
            let set = EndpointSet { ready: Box::new(ready), policy, ..EndpointSet::default() };
            let (cell, mut balancer) = (EndpointCell::new(set), Balancer::new(5));
            for like in [V4, V6].into_iter().cycle().take(20) {
                let chosen = balancer.endpoint(&cell, &like, &[]).unwrap().endpoint.address;
                assert_eq!(chosen.is_ipv4(), like.destination.is_ipv4(), "{balance:?}");
            }
            cell.store(endpoints(2, balance));
            assert!(Balancer::new(5).endpoint(&cell, &V6, &[]).is_some());
        }
    }

    #[test]
    fn one_key_leads_every_worker_to_one_endpoint_and_none_spreads() {
        for balance in [Balance::RingHash, Balance::Maglev] {
            let policy = BackendPolicy {
                hash_on: vec![HashKey::Header(HeaderName::from_static("x-user"))],
                ..BackendPolicy::balanced(balance)
            };
            let set = EndpointSet { policy: Arc::new(policy), ..endpoints(5, balance) };
            let cell = EndpointCell::new(set);
            let mut used = std::collections::BTreeSet::new();
            for user in 0..50 {
                let mut headers = HeaderMap::new();
                headers.insert("x-user", HeaderValue::from(user));
                let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &headers };
                let asker = Asker { head: Some(head), ..V4 };
                let chosen: Vec<_> = (1..4)
                    .map(|seed| Balancer::new(seed).endpoint(&cell, &asker, &[]).unwrap().endpoint.address)
                    .collect();
                assert!(chosen.iter().all(|one| *one == chosen[0]), "{chosen:?}");
                used.insert(chosen[0]);
            }
            assert_eq!(used.len(), 5, "{balance:?}");
            let mut balancer = Balancer::new(1);
            let spread: std::collections::BTreeSet<_> = (0..100).map(|_| next(&mut balancer, &cell)).collect();
            assert_eq!(spread.len(), 5, "{balance:?}");
        }
    }

    #[test]
    fn an_endpoint_that_comes_gets_a_little_at_first() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
            let slow = |count| {
                let slow_start = Some(Duration::from_secs(3600));
                let policy = Arc::new(BackendPolicy { slow_start, ..BackendPolicy::balanced(balance) });
                EndpointSet { policy, ..endpoints(count, balance) }
            };
            let (cell, mut balancer) = (EndpointCell::new(slow(3)), Balancer::new(1));
            // Those that are there at the start are not new.
            assert!((0..300).filter(|_| next(&mut balancer, &cell) == "127.0.0.3").count() > 60, "{balance:?}");
            cell.store(slow(4));
            let new = (0..4000).filter(|_| next(&mut balancer, &cell) == "127.0.0.4").count();
            // A tenth of a quarter.
            assert!((50..200).contains(&new), "{balance:?}: {new}");
            // If there is nothing else it takes all.
            let others: Vec<SocketAddr> = (1..4).map(|n| SocketAddr::from(([127, 0, 0, n], 80))).collect();
            assert!((0..20).all(|_| balancer.endpoint(&cell, &V4, &others).is_some()));
        }
    }

    #[test]
    fn a_new_set_keeps_what_is_under_way() {
        let (cell, mut balancer) = (cell(1, Balance::LeastRequest), Balancer::new(3));
        let held = balancer.endpoint(&cell, &V4, &[]).unwrap().begin();
        cell.store(endpoints(2, Balance::LeastRequest));
        for _ in 0..50 {
            assert_eq!(next(&mut balancer, &cell), "127.0.0.2");
        }
        drop(held);
        cell.store(EndpointSet::default());
        assert!(balancer.endpoint(&cell, &V4, &[]).is_none());
    }

    #[test]
    fn unused_state_is_forgotten() {
        let (cell, mut balancer) = (Arc::new(cell(1, Balance::RoundRobin)), Balancer::new(3));
        let backend = Backend::new(ServiceKey::new("shop", "web"), 80, 1, Arc::clone(&cell));
        let split = Split::new(ObjectRef::new("Service", "shop", "web"), Box::new([backend]));
        balancer.endpoint(&cell, &V4, &[]).unwrap();
        balancer.backend(&split).unwrap();
        balancer.sweep(Instant::now(), Duration::from_secs(60));
        assert_eq!((balancer.cells.len(), balancer.splits.len()), (1, 1));
        balancer.sweep(Instant::now() + Duration::from_secs(61), Duration::from_secs(60));
        assert_eq!((balancer.cells.len(), balancer.splits.len()), (0, 0));
    }
}
