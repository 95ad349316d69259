//! Embeds the BPF objects that `cargo xtask build-ebpf` made. Without them the agent still builds and is tested, on a plain
//! toolchain; only `run` refuses.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=WEFT_BPF_DIR");
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let dir = match env::var_os("WEFT_BPF_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => manifest_dir.parent().ok_or("the agent is not inside a workspace")?.join("target/bpf"),
    };
    // A file that does not exist would make every build a rebuild; a directory is only looked at.
    if dir.is_dir() || fs::create_dir_all(&dir).is_ok() {
        println!("cargo::rerun-if-changed={}", dir.display());
    }
    let mut source = String::new();
    let objects =
        [("CGROUP", "weft-cgroup.bpf.o"), ("LOOKUP", "weft-lookup.bpf.o"), ("RELEASED", "weft-released.bpf.o")];
    for (name, file) in objects {
        let path = dir.join(file);
        let value = if path.is_file() {
            println!("cargo::rerun-if-changed={}", path.display());
            format!("Some(aya::include_bytes_aligned!({:?}))", absolute(&path)?)
        } else {
            "None".to_owned()
        };
        source.push_str(&format!("static {name}: Option<&[u8]> = {value};\n"));
    }
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("bpf_objects.rs"), source)?;
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, Box<dyn Error>> {
    Ok(fs::canonicalize(path)?)
}
