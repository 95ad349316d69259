use std::time::{Duration, Instant};

use prometheus::Registry;
use serde_json::{Value, json};

use super::*;

struct NodeDirs {
    _directory: tempfile::TempDir,
    places: CniPlaces,
    program: PathBuf,
}

const SOCKET: &str = "/run/weft/cni.sock";

fn node() -> NodeDirs {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let places = CniPlaces { bin_dir: at("bin"), conf_dir: at("net.d") };
    fs::create_dir(&places.bin_dir).unwrap();
    fs::create_dir(&places.conf_dir).unwrap();
    let program = at("image-weft-cni");
    fs::write(&program, "a program").unwrap();
    NodeDirs { _directory: directory, places, program }
}

fn list(name: &str) -> String {
    json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]}).to_string()
}

fn chained_in(path: &Path) -> bool {
    let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    list["plugins"].as_array().unwrap().last().unwrap()["type"] == TYPE
}

fn leftovers(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn the_first_list_by_name_is_chained_and_no_other() {
    let node = node();
    let conf = |name: &str| node.places.conf_dir.join(name);
    assert!(matches!(chain(&node.places.conf_dir, SOCKET.as_ref()), Err(InstallError::Nothing { .. })));
    for name in ["20-b.conflist", "10-a.conflist", "00-note.txt"] {
        fs::write(conf(name), list(name)).unwrap();
    }
    fs::set_permissions(conf("10-a.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(chain(&node.places.conf_dir, SOCKET.as_ref()).unwrap(), (conf("10-a.conflist"), true));
    assert_eq!(chain(&node.places.conf_dir, SOCKET.as_ref()).unwrap(), (conf("10-a.conflist"), false));
    assert_eq!(fs::metadata(conf("10-a.conflist")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(!chained_in(&conf("20-b.conflist")));
    // Another plugin moves in before it.
    fs::write(conf("05-c.conflist"), list("c")).unwrap();
    assert_eq!(chain(&node.places.conf_dir, SOCKET.as_ref()).unwrap(), (conf("05-c.conflist"), true));
    assert_eq!(fs::read_to_string(conf("10-a.conflist")).unwrap(), list("10-a.conflist"), "as it was, to the byte");
    assert_eq!(leftovers(&node.places.conf_dir), Vec::<String>::new());
}

#[test]
fn what_cannot_be_chained_to_stays_as_it_is() {
    for (name, text) in [
        ("10-a.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#),
        ("10-a.conflist", "{ half"),
        ("10-a.conflist", r#"{"plugins":[]}"#),
    ] {
        let node = node();
        let path = node.places.conf_dir.join(name);
        fs::write(&path, text).unwrap();
        let error = chain(&node.places.conf_dir, SOCKET.as_ref()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert!(remove(&node.places).unwrap().is_empty());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    // A link leads to somebody else's file.
    let node = node();
    let target = node.places.bin_dir.join("list");
    fs::write(&target, list("n")).unwrap();
    std::os::unix::fs::symlink(&target, node.places.conf_dir.join("10-a.conflist")).unwrap();
    assert!(matches!(chain(&node.places.conf_dir, SOCKET.as_ref()), Err(InstallError::File { .. })));
    assert_eq!(fs::read_to_string(&target).unwrap(), list("n"));
}

#[test]
fn removal_restores_what_was_there() {
    let node = node();
    let path = node.places.conf_dir.join("10-a.conflist");
    fs::write(&path, list("n")).unwrap();
    install_program(&node.program, &node.places.bin_dir).unwrap();
    chain(&node.places.conf_dir, SOCKET.as_ref()).unwrap();
    assert_eq!(remove(&node.places).unwrap(), [path.clone(), node.places.bin_dir.join(TYPE)]);
    assert_eq!(fs::read_to_string(&path).unwrap(), list("n"));
    assert_eq!(fs::read_dir(&node.places.bin_dir).unwrap().count(), 0);
    assert!(remove(&node.places).unwrap().is_empty(), "a second time there is nothing");
    let nowhere = CniPlaces { bin_dir: "/nonexistent/bin".into(), conf_dir: "/nonexistent/conf".into() };
    assert!(remove(&nowhere).unwrap().is_empty());
}

#[test]
fn a_program_is_copied_once_and_replaced_by_another() {
    let node = node();
    let path = node.places.bin_dir.join(TYPE);
    let inode = || fs::metadata(&path).unwrap().ino();
    install_program(&node.program, &node.places.bin_dir).unwrap();
    let first = inode();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    install_program(&node.program, &node.places.bin_dir).unwrap();
    assert_eq!(inode(), first, "the same one is left alone");
    fs::write(&node.program, "another program").unwrap();
    // A runtime may run the old one at this moment: a running program cannot be written to, but replaced.
    install_program(&node.program, &node.places.bin_dir).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "another program");
    assert_eq!(leftovers(&node.places.bin_dir), Vec::<String>::new());
    let error = install_program(Path::new("/nonexistent"), &node.places.bin_dir).unwrap_err();
    assert!(matches!(error, InstallError::Program { .. }));
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(60), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_list_that_comes_late_or_is_written_anew_gets_the_entry() {
    let node = node();
    let path = node.places.conf_dir.join("10-a.conflist");
    let metrics = CniMetrics::register(&Registry::new()).unwrap();
    let plugin = Plugin::new(node.places.clone());
    let task = tokio::spawn(plugin.clone().keep(node.program.clone(), SOCKET.into(), metrics.clone()));
    eventually("the program", || node.places.bin_dir.join(TYPE).exists()).await;
    assert_eq!(metrics.chained.get(), 0);
    fs::write(&path, list("n")).unwrap();
    eventually("the entry", || chained_in(&path)).await;
    eventually("the metric", || metrics.chained.get() == 1).await;
    // As a network plugin does when it is upgraded.
    let fresh = node.places.conf_dir.join(".fresh");
    fs::write(&fresh, list("m")).unwrap();
    fs::rename(&fresh, &path).unwrap();
    eventually("the entry in the new list", || chained_in(&path)).await;
    assert!(fs::read_to_string(&path).unwrap().contains("\"m\""));
    fs::remove_file(&path).unwrap();
    eventually("the metric to fall", || metrics.chained.get() == 0).await;
    // What is removed is not put back.
    fs::write(&path, list("n")).unwrap();
    eventually("the entry", || chained_in(&path)).await;
    plugin.remove().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), list("n"));
    eventually("the task to end", || task.is_finished()).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), list("n"));
}
