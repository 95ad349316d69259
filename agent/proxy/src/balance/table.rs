//! Where keys lead: a table that is made anew when endpoints come or go, for all endpoints of one address family.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use weft_policy::{backend_policy::Balance, hash::StableHash};

use super::{maglev::Maglev, ring::Ring};

/// A table of either kind.
#[derive(Debug)]
pub(super) enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

impl Table {
    fn new(balance: Balance, endpoints: impl ExactSizeIterator<Item = SocketAddr>) -> Self {
        match balance {
            Balance::RingHash => Self::Ring(Ring::new(endpoints)),
            _ => Self::Maglev(Maglev::new(endpoints)),
        }
    }

    /// The endpoint of a key, by its place; the next one by the table if that does not take it.
    pub(super) fn find(&self, hash: u64, takes: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(ring) => ring.find(hash, takes),
            Self::Maglev(maglev) => maglev.find(hash, takes),
        }
    }
}

/// The tables of one endpoint set: of both families, and of each.
#[derive(Debug, Default)]
pub(super) struct Tables(Vec<(Range<usize>, Table)>);

impl Tables {
    /// The table for a part of the set.
    pub(super) fn of(
        &mut self,
        part: Range<usize>,
        balance: Balance,
        endpoints: impl ExactSizeIterator<Item = SocketAddr>,
    ) -> &Table {
        let known = self.0.iter().position(|(of, _)| *of == part);
        let place = known.unwrap_or_else(|| {
            self.0.push((part, Table::new(balance, endpoints)));
            self.0.len() - 1
        });
        &self.0[place].1
    }
}

/// What an endpoint is known by: its address and port.
pub(super) fn of_address(seed: u64, address: SocketAddr) -> u64 {
    let mut hash = StableHash::new(seed);
    match address.ip() {
        IpAddr::V4(ip) => hash.bytes(ip.octets()),
        IpAddr::V6(ip) => hash.bytes(ip.octets()),
    }
    hash.bytes(address.port().to_be_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_policy::hash::mix;

    use super::*;

    const KINDS: [Balance; 2] = [Balance::RingHash, Balance::Maglev];
    const KEYS: u64 = 10_000;

    fn address(n: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 8080))
    }

    fn table(balance: Balance, of: &[u32]) -> Table {
        Table::new(balance, of.iter().map(|n| address(*n)))
    }

    /// Where all keys lead, by the endpoint's number.
    fn led(balance: Balance, of: &[u32]) -> Vec<u32> {
        let table = table(balance, of);
        (0..KEYS).map(|key| of[table.find(mix(key), |_| true).unwrap()]).collect()
    }

    fn moved(a: &[u32], b: &[u32]) -> f64 {
        a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / KEYS as f64
    }

    /// How uneven shares may be: a ring's differ by about one over the root of its points, 160 each; a table's by a hundredth.
    fn slack(balance: Balance) -> f64 {
        if balance == Balance::RingHash { 0.45 } else { 0.12 }
    }

    #[test]
    fn an_endpoint_that_goes_moves_its_own_keys_and_hardly_any_others() {
        for balance in KINDS {
            for count in [2_u32, 3, 10, 50] {
                let all: Vec<u32> = (0..count).collect();
                let before = led(balance, &all);
                let after = led(balance, &all[1..]);
                let others = before.iter().zip(&after).filter(|(a, b)| **a != 0 && a != b).count() as f64 / KEYS as f64;
                let share = 1.0 / f64::from(count);
                assert!(moved(&before, &after) <= share * (1.0 + slack(balance)) + 0.03, "{balance:?} {count}");
                assert!(
                    others <= if balance == Balance::RingHash { 0.0 } else { 0.03 },
                    "{balance:?} {count} {others}"
                );
                // And back again: a table has no history.
                assert_eq!(led(balance, &all), before);
            }
        }
    }

    #[test]
    fn shares_are_as_even_as_the_method_promises() {
        for balance in KINDS {
            for count in [2_u32, 5, 20] {
                let led = led(balance, &(0..count).collect::<Vec<_>>());
                for n in 0..count {
                    let share = led.iter().filter(|one| **one == n).count() as f64 / KEYS as f64 * f64::from(count);
                    // Half of it is the keys' own chance.
                    assert!((share - 1.0).abs() < slack(balance), "{balance:?} {n} of {count}: {share}");
                }
            }
        }
    }

    #[test]
    fn a_key_whose_endpoint_does_not_take_it_leads_to_a_fixed_other_one_and_to_the_last_one_left() {
        for balance in KINDS {
            let table = table(balance, &[1, 2, 3, 4, 5]);
            let mut seconds = std::collections::BTreeSet::new();
            for key in 0..200 {
                let hash = mix(key);
                let first = table.find(hash, |_| true).unwrap();
                let second = table.find(hash, |place| place != first).unwrap();
                assert_ne!(first, second);
                assert_eq!(table.find(hash, |place| place != first), Some(second));
                if first == 0 {
                    seconds.insert(second);
                }
                assert_eq!(table.find(hash, |place| place == 3), Some(3));
                assert_eq!(table.find(hash, |_| false), None);
            }
            assert!(seconds.len() > 1, "{balance:?}: the keys of one endpoint must not all fall upon one other");
        }
    }

    #[test]
    fn very_many_endpoints_and_none_make_tables_of_bounded_size() {
        for balance in KINDS {
            assert_eq!(table(balance, &[]).find(7, |_| true), None);
            let many: Vec<u32> = (0..70_000).collect();
            assert!(table(balance, &many).find(7, |_| true).is_some());
        }
        let Table::Ring(_) = table(Balance::RingHash, &[1]) else { panic!("no ring") };
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn coming_and_going_move_no_more_than_their_share(mut all in proptest::collection::btree_set(0..1000_u32, 2..24), which: proptest::sample::Index) {
            for balance in KINDS {
                let with: Vec<u32> = all.iter().copied().collect();
                let gone = *which.get(&with);
                all.remove(&gone);
                let without: Vec<u32> = all.iter().copied().collect();
                all.insert(gone);
                let moved = moved(&led(balance, &with), &led(balance, &without));
                prop_assert!(moved <= (1.0 + slack(balance)) / with.len() as f64 + 0.03, "{:?} {} of {}", balance, moved, with.len());
            }
        }
    }
}
