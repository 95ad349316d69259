//! Changing the root without a handshake that fails. Pure: a state that is kept somewhere, what the world should look like in it
//! ([`Rotation::desired`]), and when to go on ([`Rotation::next`]). Whoever leads makes the world so, looks at it, and writes the next
//! state down; each of these can be done twice, so a leader that dies anywhere is followed by one that goes on.
//!
//! Order: everybody trusts the new root before anything is signed below it, and nothing signed below the old one is left before
//! anybody ceases to trust that.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How far a rotation has come. `since` is when the phase began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One root.
    Steady,
    /// The next root is being made.
    Prepare,
    /// Both roots are published; agents take them up.
    Announce {
        /// When it began.
        since: SystemTime,
    },
    /// The next root's issuer takes over. A replica that has not heard of it still signs below the old root.
    Switch,
    /// The next root's issuer signs everywhere; agents ask for new certificates. What was signed below the old root ends after its
    /// life, counted from here and not from when the takeover began.
    Reissue {
        /// When it began.
        since: SystemTime,
    },
    /// Only the next root is published; the old one goes.
    Retire,
}

/// A rotation, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// How far it has come.
    pub phase: Phase,
    /// Rises when agents are to ask for all their certificates again.
    pub epoch: u64,
}

/// Which roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The one that has been trusted.
    Current,
    /// Both.
    Both,
    /// The one that replaces it.
    Next,
}

/// What the world should look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The roots in the bundle.
    pub bundle: Roots,
    /// Whose issuer signs: [`Roots::Current`] or [`Roots::Next`].
    pub signs: Roots,
    /// Whether the next root has to be there: made if it is not.
    pub next_root: bool,
    /// Whether the next root is to be put in the place of the current one.
    pub promote: bool,
    /// What agents are told: they ask again for all their certificates when it rises.
    pub epoch: u64,
}

/// What the world looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Somebody asks for a rotation.
    pub asked: bool,
    /// The next root is stored.
    pub next_root: bool,
    /// The bundle is published as it should be.
    pub bundle: bool,
    /// Every replica signs with the issuer that it should sign with.
    pub signs: bool,
    /// The next root was put in the place of the current one, and its issuer too.
    pub promoted: bool,
    /// Every agent that there is has reported the published bundle.
    pub all_trust: bool,
    /// Every agent that there is has had all its certificates signed anew since the epoch rose.
    pub all_reissued: bool,
}

/// How long after both roots are published nothing is signed below the new one, even if all agents that are known have reported: one
/// that starts meanwhile mounts a ConfigMap that is this old at most (kubelet's sync period and its cache).
pub const PROPAGATION: Duration = Duration::from_secs(120);

/// A kept state that cannot be read. Nothing is rotated until somebody puts it right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no state of a root rotation: <phase>[@<unix seconds>]/<epoch>, of steady, prepare, announce, switch, reissue, retire"
)]
pub struct RotationError(String);

impl Default for Rotation {
    fn default() -> Self {
        Self { phase: Phase::Steady, epoch: 0 }
    }
}

impl Rotation {
    /// What the world should look like now.
    #[must_use]
    pub fn desired(&self) -> Desired {
        let (bundle, signs, next_root, promote) = match self.phase {
            Phase::Steady => (Roots::Current, Roots::Current, false, false),
            Phase::Prepare => (Roots::Current, Roots::Current, true, false),
            Phase::Announce { .. } => (Roots::Both, Roots::Current, true, false),
            Phase::Switch | Phase::Reissue { .. } => (Roots::Both, Roots::Next, true, false),
            Phase::Retire => (Roots::Next, Roots::Next, true, true),
        };
        Desired { bundle, signs, next_root, promote, epoch: self.epoch }
    }

    /// The next state, where it is time for it. `ttl` is the longest life of a workload's certificate; `propagation` is
    /// [`PROPAGATION`], except in tests.
    #[must_use]
    pub fn next(&self, seen: &Observed, now: SystemTime, ttl: Duration, propagation: Duration) -> Option<Self> {
        let waited = |since: SystemTime, long: Duration| now.duration_since(since).is_ok_and(|waited| waited >= long);
        let (phase, epoch) = match self.phase {
            Phase::Steady if seen.asked => (Phase::Prepare, self.epoch),
            Phase::Prepare if seen.next_root => (Phase::Announce { since: now }, self.epoch),
            Phase::Announce { since } if seen.bundle && seen.all_trust && waited(since, propagation) => {
                (Phase::Switch, self.epoch)
            }
            Phase::Switch if seen.signs => (Phase::Reissue { since: now }, self.epoch + 1),
            // Certificates of agents that nobody hears of any more have ended after their whole life.
            Phase::Reissue { since } if seen.signs && (seen.all_reissued || waited(since, ttl)) => {
                (Phase::Retire, self.epoch)
            }
            Phase::Retire if seen.bundle && seen.promoted => (Phase::Steady, self.epoch),
            _ => return None,
        };
        Some(Self { phase, epoch })
    }

    /// What it waits for, for people.
    #[must_use]
    pub fn waits_for(&self) -> &'static str {
        match self.phase {
            Phase::Steady => "nothing: no rotation is under way",
            Phase::Prepare => "the next root to be stored",
            Phase::Announce { .. } => "every agent to report the bundle with both roots",
            Phase::Switch => "every replica to sign with the next root's issuer",
            Phase::Reissue { .. } => "every agent to have its certificates signed anew, or the old ones to end",
            Phase::Retire => "the bundle without the old root, and the next root in its place",
        }
    }
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |since: SystemTime| since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match self.phase {
            Phase::Steady => f.write_str("steady")?,
            Phase::Prepare => f.write_str("prepare")?,
            Phase::Switch => f.write_str("switch")?,
            Phase::Announce { since } => write!(f, "announce@{}", seconds(since))?,
            Phase::Reissue { since } => write!(f, "reissue@{}", seconds(since))?,
            Phase::Retire => f.write_str("retire")?,
        }
        write!(f, "/{}", self.epoch)
    }
}

impl FromStr for Rotation {
    type Err = RotationError;

    fn from_str(text: &str) -> Result<Self, RotationError> {
        let parse = || {
            let (phase, epoch) = text.split_once('/')?;
            let since =
                |seconds: &str| UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse::<u32>().ok()?.into()));
            let phase = match (phase, phase.split_once('@')) {
                ("steady", _) => Phase::Steady,
                ("prepare", _) => Phase::Prepare,
                ("switch", _) => Phase::Switch,
                ("retire", _) => Phase::Retire,
                (_, Some(("announce", seconds))) => Phase::Announce { since: since(seconds)? },
                (_, Some(("reissue", seconds))) => Phase::Reissue { since: since(seconds)? },
                _ => return None,
            };
            Some(Self { phase, epoch: epoch.parse::<u32>().ok()?.into() })
        };
        parse().ok_or_else(|| RotationError(text.chars().take(100).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(100);

    /// A world of agents, replicas that sign, and what is stored; roots are numbers.
    struct World {
        now: SystemTime,
        stored: Rotation,
        current: u32,
        next: Option<u32>,
        bundle: Vec<u32>,
        signs: u32,
        epoch: u64,
        /// What each trusts, whose certificate it has, until when, and for which epoch.
        agents: Vec<(Vec<u32>, u32, SystemTime, u64)>,
        asked: bool,
    }

    impl World {
        fn new(agents: usize) -> Self {
            let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
            let agents = vec![(vec![1], 1, now + TTL, 0); agents];
            let (stored, bundle) = (Rotation::default(), vec![1]);
            Self { now, stored, current: 1, next: None, bundle, signs: 1, epoch: 0, agents, asked: false }
        }

        fn roots(&self, which: Roots) -> Vec<u32> {
            match which {
                Roots::Current => vec![self.current],
                Roots::Both => [Some(self.current), self.next].into_iter().flatten().collect(),
                Roots::Next => vec![self.next.unwrap_or(self.current)],
            }
        }

        /// One of the things that a leader does; it may die before the next.
        fn lead(&mut self, step: u8) {
            let desired = self.stored.desired();
            match step {
                0 if desired.next_root && self.next.is_none() && !(desired.promote) => {
                    self.next = Some(self.current + 1);
                }
                1 => self.bundle = self.roots(desired.bundle),
                2 => (self.signs, self.epoch) = (self.roots(desired.signs)[0], desired.epoch),
                3 if desired.promote => {
                    if let Some(next) = self.next.take() {
                        self.current = next;
                    }
                }
                4 => {
                    let seen = Observed {
                        asked: self.asked,
                        next_root: self.next.is_some(),
                        bundle: self.bundle == self.roots(desired.bundle),
                        signs: self.signs == self.roots(desired.signs)[0] && self.epoch == desired.epoch,
                        promoted: desired.promote && self.next.is_none(),
                        all_trust: self.agents.iter().all(|agent| agent.0 == self.bundle),
                        all_reissued: self.agents.iter().all(|agent| agent.3 == self.stored.epoch),
                    };
                    if let Some(next) = self.stored.next(&seen, self.now, TTL, Duration::from_secs(20)) {
                        self.asked &= next.phase != Phase::Prepare;
                        // Written down and read back, as after a restart.
                        self.stored = next.to_string().parse().unwrap();
                    }
                }
                _ => {}
            }
        }

        fn check(&self) {
            for (trusts, ..) in &self.agents {
                for (_, root, until, _) in &self.agents {
                    assert!(*until <= self.now || trusts.contains(root), "{trusts:?} meets {root} in {}", self.stored);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_certificate_in_force_is_trusted_by_everybody_at_every_moment(
            steps in proptest::collection::vec((0_u8..12, 0_usize..3), 0..400)
        ) {
            let mut world = World::new(3);
            for (what, agent) in steps {
                match what {
                    0..=4 => world.lead(what),
                    5 | 6 => world.agents[agent].0 = world.bundle.clone(),
                    7 | 8 => {
                        // An agent takes the bundle before it asks; the authority's answer would not be taken otherwise.
                        if world.agents[agent].0.contains(&world.signs) {
                            let (until, epoch) = (world.now + TTL, world.epoch);
                            (world.agents[agent].1, world.agents[agent].2, world.agents[agent].3) = (world.signs, until, epoch);
                        }
                    }
                    9 => world.asked = true,
                    _ => world.now += Duration::from_secs(7),
                }
                world.check();
            }
            // And it ends, if everybody does what he should.
            for _ in 0..60 {
                for step in 0..5 {
                    world.lead(step);
                }
                for agent in 0..3 {
                    world.agents[agent].0 = world.bundle.clone();
                    world.agents[agent].1 = world.signs;
                    world.agents[agent].2 = world.now + TTL;
                    world.agents[agent].3 = world.epoch;
                }
                world.check();
                world.now += Duration::from_secs(7);
            }
            prop_assert_eq!(world.stored.phase, Phase::Steady);
        }

        #[test]
        fn a_kept_state_is_read_as_it_was_and_anything_else_is_refused(text in "\\PC{0,40}") {
            if let Ok(rotation) = text.parse::<Rotation>() {
                prop_assert!(rotation.to_string().parse::<Rotation>() == Ok(rotation));
            }
        }
    }

    #[test]
    fn a_rotation_waits_for_agents_that_have_not_reported() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let announced = Rotation { phase: Phase::Announce { since: now }, epoch: 4 };
        let mut seen = Observed { next_root: true, bundle: true, ..Observed::default() };
        let later = now + Duration::from_secs(100_000);
        assert_eq!(announced.next(&seen, later, TTL, PROPAGATION), None);
        seen.all_trust = true;
        assert_eq!(announced.next(&seen, now, TTL, PROPAGATION), None, "not before the ConfigMap is everywhere");
        let next = announced.next(&seen, later, TTL, PROPAGATION);
        assert_eq!(next, Some(Rotation { phase: Phase::Switch, epoch: 4 }));
        seen.signs = true;
        let next = next.and_then(|switch| switch.next(&seen, later, TTL, PROPAGATION));
        assert_eq!(next, Some(Rotation { phase: Phase::Reissue { since: later }, epoch: 5 }));
    }
}
