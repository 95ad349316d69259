//! Finding by labels: pods that a selector selects, and selectors that select a pod, without looking at a whole namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_policy::few::Few;

use super::Name;

type Labels = BTreeMap<String, String>;
/// Namespace, and one label.
type Pair = (Arc<str>, String, String);

/// Things with labels, by each of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Labelled {
    by_pair: BTreeMap<Pair, Few<Name>>,
}

impl Labelled {
    pub(super) fn insert(&mut self, name: &Name, labels: &Labels) {
        for pair in pairs(&name.0, labels) {
            self.by_pair.entry(pair).or_default().insert(name.clone());
        }
    }

    pub(super) fn remove(&mut self, name: &Name, labels: &Labels) {
        for pair in pairs(&name.0, labels) {
            forget(&mut self.by_pair, &pair, name);
        }
    }

    /// Those of a namespace that have all of these labels, and maybe others that have not: the fewest that share one of them.
    pub(super) fn candidates(&self, namespace: &Arc<str>, selector: &Labels) -> impl Iterator<Item = &Name> {
        let of = |pair: Pair| self.by_pair.get(&pair);
        let mut fewest: Option<&Few<Name>> = None;
        for found in pairs(namespace, selector).map(of) {
            // Nothing has this label, so nothing has all of them.
            let Some(found) = found else { return None.into_iter().flatten() };
            fewest = Some(fewest.filter(|fewest| fewest.len() <= found.len()).unwrap_or(found));
        }
        fewest.into_iter().flatten()
    }
}

/// Things that select by labels, each under one label of its selector: whatever it selects has that one.
#[derive(Clone, Debug, Default)]
pub(super) struct Selectors {
    by_pair: BTreeMap<Pair, Few<(Name, usize)>>,
    /// Under which label each selector of a thing is kept.
    kept: BTreeMap<(Name, usize), Pair>,
}

impl Selectors {
    /// Adds the selector of that number of a thing: under the label that the fewest are kept under, so that one that all share
    /// does not make every lookup a walk over all.
    pub(super) fn insert(&mut self, name: &Name, number: usize, selector: &Labels) {
        let count = |pair: &Pair| self.by_pair.get(pair).map_or(0, Few::len);
        let Some(pair) = pairs(&name.0, selector).min_by_key(count) else { return };
        self.by_pair.entry(pair.clone()).or_default().insert((name.clone(), number));
        self.kept.insert((name.clone(), number), pair);
    }

    pub(super) fn remove(&mut self, name: &Name, number: usize) {
        let key = (name.clone(), number);
        if let Some(pair) = self.kept.remove(&key) {
            forget(&mut self.by_pair, &pair, &key);
        }
    }

    /// Those of a namespace that may select something with these labels, each once and in order.
    pub(super) fn candidates(&self, namespace: &Arc<str>, labels: &Labels) -> BTreeSet<&Name> {
        let found = pairs(namespace, labels).filter_map(|pair| self.by_pair.get(&pair));
        found.flatten().map(|(name, _)| name).collect()
    }
}

fn pairs<'a>(namespace: &'a Arc<str>, labels: &'a Labels) -> impl Iterator<Item = Pair> + 'a {
    labels.iter().map(|(key, value)| (Arc::clone(namespace), key.clone(), value.clone()))
}

fn forget<K: Ord, V: Ord>(index: &mut BTreeMap<K, Few<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}
