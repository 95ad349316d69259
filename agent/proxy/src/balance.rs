//! One worker's choices: which backend of a split is next, and which endpoint of a backend. State stays in the worker; nothing here
//! waits or dials.

use std::{
    cell::Cell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_policy::{
    endpoints::{Endpoint, EndpointCell, EndpointSet},
    plan::Balance,
    split::{Backend, NoBackend, Split, SplitState},
};

/// An endpoint and what this worker has under way to it.
#[derive(Debug)]
pub(crate) struct EndpointLoad {
    pub(crate) endpoint: Endpoint,
    in_flight: Cell<u32>,
}

impl EndpointLoad {
    pub(crate) fn new(endpoint: Endpoint) -> Rc<Self> {
        Rc::new(Self { endpoint, in_flight: Cell::new(0) })
    }

    /// Counts one request or connection until the guard is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }
}

/// One request or connection under way.
#[derive(Debug)]
pub(crate) struct InFlight(Rc<EndpointLoad>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

#[derive(Debug)]
struct CellState {
    set: Arc<EndpointSet>,
    loads: Vec<Rc<EndpointLoad>>,
    /// The next in turn.
    next: usize,
    used: Instant,
}

impl CellState {
    fn new(set: Arc<EndpointSet>, before: &[Rc<EndpointLoad>], next: usize) -> Self {
        let known = |endpoint: &Endpoint| before.iter().find(|load| load.endpoint == *endpoint).cloned();
        let loads = set
            .ready
            .iter()
            .map(|endpoint| known(endpoint).unwrap_or_else(|| EndpointLoad::new(endpoint.clone())))
            .collect();
        Self { set, loads, next, used: Instant::now() }
    }
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

    /// An endpoint that is ready and was not tried, or none; of the address family of `like` if there is one.
    pub(crate) fn endpoint(
        &mut self,
        cell: &EndpointCell,
        balance: Balance,
        like: IpAddr,
        tried: &[SocketAddr],
    ) -> Option<Rc<EndpointLoad>> {
        let now = self.now;
        let set = cell.load();
        let state = self.cells.entry(cell.id()).or_insert_with(|| CellState::new(Arc::clone(&set), &[], 0));
        if !Arc::ptr_eq(&state.set, &set) {
            *state = CellState::new(Arc::clone(&set), &state.loads, state.next);
        }
        state.used = now;
        let ready = set.ready_like(like);
        let first_of_family =
            if std::ptr::eq(ready.as_ptr(), set.ready.as_ptr()) { 0 } else { set.ready.len() - ready.len() };
        let loads = &state.loads[first_of_family..first_of_family + ready.len()];
        let count = loads.len();
        if count == 0 {
            return None;
        }
        // From `index` on, the first that was not tried.
        let fresh = |index: usize| {
            (index..count).chain(0..index).find(|index| !tried.contains(&loads[*index].endpoint.address))
        };
        let chosen = match balance {
            Balance::RoundRobin => {
                let chosen = fresh(state.next % count)?;
                state.next = chosen + 1;
                chosen
            }
            Balance::LeastRequest => {
                let first = fresh(self.random.usize(..count))?;
                if count == 1 {
                    first
                } else {
                    // Another one, uniformly among the others.
                    let second = (first + 1 + self.random.usize(..count - 1)) % count;
                    let better = loads[second].in_flight.get() < loads[first].in_flight.get();
                    if better && !tried.contains(&loads[second].endpoint.address) { second } else { first }
                }
            }
        };
        Some(Rc::clone(&loads[chosen]))
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
    use weft_policy::names::{ObjectRef, ServiceKey};

    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn endpoints(count: u8) -> EndpointSet {
        let endpoint = |n: u8| Endpoint { address: SocketAddr::from(([127, 0, 0, n], 80)), workload: None, node: None };
        EndpointSet { ready: (1..=count).map(endpoint).collect(), ..EndpointSet::default() }
    }

    #[test]
    fn round_robin_takes_each_in_turn() {
        let (cell, mut balancer) = (EndpointCell::new(endpoints(3)), Balancer::new(1));
        let picks: Vec<_> = (0..6)
            .map(|_| balancer.endpoint(&cell, Balance::RoundRobin, V4, &[]).unwrap().endpoint.address.ip().to_string())
            .collect();
        assert_eq!(picks, ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    }

    #[test]
    fn least_request_of_two_evens_out() {
        let (cell, mut balancer) = (EndpointCell::new(endpoints(2)), Balancer::new(7));
        let held: Vec<_> =
            (0..100).map(|_| balancer.endpoint(&cell, Balance::LeastRequest, V4, &[]).unwrap().begin()).collect();
        let loads: Vec<_> = balancer.cells[&cell.id()].loads.iter().map(|load| load.in_flight.get()).collect();
        assert_eq!(loads, [50, 50]);
        drop(held);
        assert!(balancer.cells[&cell.id()].loads.iter().all(|load| load.in_flight.get() == 0));
    }

    #[test]
    fn tried_endpoints_are_not_chosen_again() {
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            let (cell, mut balancer) = (EndpointCell::new(endpoints(4)), Balancer::new(3));
            let mut tried = Vec::new();
            while let Some(load) = balancer.endpoint(&cell, balance, V4, &tried) {
                assert!(!tried.contains(&load.endpoint.address));
                tried.push(load.endpoint.address);
            }
            assert_eq!(tried.len(), 4, "{balance:?}");
        }
    }

    #[test]
    fn endpoints_of_the_same_family_come_first() {
        let addresses = ["127.0.0.1:80", "127.0.0.2:80", "[::1]:80", "[::2]:80"];
        let ready = addresses.map(|address| Endpoint { address: address.parse().unwrap(), workload: None, node: None });
        let cell = EndpointCell::new(EndpointSet { ready: Box::new(ready), ..EndpointSet::default() });
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            let mut balancer = Balancer::new(5);
            for like in [V4, V6].into_iter().cycle().take(20) {
                let chosen = balancer.endpoint(&cell, balance, like, &[]).unwrap().endpoint.address;
                assert_eq!(chosen.is_ipv4(), like.is_ipv4(), "{balance:?}");
            }
        }
        cell.store(endpoints(2));
        assert!(Balancer::new(5).endpoint(&cell, Balance::RoundRobin, V6, &[]).is_some());
    }

    #[test]
    fn a_new_set_keeps_what_is_under_way() {
        let (cell, mut balancer) = (EndpointCell::new(endpoints(1)), Balancer::new(3));
        let held = balancer.endpoint(&cell, Balance::LeastRequest, V4, &[]).unwrap().begin();
        cell.store(endpoints(2));
        for _ in 0..50 {
            let next = balancer.endpoint(&cell, Balance::LeastRequest, V4, &[]).unwrap();
            assert_eq!(next.endpoint.address.ip().to_string(), "127.0.0.2");
        }
        drop(held);
        cell.store(EndpointSet::default());
        assert!(balancer.endpoint(&cell, Balance::LeastRequest, V4, &[]).is_none());
    }

    #[test]
    fn unused_state_is_forgotten() {
        let (cell, mut balancer) = (Arc::new(EndpointCell::new(endpoints(1))), Balancer::new(3));
        let backend = Backend::new(ServiceKey::new("shop", "web"), 80, 1, Arc::new(EndpointCell::new(endpoints(1))));
        let split = Split::new(ObjectRef::new("Service", "shop", "web"), Box::new([backend]));
        balancer.endpoint(&cell, Balance::RoundRobin, V4, &[]).unwrap();
        balancer.backend(&split).unwrap();
        balancer.sweep(Instant::now(), Duration::from_secs(60));
        assert_eq!((balancer.cells.len(), balancer.splits.len()), (1, 1));
        balancer.sweep(Instant::now() + Duration::from_secs(61), Duration::from_secs(60));
        assert_eq!((balancer.cells.len(), balancer.splits.len()), (0, 0));
    }
}
