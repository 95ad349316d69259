//! What one worker has seen the ports of destinations speak whose protocol nobody declared. It decides when a server is dialled,
//! never what a connection is: that every connection shows by itself.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use serde::Serialize;
use weft_policy::names::ServiceKey;

use crate::limits;

/// A port that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LearntKey {
    /// A Service and its port.
    Service(ServiceKey, u16),
    /// A pod's own address and port.
    Pod(SocketAddr),
}

/// What a connection turned out to be, and who showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// The client began with HTTP/1.
    Http,
    /// The client began with HTTP/2.
    Http2,
    /// The client began with TLS.
    Tls,
    /// The client began with something else.
    Opaque,
    /// The server spoke first.
    ServerFirst,
}

impl Seen {
    pub(crate) const ALL: [Self; 5] = [Self::Http, Self::Http2, Self::Tls, Self::Opaque, Self::ServerFirst];

    /// The protocol, for labels and people.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Opaque | Self::ServerFirst => "tcp",
        }
    }

    /// Who spoke first.
    #[must_use]
    pub fn first(self) -> &'static str {
        if self == Self::ServerFirst { "server" } else { "client" }
    }
}

/// What was seen of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearntRow {
    /// The port.
    pub key: LearntKey,
    /// How many connections turned out to be what.
    pub seen: Vec<(Seen, u64)>,
}

/// One port.
#[derive(Debug, Default)]
pub(crate) struct Port {
    seen: [Cell<u64>; Seen::ALL.len()],
    /// Connections that spoke HTTP since the last one that did not.
    streak: Cell<u32>,
    /// The last one's server spoke first.
    server_first: Cell<bool>,
    used: Cell<Option<Instant>>,
}

impl Port {
    /// Whether the client may be waited for before the server is dialled. One connection that is something else is enough for a no:
    /// a dial too early costs next to nothing, one too late costs the client of a server that speaks first.
    pub(crate) fn client_speaks_first(&self) -> bool {
        self.streak.get() >= limits::LEARNT_STREAK_MIN
    }

    /// Whether its server is to be heard before the client is waited for.
    pub(crate) fn server_speaks_first(&self) -> bool {
        self.server_first.get()
    }

    pub(crate) fn saw(&self, seen: Seen) {
        self.server_first.set(seen == Seen::ServerFirst);
        let count = &self.seen[seen as usize];
        count.set(count.get() + 1);
        let http = matches!(seen, Seen::Http | Seen::Http2);
        self.streak.set(if http { self.streak.get().saturating_add(1) } else { 0 });
    }
}

/// All ports of one worker.
#[derive(Debug)]
pub(crate) struct Learnt {
    ports: RefCell<HashMap<LearntKey, Rc<Port>>>,
    max: usize,
}

impl Learnt {
    pub(crate) fn new(max: usize) -> Self {
        Self { ports: RefCell::default(), max }
    }

    /// What is known of a port, for a connection that was accepted at `now`; `None` if there is no room for another one.
    pub(crate) fn port(&self, key: LearntKey, now: Instant) -> Option<Rc<Port>> {
        let mut ports = self.ports.borrow_mut();
        if ports.len() >= self.max && !ports.contains_key(&key) {
            return None;
        }
        let port = ports.entry(key).or_default();
        port.used.set(Some(now));
        Some(Rc::clone(port))
    }

    /// Forgets ports that were not used for a while: Services come and go, and addresses with them.
    pub(crate) fn sweep(&self, now: Instant, idle: Duration) {
        let fresh = |port: &Rc<Port>| port.used.get().is_some_and(|used| now.saturating_duration_since(used) < idle);
        self.ports.borrow_mut().retain(|_, port| fresh(port) || Rc::strong_count(port) > 1);
    }

    /// At most as many rows as there may be ports.
    pub(crate) fn rows(&self) -> Vec<LearntRow> {
        let row = |(key, port): (&LearntKey, &Rc<Port>)| LearntRow {
            key: key.clone(),
            seen: Seen::ALL
                .into_iter()
                .map(|seen| (seen, port.seen[seen as usize].get()))
                .filter(|(_, count)| *count > 0)
                .collect(),
        };
        self.ports.borrow().iter().map(row).collect()
    }
}

/// Adds up what several workers saw; the most frequent of each port comes first.
pub(crate) fn sum(rows: impl IntoIterator<Item = LearntRow>) -> Vec<LearntRow> {
    let mut by_key: std::collections::BTreeMap<LearntKey, [u64; Seen::ALL.len()]> = Default::default();
    for row in rows {
        let counts = by_key.entry(row.key).or_default();
        for (seen, count) in row.seen {
            counts[seen as usize] += count;
        }
    }
    let sorted = |counts: [u64; Seen::ALL.len()]| {
        let mut seen: Vec<_> =
            Seen::ALL.into_iter().map(|seen| (seen, counts[seen as usize])).filter(|(_, count)| *count > 0).collect();
        seen.sort_by_key(|(seen, count)| (std::cmp::Reverse(*count), *seen));
        seen
    };
    let row = |(key, counts)| LearntRow { key, seen: sorted(counts) };
    by_key.into_iter().map(row).filter(|row| !row.seen.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> LearntKey {
        LearntKey::Service(ServiceKey::new("shop", "web"), port)
    }

    #[test]
    fn only_a_streak_of_http_makes_the_client_waited_for_and_one_other_ends_it() {
        let port = Port::default();
        for seen in [Seen::Http, Seen::Http2, Seen::Http] {
            assert!(!port.client_speaks_first());
            port.saw(seen);
        }
        assert!(port.client_speaks_first());
        for other in [Seen::ServerFirst, Seen::Opaque, Seen::Tls] {
            port.saw(other);
            assert!(!port.client_speaks_first(), "{other:?}");
            port.saw(Seen::Http);
            port.saw(Seen::Http);
            assert!(!port.client_speaks_first(), "two odd clients are no streak");
            port.saw(Seen::Http);
            assert!(port.client_speaks_first());
        }
    }

    #[test]
    fn ports_are_bounded_and_forgotten_when_nobody_uses_them() {
        let (learnt, now) = (Learnt::new(2), Instant::now());
        let held = learnt.port(key(1), now).unwrap();
        held.saw(Seen::Http);
        learnt.port(key(2), now).unwrap().saw(Seen::Tls);
        assert!(learnt.port(key(3), now).is_none());
        assert!(learnt.port(key(2), now).is_some(), "what is known already needs no room");
        let later = now + Duration::from_secs(11);
        learnt.port(key(2), now + Duration::from_secs(5)).unwrap();
        learnt.sweep(later, Duration::from_secs(10));
        assert_eq!(learnt.rows().len(), 2, "one was used, the other is held");
        drop(held);
        learnt.sweep(later, Duration::from_secs(10));
        assert_eq!(learnt.rows(), [LearntRow { key: key(2), seen: vec![(Seen::Tls, 1)] }]);
    }

    #[test]
    fn workers_add_up_and_the_most_frequent_comes_first() {
        let row = |port, seen: &[(Seen, u64)]| LearntRow { key: key(port), seen: seen.to_vec() };
        let rows = [
            row(2, &[]),
            row(1, &[(Seen::Http, 1), (Seen::ServerFirst, 2)]),
            row(1, &[(Seen::ServerFirst, 3), (Seen::Tls, 1)]),
        ];
        assert_eq!(sum(rows), [row(1, &[(Seen::ServerFirst, 5), (Seen::Http, 1), (Seen::Tls, 1)])]);
    }
}
