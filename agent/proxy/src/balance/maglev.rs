//! Consistent hashing by a table (Eisenbud 2016, "Maglev: A Fast and Reliable Software Network Load Balancer", 3.4): endpoints take entries in
//! turns, each in an order of its own, until the table is full. Shares are more even than on a ring, and finding one is one look; an endpoint
//! that comes or goes moves a few keys of the others, too.

use std::net::SocketAddr;

use weft_policy::hash::mix;

use super::table::of_address;

/// Entries: a prime, so that every step visits all (the paper's small size, and Envoy's default). Always the same one, because a table of
/// another size has all keys elsewhere.
const ENTRIES: usize = 65_537;
/// How often a key is hashed on where its endpoint does not take it, before all entries are looked through in order.
const REHASHES: u64 = 16;

/// The table: for each entry the place of its endpoint.
#[derive(Debug)]
pub(super) struct Maglev(Box<[u16]>);

impl Maglev {
    /// A table of these endpoints, of which those beyond 65,535 have no part. The same endpoints make the same table everywhere.
    pub(super) fn new(endpoints: impl Iterator<Item = SocketAddr>) -> Self {
        const FREE: u16 = u16::MAX;
        let spread = |address| {
            let (offset, skip) = (of_address(1, address), of_address(2, address));
            (offset % ENTRIES as u64, skip % (ENTRIES as u64 - 1) + 1)
        };
        // Where each looks next, and how far it goes then.
        let mut orders: Vec<(u64, u64)> = endpoints.take(usize::from(FREE)).map(spread).collect();
        if orders.is_empty() {
            return Self(Box::default());
        }
        let mut entries = vec![FREE; ENTRIES].into_boxed_slice();
        let mut free = ENTRIES;
        'filled: loop {
            for (place, (at, skip)) in (0..FREE).zip(&mut orders) {
                while entries[*at as usize] != FREE {
                    *at = (*at + *skip) % ENTRIES as u64;
                }
                entries[*at as usize] = place;
                free -= 1;
                if free == 0 {
                    break 'filled;
                }
            }
        }
        Self(entries)
    }

    /// The endpoint of a key; if that does not take it, the one of the key hashed on.
    pub(super) fn find(&self, hash: u64, takes: impl Fn(usize) -> bool) -> Option<usize> {
        let size = self.0.len() as u64;
        if size == 0 {
            return None;
        }
        let entry = |round: u64| (if round == 0 { hash } else { mix(hash.wrapping_add(mix(round))) } % size) as usize;
        let hashed = (0..=REHASHES).map(|round| usize::from(self.0[entry(round)]));
        let (before, after) = self.0.split_at(entry(0));
        hashed.chain(after.iter().chain(before).map(|place| usize::from(*place))).find(|place| takes(*place))
    }
}
