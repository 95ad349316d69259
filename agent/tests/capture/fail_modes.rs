//! What happens when the agent dies or hangs.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use weft_abi::verdict;
use weft_agent::capture::Capture;

use crate::{
    agent::Worker,
    outbound::{set, stats},
    world::World,
};

/// How fast `closed` must refuse.
const AT_ONCE: Duration = Duration::from_millis(100);

struct Scene {
    world: World,
    capture: Capture,
    workers: Vec<Worker>,
}

impl Scene {
    /// Pod a asks pod b, which is a destination; both are captured.
    fn new(fail_closed: bool) -> Option<Self> {
        let world = World::new()?;
        world.b.serve(8080);
        let mut capture = world.open();
        let workers = [&world.a, &world.b]
            .map(|pod| {
                let mut spec = pod.spec();
                spec.fail_closed = fail_closed;
                Worker::attach(&mut capture, &spec)
            })
            .into();
        for to in [world.b.v4, world.b.v6] {
            set(&mut capture, SocketAddr::new(to, 8080), verdict::PROXY);
        }
        Some(Self { world, capture, workers })
    }

    fn targets(&self) -> [SocketAddr; 2] {
        [self.world.b.v4, self.world.b.v6].map(|ip| SocketAddr::new(ip, 8080))
    }

    /// The programs find nobody: everything goes direct, and is counted at both ends.
    fn expect_direct(&self) {
        let before = (stats(&self.capture, &self.world.a), stats(&self.capture, &self.world.b));
        for to in self.targets() {
            let own = if to.is_ipv4() { self.world.a.v4 } else { self.world.a.v6 };
            assert_eq!(self.world.a.ask(to).expect("direct"), format!("app sees {own}"));
        }
        let after = (stats(&self.capture, &self.world.a), stats(&self.capture, &self.world.b));
        assert_eq!(after.0.outbound_direct - before.0.outbound_direct, 2);
        // Look-ups: a segment for a connection that is gone is one more.
        assert!(after.1.inbound_direct - before.1.inbound_direct >= 2);
    }

    /// Both directions are refused, at once, and counted.
    fn expect_refused(&self) {
        let before = (stats(&self.capture, &self.world.a), stats(&self.capture, &self.world.b));
        for to in self.targets() {
            let begun = Instant::now();
            assert_eq!(self.world.a.ask(to).expect_err("refused").kind(), io::ErrorKind::ConnectionRefused);
            assert!(begun.elapsed() < AT_ONCE, "outbound: {:?}", begun.elapsed());
        }
        // To another port of pod b nothing is redirected, so it is pod b that refuses.
        for to in self.targets() {
            let begun = Instant::now();
            let error = self.world.a.ask(SocketAddr::new(to.ip(), 8081)).expect_err("reset");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert!(begun.elapsed() < AT_ONCE, "inbound: {:?}", begun.elapsed());
        }
        let after = (stats(&self.capture, &self.world.a), stats(&self.capture, &self.world.b));
        assert_eq!(after.0.outbound_refused - before.0.outbound_refused, 2);
        assert_eq!(after.1.inbound_refused - before.1.inbound_refused, 2);
    }

    fn expect_captured(&self) {
        for to in self.targets() {
            let said = self.world.a.ask(to).expect("captured");
            assert_eq!(said, format!("agent: {} asked for {to}", self.world.a.name));
        }
    }
}

#[test]
fn a_hung_agent_is_gone_after_its_heartbeat_and_back_with_it() {
    for fail_closed in [false, true] {
        let Some(scene) = Scene::new(fail_closed) else { return };
        scene.expect_captured();
        scene.world.stop_beating();
        if fail_closed {
            scene.expect_refused();
        } else {
            scene.expect_direct();
        }
        scene.capture.beat(Duration::ZERO).expect("beats");
        scene.expect_captured();
    }
}

#[test]
fn a_dead_agents_listeners_are_gone_at_once_and_the_next_agents_serve() {
    for fail_closed in [false, true] {
        let Some(Scene { world, capture, workers }) = Scene::new(fail_closed) else { return };
        // As when the process ends: every descriptor is closed, everything that is pinned stays.
        drop((capture, workers));
        let mut scene = Scene { capture: world.open(), world, workers: Vec::new() };
        if fail_closed {
            let begun = Instant::now();
            for to in scene.targets() {
                assert_eq!(scene.world.a.ask(to).expect_err("refused").kind(), io::ErrorKind::ConnectionRefused);
            }
            assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
        } else {
            for to in scene.targets() {
                let own = if to.is_ipv4() { scene.world.a.v4 } else { scene.world.a.v6 };
                assert_eq!(scene.world.a.ask(to).expect("direct"), format!("app sees {own}"));
            }
        }
        for pod in [&scene.world.a, &scene.world.b] {
            let mut spec = pod.spec();
            spec.fail_closed = fail_closed;
            let attachment = scene.capture.attach_pod(&spec, &mut Vec::new()).expect("attached again");
            assert!(attachment.adopted);
            scene.workers.push(Worker::serve(&scene.capture, attachment));
        }
        // What the earlier agent counted goes on, and so do its destinations.
        let counted = stats(&scene.capture, &scene.world.a);
        assert_eq!((counted.outbound_direct, counted.outbound_refused), if fail_closed { (0, 2) } else { (2, 0) });
        scene.expect_captured();
    }
}

#[test]
fn a_deny_is_kept_without_an_agent_only_by_those_that_fail_closed() {
    for fail_closed in [false, true] {
        let Some(mut scene) = Scene::new(fail_closed) else { return };
        for to in scene.targets() {
            set(&mut scene.capture, to, verdict::DENY);
            assert_eq!(scene.world.a.ask(to).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
        }
        scene.world.stop_beating();
        if fail_closed {
            scene.expect_refused();
        } else {
            scene.expect_direct();
        }
    }
}

#[test]
fn listeners_that_are_taken_away_leave_the_fail_mode() {
    let Some(mut scene) = Scene::new(true) else { return };
    scene.capture.unpublish_listeners().expect("unpublished");
    scene.expect_refused();
    for pod in [scene.world.a.id(), scene.world.b.id()] {
        scene.capture.set_fail_closed(&pod, false).expect("opened");
    }
    scene.expect_direct();
}
