//! `cargo xtask image`: the agent as a container image, made without a container engine.
//!
//! The image holds the programs and nothing else. It is one tar archive that is both an OCI image layout (image-spec 1.1, "image-layout")
//! and what `docker save` writes, so `ctr images import`, `docker load`, `podman load` and `skopeo copy oci-archive:` take it.
//! Equal programs give an equal archive, to the byte.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use object::{
    Endianness,
    elf::FileHeader64,
    read::elf::{FileHeader, ProgramHeader},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{build_ebpf, setup, sh};

/// Arguments of `image`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Where the archive is written.
    #[arg(long, value_name = "FILE", default_value = "target/weft-image.tar")]
    to: PathBuf,
    /// Name and tag inside the archive.
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("weft-agent:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Cargo profile of the programs: `release`, or `dev` for a quick try.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// The programs; each lies in the root directory of the image.
const PROGRAMS: [&str; 3] = ["weft-agent", "weft", "weft-cni"];
/// glibc, linked into the programs: everything that is needed is on any machine with a C compiler. No program of the image looks
/// users or hosts up by name in the C library's way, which would load libraries at run time.
const TARGET: &str = concat!("x86_64", "-unknown-linux-gnu");
const STATIC: &str = "-C target-feature=+crt-static";
/// Places that the chart's pod mounts something at. A read-only root must have them.
const DIRECTORIES: [&str; 20] = [
    "dev",
    "etc",
    "host",
    "host/bpf",
    "host/cgroup",
    "host/cni",
    "host/cni/bin",
    "host/cni/net.d",
    "host/proc",
    "proc",
    "run",
    "run/weft",
    "sys",
    "tmp",
    "var",
    "var/run",
    "var/run/secrets",
    "var/run/secrets/weft",
    "var/run/secrets/weft/ca-token",
    "var/run/secrets/weft/roots",
];

/// Builds the programs and packs them.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::run(setup::Scope::BuildAndTest)?;
    build_ebpf::run()?;
    let programs = build(&args.profile)?;
    let archive = archive(&args.name, &programs)?;
    let to = sh::root().join(&args.to);
    fs::write(&to, &archive).with_context(|| format!("cannot write {}", to.display()))?;
    println!("image: {} in {} ({:.1} MB)", args.name, to.display(), archive.len() as f64 / 1e6);
    Ok(())
}

/// A program of the image: its name, and the file.
type Program = (&'static str, Vec<u8>);

fn build(profile: &str) -> Result<Vec<Program>> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("images are built on x86_64 only, for {TARGET}");
    }
    // A target directory of its own: other flags would have cargo build everything anew each time.
    let target_dir = sh::target_dir().join("image");
    // With a target named, the flags are not for build scripts and macros, which must be dynamic.
    sh::run(
        sh::cargo()
            .args(["build", "--package", "weft-agent", "--bins", "--target", TARGET, "--profile", profile])
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("RUSTFLAGS", STATIC)
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    let directory = target_dir.join(TARGET).join(if profile == "dev" { "debug" } else { profile });
    PROGRAMS.into_iter().map(|name| Ok((name, stripped(&directory.join(name))?))).collect()
}

/// Without symbols, and surely static: a program that wants a loader would not start in an empty image.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let lean = path.with_extension("stripped");
    sh::run(std::process::Command::new("strip").arg("-o").arg(&lean).arg(path))?;
    let program = fs::read(&lean).with_context(|| format!("cannot read {}", lean.display()))?;
    let loader = interpreter(&program).with_context(|| format!("{} is no program", path.display()))?;
    if let Some(loader) = loader {
        bail!("{} is not static: it wants {loader}", path.display());
    }
    Ok(program)
}

/// The loader that an ELF program wants (its segment PT_INTERP, elf(5)); `None` for a static one.
fn interpreter(program: &[u8]) -> object::read::Result<Option<String>> {
    let header = FileHeader64::<Endianness>::parse(program)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, program)? {
        if let Some(loader) = segment.interpreter(endian, program)? {
            return Ok(Some(String::from_utf8_lossy(loader).into_owned()));
        }
    }
    Ok(None)
}

/// The whole image.
fn archive(name: &str, programs: &[Program]) -> Result<Vec<u8>> {
    let layer = layer(programs)?;
    let config = serde_json::to_vec(&config(&layer))?;
    let blob =
        |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", &config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut described = blob("application/vnd.oci.image.manifest.v1+json", &manifest);
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    described["platform"] = json!({"architecture": "amd64", "os": "linux"});
    described["annotations"] =
        json!({"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": qualified(name)});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    });
    let for_docker = json!([{"Config": path(&config), "RepoTags": [name], "Layers": [path(&layer)]}]);
    let mut files = vec![
        ("oci-layout".to_owned(), serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?),
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
        ("manifest.json".to_owned(), serde_json::to_vec(&for_docker)?),
    ];
    files.extend([manifest, config, layer].map(|bytes| (path(&bytes), bytes)));
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["blobs", "blobs/sha256"] {
        append_directory(&mut tar, directory)?;
    }
    for (path, bytes) in &files {
        append_file(&mut tar, path, bytes, 0o644)?;
    }
    tar.into_inner().context("cannot pack the image")
}

/// As containerd and the kubelet name images: with their registry.
fn qualified(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// What a container of it runs. Without a date, so that equal content has an equal name.
fn config(layer: &[u8]) -> Value {
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": "0:0",
            "Env": ["PATH=/"],
            "Entrypoint": ["/weft-agent"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "weft-agent",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created_by": "cargo xtask image"}],
    })
}

fn layer(programs: &[Program]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in DIRECTORIES {
        append_directory(&mut tar, directory)?;
    }
    for (name, program) in programs {
        append_file(&mut tar, name, program, 0o755)?;
    }
    tar.into_inner().context("cannot pack the programs")
}

fn append_directory(tar: &mut tar::Builder<Vec<u8>>, path: &str) -> Result<()> {
    let mut header = header(0, 0o755);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, format!("{path}/"), std::io::empty()).with_context(|| format!("cannot pack {path}"))
}

fn append_file(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    tar.append_data(&mut header(bytes.len(), mode), path, bytes).with_context(|| format!("cannot pack {path}"))
}

/// Owner root, and the time zero: nothing of the machine that packs is in the archive.
fn header(size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
