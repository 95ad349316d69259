//! Consistent hashing on a ring (Karger 1997; ketama): every endpoint has many points on it, and a key goes to the next point. An endpoint that
//! goes leaves its keys to its neighbours and moves no others.

use std::net::SocketAddr;

use weft_policy::hash::mix;

use super::table::of_address;
use crate::limits;

/// The points, ascending, each with the place of its endpoint.
#[derive(Debug)]
pub(super) struct Ring(Box<[(u64, u32)]>);

impl Ring {
    /// A ring of these endpoints. The same endpoints make the same ring everywhere.
    pub(super) fn new(endpoints: impl ExactSizeIterator<Item = SocketAddr>) -> Self {
        let each = points_each(endpoints.len());
        let mut points = Vec::with_capacity(each * endpoints.len());
        for (place, address) in (0_u32..).zip(endpoints) {
            let seed = of_address(0, address);
            points.extend((1..=each as u64).map(|point| (mix(seed.wrapping_add(mix(point))), place)));
        }
        points.sort_unstable();
        Self(points.into())
    }

    /// The endpoint of the first point from `hash` on that takes it.
    pub(super) fn find(&self, hash: u64, takes: impl Fn(usize) -> bool) -> Option<usize> {
        let from = self.0.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.0.split_at(from);
        after.iter().chain(before).map(|(_, place)| *place as usize).find(|place| takes(*place))
    }
}

/// How many points each of so many endpoints has.
fn points_each(endpoints: usize) -> usize {
    (limits::RING_POINTS_MAX / endpoints.max(1)).clamp(1, limits::RING_POINTS_EACH)
}
