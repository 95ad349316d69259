//! Which EndpointSlices name which pods. A cluster has hundreds of thousands of endpoints, of which an agent asks for those of its own
//! node's pods: so the index keeps eight bytes for each way in which a pod is named, and whatever it finds is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    sync::Arc,
};

use weft_policy::names::WorkloadId;

use super::Name;
use crate::core::{
    endpoint_slice::{EndpointSlice, SliceEndpoint},
    pod::Pod,
};

/// How an EndpointSlice may name a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mention<'a> {
    /// By its address, for an endpoint that says nothing else.
    Ip(IpAddr),
    /// By namespace and name.
    Name(&'a Arc<str>, &'a Arc<str>),
    /// By its UID.
    Id(&'a Arc<str>),
}

impl<'a> Mention<'a> {
    /// Every way in which a slice names pods.
    pub(super) fn of_slice(slice: &'a EndpointSlice) -> impl Iterator<Item = Self> + 'a {
        slice.endpoints.iter().flat_map(|SliceEndpoint { ip, pod, .. }| {
            let address = pod.is_none().then_some(Self::Ip(*ip));
            let name = pod.as_ref().map(|(name, _)| Self::Name(&slice.meta.namespace, name));
            let id = pod.as_ref().and_then(|(_, uid)| uid.as_ref()).map(Self::Id);
            [address, name, id].into_iter().flatten()
        })
    }
}

/// Whether a slice names a pod.
pub(super) fn mentions(slice: &EndpointSlice, pod: &Pod) -> bool {
    let id = pod.id();
    slice.endpoints.iter().any(|endpoint| match &endpoint.pod {
        None => pod.ips.contains(&endpoint.ip),
        Some((name, uid)) => {
            uid.as_ref() == Some(&id.0) || (*name == pod.meta.name && slice.meta.namespace == pod.meta.namespace)
        }
    })
}

/// Slices by what they name.
#[derive(Clone, Debug, Default)]
pub(super) struct Mentions {
    hasher: RandomState,
    /// Hash of a mention, and number of a slice.
    entries: BTreeSet<(u32, u32)>,
    numbers: BTreeMap<Name, u32>,
    names: BTreeMap<u32, Name>,
}

impl Mentions {
    pub(super) fn insert(&mut self, name: &Name, slice: &EndpointSlice) {
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => self.add(name),
        };
        self.entries.extend(Mention::of_slice(slice).map(|mention| (hash(&self.hasher, mention), number)));
    }

    pub(super) fn remove(&mut self, name: &Name, slice: &EndpointSlice) {
        let Some(number) = self.numbers.remove(name) else { return };
        self.names.remove(&number);
        for mention in Mention::of_slice(slice) {
            self.entries.remove(&(hash(&self.hasher, mention), number));
        }
    }

    /// The slices that may name a pod, in order.
    pub(super) fn candidates(&self, pod: &Pod) -> BTreeSet<&Name> {
        let id = pod.id();
        let addresses = pod.ips.iter().map(|ip| Mention::Ip(*ip));
        let named = [Mention::Name(&pod.meta.namespace, &pod.meta.name), Mention::Id(&id.0)];
        addresses.chain(named).flat_map(|mention| self.with(mention)).collect()
    }

    /// The slices that may name a pod by its UID, in order.
    pub(super) fn by_id(&self, id: &WorkloadId) -> BTreeSet<&Name> {
        self.with(Mention::Id(&id.0)).collect()
    }

    fn with(&self, mention: Mention<'_>) -> impl Iterator<Item = &Name> {
        let hash = hash(&self.hasher, mention);
        self.entries.range((hash, 0)..=(hash, u32::MAX)).filter_map(|(_, number)| self.names.get(number))
    }

    fn add(&mut self, name: &Name) -> u32 {
        let mut number = self.names.last_key_value().map_or(0, |(last, _)| last.wrapping_add(1));
        // Once in four billion slices; there are never so many at one time.
        while self.names.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name.clone());
        number
    }
}

/// Half of a hash that nobody outside can foresee. That it may be the same for two mentions costs a look.
fn hash(hasher: &RandomState, mention: Mention<'_>) -> u32 {
    (hasher.hash_one(mention) >> 32) as u32
}
