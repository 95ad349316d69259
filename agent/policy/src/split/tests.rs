use proptest::prelude::*;

use super::*;
use crate::endpoints::{Endpoint, EndpointSet};

fn ready() -> EndpointSet {
    let address = "10.0.0.1:80".parse().unwrap();
    EndpointSet { ready: Box::new([Endpoint { address, workload: None, node: None }]), ..EndpointSet::default() }
}

fn split(weights: &[u64]) -> Split {
    let backends = weights
        .iter()
        .enumerate()
        .map(|(index, &weight)| {
            let service = ServiceKey::new("shop", &format!("b{index}"));
            Backend::new(service, 80, weight, Arc::new(EndpointCell::new(ready())))
        })
        .collect();
    Split::new(ObjectRef::new("TrafficSplit", "shop", "s"), backends)
}

fn picked(split: &Split, state: &mut SplitState) -> Result<usize, NoBackend> {
    let backend = split.pick(state)?;
    Ok(split.backends.iter().position(|one| std::ptr::eq(one, backend)).unwrap())
}

fn count(split: &Split, state: &mut SplitState, picks: usize) -> Vec<usize> {
    let mut counts = vec![0; split.backends.len()];
    for _ in 0..picks {
        counts[picked(split, state).unwrap()] += 1;
    }
    counts
}

#[test]
fn shares_are_exact_over_a_round() {
    for (weights, picks, expected) in [
        ([90, 10].as_slice(), 200, [180, 20].as_slice()),
        (&[9, 1], 200, &[180, 20]),
        (&[1, 1, 1], 300, &[100, 100, 100]),
        (&[5, 0, 5], 100, &[50, 0, 50]),
        (&[99, 1], 100, &[99, 1]),
        (&[1], 7, &[7]),
        (&[limits::WEIGHT_MAX, limits::WEIGHT_MAX], 100, &[50, 50]),
        // Over the limit counts as the limit.
        (&[u64::MAX, limits::WEIGHT_MAX], 100, &[50, 50]),
    ] {
        assert_eq!(count(&split(weights), &mut SplitState::default(), picks), expected, "{weights:?}");
    }
}

#[test]
fn choices_are_spread_and_not_bunched() {
    let (split, mut state) = (split(&[5, 1, 1]), SplitState::default());
    let order: Vec<usize> = (0..7).map(|_| picked(&split, &mut state).unwrap()).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn choice_that_is_given_back_is_made_again_if_it_still_can_be() {
    let (split, mut state) = (split(&[90, 10]), SplitState::default());
    // Every other choice is of no use to anybody.
    let mut used = [0, 0];
    for _ in 0..100 {
        let unused = picked(&split, &mut state).unwrap();
        state.give_back(unused);
        used[picked(&split, &mut state).unwrap()] += 1;
    }
    assert_eq!(used, [90, 10]);
    state.give_back(7);
    state.give_back(1);
    split.backends[1].endpoints.store(EndpointSet::default());
    assert_eq!(count(&split, &mut state, 10), [10, 0]);
    for _ in 0..2 * limits::RETURNED_CHOICES_MAX {
        state.give_back(0);
    }
    assert_eq!(state.returned.len(), limits::RETURNED_CHOICES_MAX);
}

#[test]
fn backends_without_ready_endpoints_are_skipped_and_counted() {
    let (split, mut state) = (split(&[60, 30, 10]), SplitState::default());
    assert_eq!(count(&split, &mut state, 100), [60, 30, 10]);
    assert_eq!(state.skipped(), 0);
    split.backends[0].endpoints.store(EndpointSet::default());
    assert_eq!(count(&split, &mut state, 400), [0, 300, 100]);
    assert_eq!(state.skipped(), 1);
    assert!(split.has_ready());
    split.backends[0].endpoints.store(ready());
    let counts = count(&split, &mut state, 100);
    assert!(counts[0].abs_diff(60) <= 2 && counts[1].abs_diff(30) <= 2 && counts[2].abs_diff(10) <= 2, "{counts:?}");
    assert_eq!(state.skipped(), 0);
}

#[test]
fn nothing_to_choose_says_why() {
    let mut state = SplitState::default();
    assert_eq!(picked(&split(&[]), &mut state), Err(NoBackend::SplitZero));
    assert_eq!(picked(&split(&[0, 0]), &mut state), Err(NoBackend::SplitZero));
    let unready = split(&[1, 0, 2]);
    for backend in &unready.backends {
        backend.endpoints.store(EndpointSet::default());
    }
    assert_eq!(picked(&unready, &mut state), Err(NoBackend::NoEndpoints));
    assert_eq!(state.skipped(), 2);
    assert!(!unready.has_ready());
    // Only draining endpoints are as good as none.
    let draining = EndpointSet { draining: ready().ready, ..EndpointSet::default() };
    unready.backends[0].endpoints.store(draining);
    assert_eq!(picked(&unready, &mut state), Err(NoBackend::NoEndpoints));
    unready.backends[1].endpoints.store(ready());
    assert_eq!(picked(&unready, &mut state), Err(NoBackend::NoEndpoints), "weight 0 takes nothing, ready or not");
}

#[test]
fn a_state_of_another_split_starts_over() {
    let mut state = SplitState::default();
    let (two, three) = (split(&[9, 1]), split(&[1, 1, 1]));
    let _ = count(&two, &mut state, 5);
    assert_eq!(count(&three, &mut state, 3), [1, 1, 1]);
}

fn weights() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(prop_oneof![0u64..100, Just(0), Just(limits::WEIGHT_MAX), any::<u64>()], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_share_is_right_after_any_number_of_picks(weights in weights(), picks in 1usize..600) {
        prop_assume!(weights.iter().any(|&weight| weight > 0));
        let counts = count(&split(&weights), &mut SplitState::default(), picks);
        let total: f64 = weights.iter().map(|&weight| weight.min(limits::WEIGHT_MAX) as f64).sum();
        for (index, &weight) in weights.iter().enumerate() {
            let due = picks as f64 * weight.min(limits::WEIGHT_MAX) as f64 / total;
            // A backend is never more than one turn ahead, nor further behind than the others can be ahead together.
            let others = weights.len() as f64;
            prop_assert!((counts[index] as f64 - due).abs() <= others.max(1.0), "{weights:?} {counts:?} due {due}");
        }
    }

    #[test]
    fn shares_recover_after_any_changes_of_readiness(
        weights in weights(),
        changes in proptest::collection::vec((0usize..8, any::<bool>(), 0usize..40), 0..40),
    ) {
        prop_assume!(weights.iter().any(|&weight| weight > 0));
        let (split, mut state) = (split(&weights), SplitState::default());
        for (index, up, picks) in changes {
            let backend = &split.backends[index % split.backends.len()];
            backend.endpoints.store(if up { ready() } else { EndpointSet::default() });
            for _ in 0..picks {
                match picked(&split, &mut state) {
                    Ok(index) => prop_assert!(split.backends[index].weight > 0 && split.backends[index].endpoints.has_ready()),
                    Err(error) => prop_assert_eq!(error, NoBackend::NoEndpoints),
                }
            }
        }
        for backend in &split.backends {
            backend.endpoints.store(ready());
        }
        let picks = 500;
        let counts = count(&split, &mut state, picks);
        prop_assert_eq!(state.skipped(), 0);
        let total: f64 = weights.iter().map(|&weight| weight.min(limits::WEIGHT_MAX) as f64).sum();
        for (index, &weight) in weights.iter().enumerate() {
            let due = picks as f64 * weight.min(limits::WEIGHT_MAX) as f64 / total;
            prop_assert!((counts[index] as f64 - due).abs() <= 2.0 * weights.len() as f64, "{weights:?} {counts:?} due {due}");
        }
    }
}

#[test]
fn a_split_that_keeps_shares_chooses_a_backend_without_endpoints_as_often_as_any() {
    let split = split(&[50, 50]).keeping_shares();
    split.backends[1].endpoints.store(EndpointSet::default());
    let mut state = SplitState::default();
    assert_eq!(count(&split, &mut state, 10), [5, 5]);
    assert_eq!(state.skipped(), 0);
}
