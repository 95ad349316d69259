//! Another program that rewrites connections, as Cilium's does in place of kube-proxy: a Service's address becomes a pod's.
//!
//! Written in the kernel's own instructions: six lines of them are less than another object and its way into a test.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use weft_abi::verdict;
use weft_agent::capture::ProgramAhead;

use crate::{
    agent::Worker,
    outbound::{set, stats},
    raw::{self, Instruction},
    world::World,
};

/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT` (linux/bpf.h).
const ATTACH_CONNECT4: u32 = 10;
const ATTACH_CONNECT6: u32 = 11;
/// Offsets in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

/// Instructions (linux/bpf_common.h and bpf.h): load and store a word, move, compare, leave.
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const MOVE32: u8 = 0xb4;
const MOVE64: u8 = 0xb7;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Attached for as long as it lives.
struct Rewriter {
    _links: [OwnedFd; 2],
}

impl Rewriter {
    /// Sends connections to `from`, whatever the port, to `to`; each an address of either family.
    fn attach(cgroup: &Path, from: [SocketAddr; 2], to: [SocketAddr; 2]) -> Self {
        let cgroup = fs::File::open(cgroup).expect("cgroup");
        let hooks = [(ATTACH_CONNECT4, "elsewhere4", 0), (ATTACH_CONNECT6, "elsewhere6", 1)];
        let _links = hooks.map(|(hook, name, family)| {
            let program = raw::load_connect(hook, name, &program(from[family], to[family])).expect("loaded");
            raw::attach_connect(&program, &cgroup, hook).expect("attached")
        });
        Self { _links }
    }
}

fn program(from: SocketAddr, to: SocketAddr) -> Vec<Instruction> {
    let words = |ip: IpAddr| -> Vec<i32> {
        let octets = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        octets.chunks(4).map(|word| i32::from_ne_bytes(word.try_into().expect("four"))).collect()
    };
    let first = if from.is_ipv4() { USER_IP4 } else { USER_IP6 };
    let at = |index: usize| first + 4 * i16::try_from(index).expect("small");
    let (from_words, to_words) = (words(from.ip()), words(to.ip()));
    // The context is in register 1; 2 is for work. Every comparison that fails jumps to the last two instructions.
    let rewrite = 2 * to_words.len() + 2;
    let mut program = Vec::new();
    for (index, word) in from_words.iter().enumerate() {
        let after = 2 * (from_words.len() - index - 1) + rewrite;
        program.push(Instruction::new(LOAD_WORD, 2, 1, at(index), 0));
        program.push(Instruction::new(JUMP_UNLESS_EQUAL, 2, 0, i16::try_from(after).expect("small"), *word));
    }
    for (index, word) in to_words.iter().enumerate() {
        program.push(Instruction::new(MOVE32, 2, 0, 0, *word));
        program.push(Instruction::new(STORE_WORD, 1, 2, at(index), 0));
    }
    program.push(Instruction::new(MOVE32, 2, 0, 0, i32::from(to.port().to_be())));
    program.push(Instruction::new(STORE_WORD, 1, 2, USER_PORT, 0));
    program.push(Instruction::new(MOVE64, 0, 0, 0, 1));
    program.push(Instruction::new(EXIT, 0, 0, 0, 0));
    program
}

struct Scene {
    world: World,
    vips: [SocketAddr; 2],
    backends: [SocketAddr; 2],
}

impl Scene {
    /// This process is in the cgroup of all pods, below the root of the hierarchy; pod b is the Service's only backend.
    fn new() -> Option<Self> {
        let world = World::new()?;
        world.enter_pods_cgroup();
        world.b.serve(8080);
        let vips = [world.vip4(80), world.vip6(80)];
        let backends = [world.b.v4, world.b.v6].map(|ip| SocketAddr::new(ip, 8080));
        Some(Self { world, vips, backends })
    }

    fn rewrite(&self, cgroup: &Path) -> Rewriter {
        Rewriter::attach(cgroup, self.vips, self.backends)
    }

    fn pods_cgroup(&self) -> PathBuf {
        self.world.pods_cgroup()
    }

    fn expect_direct(&self) {
        for (vip, own) in self.vips.iter().zip([self.world.a.v4, self.world.a.v6]) {
            assert_eq!(self.world.a.ask(*vip).expect("rewritten"), format!("app sees {own}"));
        }
    }
}

#[test]
fn a_rewriter_at_a_parent_does_not_hide_a_services_address() {
    let Some(scene) = Scene::new() else { return };
    let Scene { world, vips, .. } = &scene;
    // Attached before and after: the order of cgroups counts, not that of time.
    for first in [true, false] {
        let early = first.then(|| scene.rewrite(world.cgroup()));
        if first {
            scene.expect_direct();
        }
        let mut capture = world.open();
        let late = (!first).then(|| scene.rewrite(world.cgroup()));
        let worker = Worker::attach(&mut capture, &world.a.spec());
        assert_eq!(capture.programs_ahead(), []);
        // No destination of weft's yet: it is the other one's business.
        scene.expect_direct();
        for vip in vips {
            set(&mut capture, *vip, verdict::PROXY);
            let said = world.a.ask(*vip).expect("captured");
            assert_eq!(said, format!("agent: {} asked for {vip}", world.a.name), "attached first: {first}");
            set(&mut capture, *vip, verdict::DENY);
            assert_eq!(world.a.ask(*vip).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
            set(&mut capture, *vip, verdict::PASS);
        }
        assert_eq!(stats(&capture, &world.a).outbound_captured, 2);
        drop(worker);
        capture.release_pod(&world.a.id()).expect("released");
        drop((early, late));
    }
}

#[test]
fn a_rewriter_that_runs_ahead_is_told() {
    let Some(scene) = Scene::new() else { return };
    let Scene { world, vips, .. } = &scene;
    let child = scene.pods_cgroup().join("pod1");
    fs::create_dir(&child).expect("cgroup");
    let at_same = scene.rewrite(&scene.pods_cgroup());
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    for vip in vips {
        set(&mut capture, *vip, verdict::PROXY);
    }
    // It hides the address, so that what weft was told of it does not count; that is why it must be told.
    scene.expect_direct();
    let told = |ahead: &[ProgramAhead], cgroup: &Path| {
        let found: Vec<_> = ahead
            .iter()
            .filter(|found| found.cgroup == cgroup && found.program_id != 0)
            .map(|found| (found.hook, found.name.as_str()))
            .collect();
        assert_eq!(found, [("connect4", "elsewhere4"), ("connect6", "elsewhere6")], "{ahead:?}");
    };
    told(&capture.programs_ahead(), &scene.pods_cgroup());
    let at_child = scene.rewrite(&child);
    let ahead = capture.programs_ahead();
    assert_eq!(ahead.len(), 4, "{ahead:?}");
    told(&ahead, &child);
    drop(at_same);
    told(&capture.programs_ahead(), &child);
    drop(at_child);
    assert_eq!(capture.programs_ahead(), []);
    // One that was attached after ours runs after ours.
    let behind = scene.rewrite(&scene.pods_cgroup());
    assert_eq!(capture.programs_ahead(), []);
    for vip in vips {
        assert!(world.a.ask(*vip).expect("captured").ends_with(&vip.to_string()));
    }
    drop(behind);
    fs::remove_dir(&child).expect("removed");
}
