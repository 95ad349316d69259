//! Choices among places `0..count` that know nothing of a request. `takes` says whether a place may be chosen: it was not tried yet, and it is
//! not put aside. None is chosen if none may be.

use fastrand::Rng;

/// How often a random place is drawn before those that may be chosen are counted: with most of them free, once is enough.
const DRAWS: usize = 3;

/// The one whose turn it is.
pub(super) fn in_turn(next: &mut usize, count: usize, takes: impl Fn(usize) -> bool) -> Option<usize> {
    let from = *next % count.max(1);
    let chosen = (from..count).chain(0..from).find(|place| takes(*place))?;
    *next = chosen + 1;
    Some(chosen)
}

/// Any of them, each as likely as the others.
pub(super) fn at_random(random: &mut Rng, count: usize, takes: impl Fn(usize) -> bool) -> Option<usize> {
    if count == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let place = random.usize(..count);
        if takes(place) {
            return Some(place);
        }
    }
    let free = (0..count).filter(|place| takes(*place)).count();
    if free == 0 {
        return None;
    }
    (0..count).filter(|place| takes(*place)).nth(random.usize(..free))
}

/// The cheaper one of two that are drawn at random.
pub(super) fn cheaper_of_two(
    random: &mut Rng,
    count: usize,
    takes: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let first = at_random(random, count, &takes)?;
    // Another one, uniformly among the others.
    let second = at_random(random, count - 1, |place| takes(other(place, first))).map(|place| other(place, first));
    Some(second.filter(|second| cost(*second) < cost(first)).unwrap_or(first))
}

/// The places without `one`, numbered through.
fn other(place: usize, one: usize) -> usize {
    if place < one { place } else { place + 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fastrand::Rng;
    use proptest::prelude::*;

    use super::{at_random, cheaper_of_two, in_turn};

    /// Sum of squared deviations over what is expected of each.
    fn chi_square(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn those_that_are_drawn_are_even_with_and_without_some_that_are_not_to_be() {
        for (count, closed) in [(10, 0..0), (10, 0..9), (20, 5..15), (100, 2..98)] {
            let mut random = Rng::with_seed(11);
            let takes = |place: usize| !closed.contains(&place);
            let open: Vec<usize> = (0..count).filter(|place| takes(*place)).collect();
            let (mut one, mut two) = (vec![0; count], vec![0; count]);
            for _ in 0..20_000 {
                one[at_random(&mut random, count, takes).unwrap()] += 1;
                two[cheaper_of_two(&mut random, count, takes, |_| 1.0).unwrap()] += 1;
            }
            for counts in [one, two] {
                assert!(closed.clone().all(|place| counts[place] == 0));
                let counts: Vec<u32> = open.iter().map(|place| counts[*place]).collect();
                // At most 9 degrees of freedom: beyond 40 once in 100,000, and the seed is fixed.
                assert!(chi_square(&counts) < 40.0, "{count} {closed:?} {counts:?}");
            }
        }
    }

    #[test]
    fn a_dearer_one_is_chosen_only_against_itself() {
        let mut random = Rng::with_seed(3);
        let chosen: Vec<_> = (0..1000)
            .map(|_| cheaper_of_two(&mut random, 4, |_| true, |place| if place == 2 { 9.0 } else { 1.0 }).unwrap())
            .collect();
        assert!(!chosen.contains(&2));
        assert_eq!(cheaper_of_two(&mut random, 4, |place| place == 2, |_| 1.0), Some(2));
    }

    proptest! {
        #[test]
        fn one_is_chosen_exactly_if_one_may_be(open in proptest::collection::btree_set(0..12_usize, 0..12), count in 0..12_usize, seed: u64, from: usize) {
            let mut random = Rng::with_seed(seed);
            let takes = |place: usize| open.contains(&place);
            let may: BTreeSet<usize> = (0..count).filter(|place| takes(*place)).collect();
            for chosen in [
                in_turn(&mut from.clone(), count, takes),
                at_random(&mut random, count, takes),
                cheaper_of_two(&mut random, count, takes, |place| place as f64),
            ] {
                prop_assert_eq!(chosen.is_some(), !may.is_empty());
                prop_assert!(chosen.is_none_or(|chosen| may.contains(&chosen)));
            }
        }

        #[test]
        fn turns_differ_by_one_at_most(count in 1..20_usize, rounds in 1..100_usize, from in 0..100_usize) {
            let (mut next, mut counts) = (from, vec![0_usize; count]);
            (0..rounds).for_each(|_| counts[in_turn(&mut next, count, |_| true).unwrap()] += 1);
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        }
    }
}
