//! One list of cases for two readers: criterion takes the time, and callgrind counts instructions, where time is noise. For the
//! second, `--list` prints the cases, and `--count NAME ROUNDS` does nothing but prepare one and run it so often; the difference
//! between two numbers of rounds is free of all preparation.
#![allow(clippy::print_stdout, reason = "another program reads the list")]

use criterion::Criterion;

/// The work of one round, with all that it needs.
pub(crate) type Work = Box<dyn FnMut()>;

/// A case.
pub(crate) struct Case {
    /// As it is reported.
    pub(crate) name: String,
    /// Rounds that are enough to count instructions.
    pub(crate) rounds: u64,
    /// Prepares it.
    pub(crate) prepare: Box<dyn Fn() -> Work>,
}

/// The program.
pub(crate) fn main(cases: &[Case]) {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match args[..] {
        ["--list"] => cases.iter().for_each(|case| println!("{}\t{}", case.rounds, case.name)),
        ["--count", name, rounds] => {
            let case = cases.iter().find(|case| case.name == name).expect("a case of that name");
            let mut work = (case.prepare)();
            (0..rounds.parse::<u64>().expect("a number of rounds")).for_each(|_| work());
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            for case in cases {
                let mut work = (case.prepare)();
                criterion.bench_function(&case.name, |bencher| bencher.iter(&mut work));
            }
            criterion.final_summary();
        }
    }
}
