//! Source ports for transparent connections: which ports of the block are free for one client address and one application port.
//!
//! The table only keeps this agent from giving one port out twice. What the kernel holds (a client's own connection, the
//! agent that is being replaced) the caller asks the kernel.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use super::limits::LEASE_SHARDS;

/// Between whom connections are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoints {
    /// In whose namespace: two pods may well have equal loopback and link-local addresses.
    pub(crate) netns_cookie: u64,
    /// The client's address.
    pub(crate) client: IpAddr,
    /// The application's address and port.
    pub(crate) to: SocketAddr,
}

/// The ports that are leased out.
#[derive(Debug)]
pub(crate) struct PortLeases {
    block: RangeInclusive<u16>,
    shards: Vec<Arc<Mutex<Shard>>>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard {
    /// Where the search begins. It goes round the block, so that a port comes up again only after all others: the one that was given
    /// back last is the likeliest to be in TIME_WAIT.
    next: u16,
    leased: HashMap<Endpoints, HashSet<u16>>,
}

/// A port, given back on drop.
#[derive(Debug)]
pub(crate) struct PortLease {
    shard: Arc<Mutex<Shard>>,
    endpoints: Endpoints,
    port: u16,
}

impl PortLeases {
    pub(crate) fn new(block: RangeInclusive<u16>) -> Self {
        let shard = || Arc::new(Mutex::new(Shard { next: *block.start(), leased: HashMap::new() }));
        Self { shards: (0..LEASE_SHARDS).map(|_| shard()).collect(), block, hasher: RandomState::new() }
    }

    /// How many ports one pair of endpoints can have at one time.
    pub(crate) fn limit(&self) -> usize {
        self.block.len()
    }

    /// The next free port that is not `except`; `None` when all are leased.
    pub(crate) fn lease(&self, endpoints: Endpoints, except: u16) -> Option<PortLease> {
        let index = usize::try_from(self.hasher.hash_one(endpoints)).unwrap_or_default() % self.shards.len();
        let shard = &self.shards[index];
        let mut table = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let Shard { next, leased } = &mut *table;
        let taken = leased.entry(endpoints).or_default();
        let mut found = None;
        for _ in 0..self.block.len() {
            let port = *next;
            *next = if port == *self.block.end() { *self.block.start() } else { port + 1 };
            if port != except && taken.insert(port) {
                found = Some(port);
                break;
            }
        }
        if taken.is_empty() {
            leased.remove(&endpoints);
        }
        drop(table);
        found.map(|port| PortLease { shard: Arc::clone(shard), endpoints, port })
    }
}

impl PortLease {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        let mut table = self.shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = table.leased.get_mut(&self.endpoints) {
            taken.remove(&self.port);
            if taken.is_empty() {
                table.leased.remove(&self.endpoints);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: RangeInclusive<u16> = 100..=103;

    fn endpoints(client: &str, to: &str) -> Endpoints {
        Endpoints { netns_cookie: 1, client: client.parse().expect("client"), to: to.parse().expect("to") }
    }

    #[test]
    fn a_leased_port_is_not_given_twice_and_exhaustion_is_told() {
        let leases = PortLeases::new(BLOCK);
        let pair = endpoints("10.0.0.1", "10.0.0.2:80");
        let held: Vec<_> = (0..4).map(|_| leases.lease(pair, 0).expect("free")).collect();
        let ports: HashSet<u16> = held.iter().map(PortLease::port).collect();
        assert_eq!(ports, HashSet::from([100, 101, 102, 103]));
        assert!(leases.lease(pair, 0).is_none());
        drop(held);
        assert!(leases.lease(pair, 0).is_some());
    }

    #[test]
    fn other_endpoints_have_ports_of_their_own() {
        let leases = PortLeases::new(BLOCK);
        let pairs = [
            endpoints("10.0.0.1", "10.0.0.2:80"),
            endpoints("10.0.0.1", "10.0.0.2:81"),
            endpoints("10.0.0.3", "10.0.0.2:80"),
        ];
        let held: Vec<_> =
            pairs.iter().flat_map(|pair| (0..4).map(|_| leases.lease(*pair, 0).expect("free"))).collect();
        assert_eq!(held.len(), 12);
    }

    #[test]
    fn the_port_given_back_last_comes_last() {
        let leases = PortLeases::new(BLOCK);
        let pair = endpoints("10.0.0.1", "10.0.0.2:80");
        let order: Vec<u16> = (0..8).map(|_| leases.lease(pair, 0).expect("free").port()).collect();
        assert_eq!(order, [100, 101, 102, 103, 100, 101, 102, 103]);
    }

    #[test]
    fn the_clients_own_port_is_skipped() {
        let leases = PortLeases::new(BLOCK);
        let pair = endpoints("10.0.0.1", "10.0.0.2:80");
        let held: Vec<_> = (0..3).map(|_| leases.lease(pair, 101).expect("free")).collect();
        assert!(held.iter().all(|lease| lease.port() != 101));
        assert!(leases.lease(pair, 101).is_none());
    }

    #[test]
    fn nothing_is_kept_of_endpoints_without_leases() {
        let leases = PortLeases::new(BLOCK);
        for host in 0..100_u8 {
            drop(leases.lease(endpoints(&format!("10.0.0.{host}"), "10.0.0.2:80"), 0));
        }
        assert!(leases.shards.iter().all(|shard| shard.lock().expect("shard").leased.is_empty()));
    }
}
