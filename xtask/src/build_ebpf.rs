//! `cargo xtask build-ebpf`: builds the programs of `ebpf/` and puts the objects where the agent's build script finds them.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{setup, sh};

/// The programs; each becomes `target/bpf/NAME.bpf.o`.
pub(crate) const PROGRAMS: [&str; 3] = ["weft-cgroup", "weft-lookup", "weft-released"];
const TARGET: &str = "bpfel-unknown-none";

/// Builds all programs.
pub(crate) fn run() -> Result<()> {
    // Next to the other build output, but in a directory of its own: another compiler writes it.
    let build_dir = sh::target_dir().join("bpf-build");
    sh::run(bpf_cargo("build", &build_dir)?.args(["--release", "--quiet"]))?;
    // The agent embeds the objects from here, whatever the target directory is.
    let out_dir = sh::root().join("target/bpf");
    fs::create_dir_all(&out_dir).with_context(|| format!("cannot create {}", out_dir.display()))?;
    for program in PROGRAMS {
        let built = build_dir.join(TARGET).join("release").join(program);
        publish(&built, &out_dir.join(format!("{program}.bpf.o")))?;
    }
    Ok(())
}

/// A cargo of the BPF toolchain in `ebpf/`.
pub(crate) fn bpf_cargo(verb: &str, target_dir: &Path) -> Result<std::process::Command> {
    let linker_dir = setup::bpf_prefix()?.join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(linker_dir).chain(std::env::split_paths(&path)))?;
    let arch = std::env::consts::ARCH;
    // rustup's proxy, not the cargo that runs this: the toolchain is another one.
    let mut cargo = sh::command("cargo", &[&format!("+{}", setup::BPF_TOOLCHAIN), verb]);
    cargo
        .current_dir(sh::root().join("ebpf"))
        .args(["-Z", "build-std=core", "--target", TARGET])
        .env("PATH", path)
        // build-std is an unstable option of an otherwise stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\" -Cdebuginfo=2 -Clink-arg=--btf"));
    for inherited in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(inherited);
    }
    Ok(cargo)
}

/// Writes only what changed, so that an unchanged object does not make cargo build the agent again.
fn publish(built: &Path, to: &Path) -> Result<()> {
    let object = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(to).is_ok_and(|present| present == object) {
        return Ok(());
    }
    fs::write(to, object).with_context(|| format!("cannot write {}", to.display()))
}
