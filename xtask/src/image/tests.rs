use std::{collections::BTreeMap, io::Read};

use super::*;

fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mtime().unwrap(), 0);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), bytes);
    }
    files
}

fn image() -> Vec<u8> {
    archive("example.test/mesh/weft-agent:1", &[("weft-agent", b"agent".to_vec()), ("weft", b"cli".to_vec())]).unwrap()
}

#[test]
fn every_blob_is_what_its_digest_says_and_leads_to_the_programs() {
    let files = unpack(&image());
    let read = |descriptor: &Value| -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = files[&format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())].clone();
        assert_eq!(super::digest(&bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    };
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = json(&files["index.json"]);
    let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
    assert_eq!(name, "example.test/mesh/weft-agent:1");
    let manifest = json(&read(&index["manifests"][0]));
    let config = json(&read(&manifest["config"]));
    let layer = read(&manifest["layers"][0]);
    // An uncompressed layer has the digest of its content.
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    let content = unpack(&layer);
    assert_eq!(content["weft-agent"], b"agent");
    let entry = config["config"]["Entrypoint"][0].as_str().unwrap();
    assert!(content.contains_key(entry.trim_start_matches('/')));
    let docker = &json(&files["manifest.json"])[0];
    assert_eq!(docker["RepoTags"][0], "example.test/mesh/weft-agent:1");
    assert_eq!(files[docker["Layers"][0].as_str().unwrap()], layer);
    assert_eq!(json(&files[docker["Config"].as_str().unwrap()]), config);
}

#[test]
fn equal_programs_give_an_equal_archive() {
    assert_eq!(digest(&image()), digest(&image()));
}

#[test]
fn names_without_a_registry_are_completed_as_the_kubelet_does() {
    for (name, expected) in [
        ("weft-agent:1", "docker.io/library/weft-agent:1"),
        ("mesh/weft-agent:1", "docker.io/mesh/weft-agent:1"),
        ("localhost/weft-agent:1", "localhost/weft-agent:1"),
        ("registry.test:5000/weft-agent:1", "registry.test:5000/weft-agent:1"),
    ] {
        assert_eq!(qualified(name), expected);
    }
}

/// A container's root is read-only, and a runtime cannot make one there.
#[test]
fn everything_that_the_chart_mounts_has_a_place_in_the_image() {
    let template = include_str!("../../../manifests/weft/templates/daemonset.yaml");
    let mounts: Vec<&str> = template
        .lines()
        .filter_map(|line| Some(line.split_once("mountPath: ")?.1.split([',', '}']).next()?.trim()))
        .collect();
    assert!(mounts.len() >= 7, "{mounts:?}");
    // What is mounted inside of another mount has its place there.
    let is_inside = |mount: &str| mounts.iter().any(|other| mount.starts_with(&format!("{other}/")));
    for mount in mounts.iter().copied().filter(|mount| !is_inside(mount)) {
        // A value; this is what it is if nobody says otherwise.
        let path = if mount.starts_with('/') { mount } else { "/run/weft" };
        assert!(DIRECTORIES.contains(&path.trim_start_matches('/')), "{mount}");
    }
}

#[test]
fn a_program_that_wants_a_loader_is_known() {
    // This very test is one.
    let test = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(interpreter(&test).unwrap().is_some_and(|loader| loader.starts_with("/lib64/ld-linux")));
    assert!(interpreter(b"").is_err());
    assert!(interpreter(&[0xff; 64]).is_err());
}
