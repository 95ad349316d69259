//! A map whose copies share what is the same. Each snapshot of a large cluster differs from the one before in a handful of entries;
//! copying all of them would take longer than everything else about a change.
//!
//! The well-known persistent maps (imbl, rpds) are under the MPL, which weft does not link. This one does less: a fixed number of
//! hash maps, of which a change copies only those that it touches.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map},
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    ops::Index,
    sync::Arc,
};

/// Parts: a copy takes one count each, and a change copies one part. With 10,000 entries both are of one size.
const PARTS: usize = 128;

/// `None`: empty.
type Part<K, V> = Option<Arc<HashMap<K, V, RandomState>>>;

/// A map that is cheap to copy, and to change after that.
pub struct SharedMap<K, V> {
    hasher: RandomState,
    parts: Box<[Part<K, V>]>,
    len: usize,
}

impl<K: Hash + Eq, V> SharedMap<K, V> {
    /// The value of a key. Takes no lock, allocates nothing.
    #[must_use]
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.parts[self.place(key)].as_ref()?.get(key)
    }

    /// Whether there is a value.
    #[must_use]
    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Bits that the maps themselves do not place their entries by.
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % PARTS
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SharedMap<K, V> {
    /// Puts a value in place; returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.place(&key);
        let part = self.parts[place].get_or_insert_with(|| Arc::new(HashMap::with_hasher(self.hasher.clone())));
        let old = Arc::make_mut(part).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes a value out.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let place = self.place(key);
        let slot = &mut self.parts[place];
        // What is not there must not be copied to find that out.
        let part = slot.as_mut().filter(|part| part.contains_key(key))?;
        let old = Arc::make_mut(part).remove(key);
        if part.is_empty() {
            *slot = None;
        }
        self.len -= usize::from(old.is_some());
        old
    }
}

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { parts: self.parts.iter(), part: None }
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

/// All entries of a [`SharedMap`].
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    parts: std::slice::Iter<'a, Part<K, V>>,
    part: Option<hash_map::Iter<'a, K, V>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.part.as_mut().and_then(Iterator::next) {
                return Some(entry);
            }
            self.part = self.parts.next()?.as_deref().map(HashMap::iter);
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

// Not derived: neither needs anything of keys and values.
impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { hasher: self.hasher.clone(), parts: self.parts.clone(), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), parts: (0..PARTS).map(|_| None).collect(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Hash + Eq + Borrow<Q>, Q: Hash + Eq + ?Sized, V> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry found for key")
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_and_its_copies_stay_as_they_were(
            steps in proptest::collection::vec((0..3_u8, 0..300_u16, any::<u8>()), 0..200),
        ) {
            let (mut shared, mut map) = (SharedMap::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (what, key, value) in steps {
                match what {
                    0 => prop_assert_eq!(shared.insert(key, value), map.insert(key, value)),
                    1 => prop_assert_eq!(shared.remove(&key), map.remove(&key)),
                    _ => copies.push((shared.clone(), map.clone())),
                }
                prop_assert_eq!((shared.get(&key), shared.contains_key(&key)), (map.get(&key), map.contains_key(&key)));
            }
            copies.push((shared, map));
            for (shared, map) in copies {
                prop_assert_eq!((shared.len(), shared.is_empty()), (map.len(), map.is_empty()));
                let entries: BTreeMap<u16, u8> = shared.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(&entries, &map);
                prop_assert_eq!(shared.keys().count(), map.len());
                prop_assert_eq!(shared.values().count(), map.len());
            }
        }
    }
}
