//! Rules of this repository that no other tool knows: who may import whom, how long a file may be, what no file may hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::sh;

/// Lines of a source file. Past this it is two files.
const FILE_LINES_MAX: usize = 800;

/// Which crates of the workspace a crate may import.
const IMPORTS: [(&str, &[&str]); 10] = [
    ("weft-abi", &[]),
    ("weft-policy", &[]),
    ("weft-crds", &["weft-policy"]),
    // Itself: its tests want what it has for tests of others.
    ("weft-identity", &["weft-identity", "weft-policy"]),
    ("weft-proxy", &["weft-identity", "weft-policy"]),
    ("weft-agent", &["weft-abi", "weft-crds", "weft-identity", "weft-policy", "weft-proxy"]),
    ("weft-ebpf", &["weft-abi"]),
    ("weft-integration", &["weft-abi", "weft-agent", "weft-crds", "weft-identity", "weft-policy", "weft-proxy"]),
    ("weft-bench", &["weft-abi", "weft-agent", "weft-identity", "weft-integration", "weft-policy"]),
    ("xtask", &["weft-crds", "weft-integration"]),
];

/// What must not be anywhere below a crate, and why.
const NEVER_BELOW: [(&str, &[&str], &str); 4] = [
    ("weft-policy", &["tokio", "hyper", "kube", "k8s-openapi", "aya"], "policy is pure"),
    ("weft-crds", &["tokio", "hyper", "kube", "aya"], "kinds and their lowering do no I/O"),
    ("weft-identity", &["hyper", "kube", "k8s-openapi", "aya"], "identities are made without I/O"),
    ("weft-proxy", &["kube", "k8s-openapi", "aya"], "the data path knows plans, not clusters or kernels"),
];

/// Where unsafe code may be allowed.
const UNSAFE_ROOMS: [&str; 3] = ["agent/src/capture", "agent/tests/capture", "ebpf/"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Option<Resolve>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDep>,
}

#[derive(Deserialize)]
struct NodeDep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

/// Checks everything; names every violation.
pub(crate) fn run() -> Result<()> {
    let metadata = metadata(&[])?;
    let mut violations = imports(&metadata);
    violations.extend(below(&metadata)?);
    violations.extend(imports(&self::metadata(&["--manifest-path", "ebpf/Cargo.toml", "--no-deps"])?));
    violations.extend(files()?);
    if !violations.is_empty() {
        bail!("{} violation(s):\n{}", violations.len(), violations.join("\n"));
    }
    Ok(())
}

fn metadata(args: &[&str]) -> Result<Metadata> {
    let text = sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--locked"]).args(args))?;
    serde_json::from_str(&text).context("cannot read cargo's metadata")
}

fn imports(metadata: &Metadata) -> Vec<String> {
    let rules: BTreeMap<_, _> = IMPORTS.into_iter().collect();
    let mut violations = Vec::new();
    for package in &metadata.packages {
        let Some(allowed) = rules.get(package.name.as_str()) else { continue };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            if !allowed.contains(&dependency.name.as_str()) {
                violations
                    .push(format!("{} imports {}, but may import only {allowed:?}", package.name, dependency.name));
            }
        }
    }
    violations
}

/// Follows normal and build dependencies, not those of tests.
fn below(metadata: &Metadata) -> Result<Vec<String>> {
    let resolve = metadata.resolve.as_ref().context("cargo did not resolve the dependencies")?;
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
    let edges: BTreeMap<_, Vec<_>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let deps =
                node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev")));
            (node.id.as_str(), deps.map(|dep| dep.pkg.as_str()).collect())
        })
        .collect();
    let mut violations = Vec::new();
    for (name, forbidden, why) in NEVER_BELOW {
        let root = metadata
            .packages
            .iter()
            .find(|package| package.name == name)
            .with_context(|| format!("no crate {name}"))?;
        let mut reached = BTreeSet::new();
        let mut open = vec![root.id.as_str()];
        while let Some(id) = open.pop() {
            if reached.insert(id) {
                open.extend(edges.get(id).into_iter().flatten());
            }
        }
        let reached: BTreeSet<_> = reached.iter().filter_map(|id| names.get(id)).collect();
        violations.extend(
            forbidden
                .iter()
                .filter(|bad| reached.contains(bad))
                .map(|bad| format!("{name} depends on {bad}, but {why}")),
        );
    }
    Ok(violations)
}

fn files() -> Result<Vec<String>> {
    let mut violations = Vec::new();
    let listed = sh::output(&mut sh::command("git", &["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    for file in listed.lines().filter(|file| !file.ends_with(".lock")) {
        // Not text, or deleted but not yet committed so.
        let Ok(text) = fs::read_to_string(sh::root().join(file)) else { continue };
        violations.extend(file_violations(file, &text));
    }
    Ok(violations)
}

fn file_violations(file: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not hold them.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let allows_unsafe = concat!("allow(", "unsafe_code)");
    let mut violations = Vec::new();
    let is_rust = file.ends_with(".rs");
    let lines_total = text.lines().count();
    if is_rust && lines_total > FILE_LINES_MAX {
        violations.push(format!("{file}: {lines_total} lines, more than {FILE_LINES_MAX}"));
    }
    for (index, line) in text.lines().enumerate() {
        let place = format!("{file}:{}", index + 1);
        for word in unfinished.iter().filter(|word| line.contains(**word)) {
            violations.push(format!("{place}: {word}: finish it, or open an issue"));
        }
        if is_rust && line.contains(allows_unsafe) && !UNSAFE_ROOMS.iter().any(|room| file.starts_with(room)) {
            violations.push(format!("{place}: unsafe code is only for {UNSAFE_ROOMS:?}"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_unfinished_work_and_stray_unsafe_are_found() {
        let long = "line\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(file_violations("agent/src/a.rs", &long).len(), 1);
        assert_eq!(file_violations("README.md", &long).len(), 0);
        let unfinished = format!("// {}{}: later\n", "TO", "DO");
        assert_eq!(file_violations("docs/a.md", &unfinished).len(), 1);
        let unsafe_code = format!("#![allow({}_code)]\n", "unsafe");
        assert_eq!(file_violations("agent/proxy/src/a.rs", &unsafe_code).len(), 1);
        assert_eq!(file_violations("agent/src/capture/maps.rs", &unsafe_code).len(), 0);
    }

    #[test]
    fn a_forbidden_import_is_found() {
        let dependency = Dependency { name: "weft-agent".to_owned(), path: Some("/agent".to_owned()) };
        let package = Package { id: "1".to_owned(), name: "weft-proxy".to_owned(), dependencies: vec![dependency] };
        let metadata = Metadata { packages: vec![package], resolve: None };
        assert_eq!(imports(&metadata).len(), 1);
    }
}
