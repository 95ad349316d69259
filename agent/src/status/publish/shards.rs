//! Which pod is in which object. A pod stays where it is, so that a change of one rewrites one object, and nothing moves about.

use std::collections::BTreeMap;

use weft_crds::{
    limits::{NODE_SHARD_PODS_MAX, NODE_SHARDS_MAX},
    weft::node_workloads::PublishedPod,
};
use weft_policy::names::WorkloadId;

/// The pods of one object.
pub(super) type Shard = BTreeMap<WorkloadId, PublishedPod>;

/// The objects of this node by number; `None` for one that cannot be read.
pub(super) type Shards = BTreeMap<u16, Option<Shard>>;

/// How the objects should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    /// By number; none is empty.
    pub(super) shards: BTreeMap<u16, Shard>,
    /// Pods for which no object has room.
    pub(super) left_out: usize,
}

/// Puts every wanted pod into an object: the one that it is in, or else the first that has room.
pub(super) fn assign(present: &Shards, mut wanted: BTreeMap<WorkloadId, PublishedPod>) -> Assignment {
    let mut shards: BTreeMap<u16, Shard> = BTreeMap::new();
    for (number, shard) in present {
        for id in shard.iter().flat_map(BTreeMap::keys) {
            let into = shards.entry(*number).or_default();
            // Whatever is left in another shard goes there with the next write of it.
            if into.len() < NODE_SHARD_PODS_MAX
                && let Some((id, pod)) = wanted.remove_entry(id)
            {
                into.insert(id, pod);
            }
        }
    }
    let mut numbers = 0..NODE_SHARDS_MAX;
    let mut number = numbers.next();
    let mut left_out = 0;
    for (id, pod) in wanted {
        while let Some(full) = number
            && shards.get(&full).is_some_and(|shard| shard.len() >= NODE_SHARD_PODS_MAX)
        {
            number = numbers.next();
        }
        match number {
            Some(number) => drop(shards.entry(number).or_default().insert(id, pod)),
            None => left_out += 1,
        }
    }
    shards.retain(|_, shard| !shard.is_empty());
    Assignment { shards, left_out }
}

/// What has to be written: `None` for an object that is to go. Those that take something back come first.
pub(super) fn changes(present: &Shards, wanted: &BTreeMap<u16, Shard>) -> Vec<(u16, Option<Shard>)> {
    let gone = present.keys().filter(|number| !wanted.contains_key(number)).map(|number| (*number, None));
    let changed = wanted.iter().filter(|(number, shard)| {
        let before = present.get(number).and_then(Option::as_ref);
        before != Some(shard)
    });
    let mut changes: Vec<(u16, Option<Shard>)> =
        gone.chain(changed.map(|(number, shard)| (*number, Some(shard.clone())))).collect();
    let takes_back = |number: &u16, after: &Option<Shard>| match (present.get(number), after) {
        (Some(Some(before)), Some(after)) => before.keys().any(|id| !after.contains_key(id)),
        (Some(None), _) | (_, None) => true,
        (None, Some(_)) => false,
    };
    changes.sort_by_key(|(number, after)| (!takes_back(number, after), *number));
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_policy::names::ServiceAccountKey;

    use super::*;

    fn pod(id: u32) -> (WorkloadId, PublishedPod) {
        let id = WorkloadId::new(&format!("u{id:05}"));
        let account = ServiceAccountKey::new("shop", "web");
        let pod = PublishedPod { id: id.clone(), name: "p".into(), account, ips: ["10.0.0.1".parse().unwrap()].into() };
        (id, pod)
    }

    fn pods(ids: impl IntoIterator<Item = u32>) -> BTreeMap<WorkloadId, PublishedPod> {
        ids.into_iter().map(pod).collect()
    }

    fn present(assignment: &Assignment) -> Shards {
        assignment.shards.iter().map(|(number, shard)| (*number, Some(shard.clone()))).collect()
    }

    #[test]
    fn pods_fill_objects_in_turn_and_gaps_first() {
        let first = assign(&Shards::new(), pods(0..40));
        assert_eq!(first.shards.values().map(BTreeMap::len).collect::<Vec<_>>(), [16, 16, 8]);
        // One goes and two come: one object loses, the same one takes the first, and the last one the other.
        let second = assign(&present(&first), pods((0..42).filter(|id| *id != 3)));
        assert_eq!(second.shards.values().map(BTreeMap::len).collect::<Vec<_>>(), [16, 16, 9]);
        let written: Vec<u16> = changes(&present(&first), &second.shards).iter().map(|(number, _)| *number).collect();
        assert_eq!(written, [0, 2]);
    }

    #[test]
    fn more_pods_than_all_objects_hold_are_counted() {
        let all = u32::from(NODE_SHARDS_MAX) * u32::try_from(NODE_SHARD_PODS_MAX).unwrap();
        let found = assign(&Shards::new(), pods(0..all + 5));
        assert_eq!((found.shards.len(), found.left_out), (usize::from(NODE_SHARDS_MAX), 5));
    }

    #[test]
    fn what_is_taken_back_is_written_first_and_what_cannot_be_read_is_written_anew() {
        let before: Shards = BTreeMap::from([(0, Some(pods([1, 2]))), (1, Some(pods([3]))), (2, None), (7, None)]);
        let wanted = BTreeMap::from([(0, pods([1, 2, 9])), (1, pods([4])), (2, pods([5])), (3, pods([6]))]);
        let order: Vec<u16> = changes(&before, &wanted).iter().map(|(number, _)| *number).collect();
        assert_eq!(order, [1, 2, 7, 0, 3]);
    }

    proptest! {
        #[test]
        fn every_pod_is_in_one_object_and_none_moves(
            steps in proptest::collection::vec(proptest::collection::btree_set(0..120_u32, 0..100), 1..6),
        ) {
            let mut now = Assignment::default();
            for wanted in steps {
                let next = assign(&present(&now), pods(wanted.iter().copied()));
                let all: Vec<WorkloadId> = next.shards.values().flat_map(|shard| shard.keys().cloned()).collect();
                prop_assert_eq!(all.len(), wanted.len());
                prop_assert!(next.shards.values().all(|shard| !shard.is_empty() && shard.len() <= NODE_SHARD_PODS_MAX));
                for (number, shard) in &now.shards {
                    for id in shard.keys().filter(|id| all.contains(id)) {
                        prop_assert!(next.shards[number].contains_key(id), "{id} has moved");
                    }
                }
                prop_assert_eq!(changes(&present(&next), &next.shards), vec![]);
                prop_assert_eq!(assign(&present(&next), pods(wanted)), Assignment { shards: next.shards.clone(), left_out: 0 });
                now = next;
            }
        }
    }
}
