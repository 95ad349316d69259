//! What the kernel's verifier had to do to accept each program. It gives up at a million instructions, and how many it looks at for the
//! same program changes with the kernel: the nearer a program is to the limit, the nearer is a kernel that refuses it.

use std::{fs, io::Write};

use crate::{agent::Worker, world::World};

/// Instructions that the verifier looks at before it refuses (`BPF_COMPLEXITY_LIMIT_INSNS`, linux/bpf.h).
const KERNEL_LIMIT: u32 = 1_000_000;

/// Each program and what it may take of that: about twice what it took on the kernels that were measured (docs/kernels.md), so that growth is
/// a decision and never a surprise. The connect programs look for a free redirect port up to eight times.
const BUDGETS: [(&str, u32); 9] = [
    ("connect4", 25_000),
    ("connect6", 25_000),
    ("getpeername4", 100),
    ("getpeername6", 100),
    ("sendmsg4", 400),
    ("sendmsg6", 400),
    ("socket_events", 2_000),
    ("pod_lookup", 2_000),
    (RELEASED, 600),
];

/// What stays in a released pod, so no captured pod has it.
const RELEASED: &str = "released_lookup";

/// A file that takes a line for each program, for the table in docs/kernels.md.
const REPORT: &str = "WEFT_VERIFIER_REPORT";

#[test]
fn every_program_is_within_its_budget_of_verified_instructions() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    drop(Worker::attach(&mut capture, &world.b.spec()));
    capture.release_pod(&world.b.id()).expect("released");
    let hooks = capture.stats().hooks;
    let mut report = String::new();
    let mut beyond = Vec::new();
    for (name, budget) in BUDGETS {
        let hook = hooks.iter().find(|hook| hook.name == name);
        let program = aya::programs::loaded_programs()
            .flatten()
            .find(|program| match hook {
                Some(hook) => program.id() == hook.program_id,
                None => name == RELEASED && program.name_as_str() == Some(name),
            })
            .expect("attached, so loaded");
        let verified = program.verified_instruction_count().expect("counted since 5.16");
        let (translated, machine_code) = (program.size_translated().expect("has a size"), program.size_jitted());
        assert!(verified > 0 && translated > 0, "{name}: {program:?}");
        report.push_str(&format!(
            "weft-verifier: {{\"program\":\"{name}\",\"verified_insns\":{verified},\"xlated_bytes\":{translated},\
             \"jited_bytes\":{machine_code},\"budget\":{budget}}}\n"
        ));
        assert!(budget <= KERNEL_LIMIT / 4, "{name}: kernels differ by a factor of two");
        if verified > budget {
            beyond.push(format!("{name}: {verified} of {budget}"));
        }
    }
    assert_eq!(hooks.len() + 1, BUDGETS.len(), "a program without a budget: {hooks:?}");
    print!("{report}");
    if let Some(path) = std::env::var_os(REPORT) {
        let mut file = fs::File::options().create(true).append(true).open(path).expect("opened");
        file.write_all(report.as_bytes()).expect("written");
    }
    assert!(beyond.is_empty(), "{beyond:?}");
}
