//! A set that mostly has one element: indexes of what belongs to what hold tens of thousands of them, and a tree for one element takes
//! room for eleven.

use std::{collections::BTreeSet, fmt, iter, mem, option};

/// An ordered set that allocates nothing for one element.
#[derive(Clone, PartialEq, Eq)]
pub struct Few<T>(Repr<T>);

#[derive(Clone, PartialEq, Eq)]
enum Repr<T> {
    One(T),
    /// None, or several.
    Tree(BTreeSet<T>),
}

impl<T: Ord> Few<T> {
    /// Adds an element, unless it is there.
    pub fn insert(&mut self, value: T) {
        match &mut self.0 {
            Repr::One(one) if *one == value => {}
            Repr::Tree(tree) if tree.is_empty() => self.0 = Repr::One(value),
            Repr::Tree(tree) => drop(tree.insert(value)),
            Repr::One(_) => {
                if let Repr::One(one) = mem::replace(&mut self.0, Repr::Tree(BTreeSet::new())) {
                    self.0 = Repr::Tree(BTreeSet::from([one, value]));
                }
            }
        }
    }

    /// Takes an element out.
    pub fn remove(&mut self, value: &T) {
        match &mut self.0 {
            Repr::One(one) if one == value => self.0 = Repr::Tree(BTreeSet::new()),
            Repr::One(_) => {}
            Repr::Tree(tree) => {
                tree.remove(value);
                if tree.len() == 1
                    && let Some(last) = tree.pop_first()
                {
                    self.0 = Repr::One(last);
                }
            }
        }
    }

    /// Whether an element is there.
    #[must_use]
    pub fn contains(&self, value: &T) -> bool {
        match &self.0 {
            Repr::One(one) => one == value,
            Repr::Tree(tree) => tree.contains(value),
        }
    }

    /// The least element.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        match &self.0 {
            Repr::One(one) => Some(one),
            Repr::Tree(tree) => tree.first(),
        }
    }
}

impl<T> Few<T> {
    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::One(_) => 1,
            Repr::Tree(tree) => tree.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, ascending.
    pub fn iter(&self) -> Iter<'_, T> {
        match &self.0 {
            Repr::One(one) => Some(one).into_iter().chain(None.into_iter().flatten()),
            Repr::Tree(tree) => None.into_iter().chain(Some(tree).into_iter().flatten()),
        }
    }
}

/// The elements of a [`Few`].
pub type Iter<'a, T> = iter::Chain<option::IntoIter<&'a T>, iter::Flatten<option::IntoIter<&'a BTreeSet<T>>>>;

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Repr::Tree(BTreeSet::new()))
    }
}

impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self).finish()
    }
}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut few = Self::default();
        values.into_iter().for_each(|value| few.insert(value));
        few
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(steps in proptest::collection::vec((any::<bool>(), 0..5_u8), 0..40)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (add, value) in steps {
                if add {
                    few.insert(value);
                    set.insert(value);
                } else {
                    few.remove(&value);
                    set.remove(&value);
                }
                prop_assert!(few.iter().eq(&set));
                prop_assert_eq!((few.len(), few.is_empty(), few.first()), (set.len(), set.is_empty(), set.first()));
                // Equal sets are equal however they came about.
                prop_assert_eq!(&few, &set.iter().copied().collect());
            }
        }
    }
}
