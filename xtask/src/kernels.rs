//! `cargo xtask test kernels`: the tests of capture on the kernels that nodes run, each booted in a virtual machine.
//!
//! The machine is qemu without hardware support, because continuous integration seldom has it; such a kernel is up in a few seconds.
//! Inside runs the very program that runs on the running kernel: nothing is tested there that is not tested here, and what cannot run
//! there is named in [`CANNOT_RUN`].

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    setup::{self, Tool},
    sh,
    test::{Totals, programs::Program},
};

mod cpio;
mod image;
mod machine;
mod package;
mod progress;
mod verifier;

use progress::Progress;
use verifier::Verified;

/// A kernel that is tested.
struct Kernel {
    /// What it is called here.
    name: &'static str,
    /// What the names of its packages begin with.
    packages: &'static str,
}

/// The oldest kernel that weft supports, and the one that Debian and its derivatives ship now.
const KERNELS: [Kernel; 2] =
    [Kernel { name: "6.1", packages: "linux-image-6.1.0-" }, Kernel { name: "6.12", packages: "linux-image-6.12." }];

/// Tests that cannot run on a kernel: its name, the test's, and the reason, which is printed. They do not count as passed.
const CANNOT_RUN: [(&str, &str, &str); 0] = [];

/// What makes and runs the machines.
const TOOLS: [Tool; 6] = [
    ("qemu-system-x86_64", "qemu-system-x86", "boots other kernels"),
    ("busybox", "busybox-static", "is the user land of a booted kernel"),
    ("dpkg-deb", "dpkg", "unpacks kernels"),
    ("xz", "xz-utils", "unpacks modules of kernels"),
    ("strip", "binutils", "makes test programs small enough for a machine's memory"),
    ("ldd", "libc-bin", "tells which libraries a test program needs"),
];

/// One kernel's whole run, from the first instruction to the last test: several times what it takes on two cores that others use too.
const KERNEL_TIME_MAX: Duration = Duration::from_secs(600);

/// The test program reads this: where to write what the verifier said of each program.
const VERIFIER_REPORT: &str = "WEFT_VERIFIER_REPORT";
/// And this: a test that cannot run is a failure.
const MUST_RUN: &str = "WEFT_CAPTURE_MUST_RUN";

/// What runs on the running kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Here {
    /// All of it.
    Everything,
    /// Only what the table of the verifier needs: the unit tests have run all of it already.
    Verifier,
}

/// Why the kernels cannot be booted on this machine, if so.
pub(crate) fn cannot_run() -> Option<&'static str> {
    if !sh::is_root() {
        return Some("not root, and these tests load eBPF programs and install packages");
    }
    if std::env::consts::ARCH != "x86_64" {
        return Some("these kernels are for x86_64, and this is another machine");
    }
    if !sh::has("apt-get") {
        return Some("there is no apt-get, and the kernels are packages of Debian's");
    }
    None
}

/// Boots every kernel and counts what its tests did.
pub(crate) fn run(programs: &[Program], filter: Option<&str>, here: Here) -> Result<Totals> {
    setup::require(&TOOLS)?;
    let program = test_program(programs)?;
    let dir = sh::target_dir().join("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;

    let mut totals = Totals::default();
    let mut verified = BTreeMap::new();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let only = match here {
        Here::Everything => filter,
        Here::Verifier => Some("verifier::"),
    };
    totals.add(running_kernel(program, only, &dir, &release, &mut verified)?);
    for kernel in &KERNELS {
        match boot(kernel, program.executable(), filter, &dir, &mut verified) {
            Ok(counted) => totals.add(counted),
            Err(error) => {
                println!("{}: {error:#}", kernel.name);
                totals.add(Totals::broken());
            }
        }
    }
    println!("\nWhat the verifier had to look at:\n{}", verifier::table(&verified));
    Ok(totals)
}

/// The tests of capture. What they read at compile time is part of the program; the BPF objects too.
fn test_program(programs: &[Program]) -> Result<&Program> {
    programs
        .iter()
        .find(|program| (program.package.as_str(), program.target.as_str()) == ("weft-agent", "capture"))
        .context("the tests of capture were not compiled")
}

fn running_kernel(
    program: &Program,
    filter: Option<&str>,
    dir: &Path,
    release: &str,
    verified: &mut BTreeMap<String, Vec<Verified>>,
) -> Result<Totals> {
    let report = dir.join("running.verifier");
    fs::remove_file(&report).ok();
    println!("running kernel: {release}");
    let mut child = program
        .command()
        .args(filter)
        .arg("--test-threads=1")
        .env(VERIFIER_REPORT, &report)
        .env(MUST_RUN, "1")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.executable().display()))?;
    let mut progress = Progress::new("running kernel");
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            progress.line(&line?);
        }
    }
    child.wait().context("cannot wait for the tests")?;
    // With a filter there may be none.
    let lines = fs::read_to_string(&report).unwrap_or_default();
    verified.insert(release.to_owned(), lines.lines().filter_map(Verified::parse).collect());
    progress.finish()
}

fn boot(
    kernel: &Kernel,
    program: &Path,
    filter: Option<&str>,
    dir: &Path,
    verified: &mut BTreeMap<String, Vec<Verified>>,
) -> Result<Totals> {
    let package = package::get(kernel.packages, dir)?;
    let excluded: Vec<&str> = CANNOT_RUN
        .iter()
        .filter(|(name, ..)| *name == kernel.name)
        .map(|(_, test, reason)| {
            println!("{}: NOT RUN: {test}: {reason}", kernel.name);
            *test
        })
        .collect();
    let image = dir.join(format!("{}.cpio", kernel.name));
    let mut arguments: Vec<String> = filter.map(str::to_owned).into_iter().collect();
    arguments.extend(excluded.iter().map(|test| format!("--skip={test}")));
    image::write(&image, &package, program, &arguments)?;

    let console = dir.join(format!("{}.console", kernel.name));
    let mut progress = Progress::new(kernel.name);
    let mut found = Vec::new();
    let mut release = String::new();
    let ended = machine::run(&package.image()?, &image, &console, KERNEL_TIME_MAX, |line| {
        if let Some(running) = line.strip_prefix(image::RELEASE_MARK) {
            running.trim().clone_into(&mut release);
            println!("{}: Linux {release} is up", kernel.name);
        } else if let Some(verified) = Verified::parse(line) {
            found.push(verified);
        } else {
            progress.line(line);
        }
    });
    verified.insert(release, found);
    let counted = progress.finish();
    if ended.is_err() || counted.is_err() {
        println!("{}: the console ends:\n{}", kernel.name, machine::tail(&console));
    }
    ended?;
    let totals = counted?;
    if totals.ran() == 0 && filter.is_none() {
        bail!("no test ran");
    }
    Ok(totals)
}
