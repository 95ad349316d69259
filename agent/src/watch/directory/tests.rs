use std::{collections::BTreeSet, fs};

use tempfile::TempDir;

use super::*;

/// A directory on disk and its reader.
struct Fixture {
    dir: TempDir,
    reader: Directory,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let reader = Directory::new(dir.path());
        Self { dir, reader }
    }

    fn write(&self, name: &str, text: &str) {
        let fresh = self.dir.path().join(".fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.dir.path().join(name)).unwrap();
    }

    /// Applied and deleted objects by name, and problems.
    fn scan(&mut self) -> (Vec<String>, Vec<String>, Vec<SourceProblem>) {
        let change = self.reader.scan(&BTreeSet::new()).unwrap();
        let (mut applied, mut deleted) = (Vec::new(), Vec::new());
        for event in change.events {
            match event {
                ObjectEvent::Apply(object) => applied.push(object.key().to_string()),
                ObjectEvent::Delete(key) => deleted.push(key.to_string()),
            }
        }
        (applied, deleted, change.problems.to_vec())
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

fn split(weight: &str) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: canary, namespace: shop}}\n\
         spec:\n  service: web\n  backends:\n  - {{service: web-v1, weight: {weight}}}\n"
    )
}

#[test]
fn every_document_of_every_file_is_told_once() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), service("web-v1", 80)));
    fixture.write("b.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#);
    fixture.write("notes.txt", "not a manifest");
    let (applied, deleted, problems) = fixture.scan();
    assert_eq!(applied.len(), 3, "{applied:?}");
    assert!(deleted.is_empty() && problems.is_empty(), "{problems:?}");
    assert_eq!(fixture.scan(), (vec![], vec![], vec![]));
}

#[test]
fn only_what_changed_is_told_again() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), service("web-v1", 80)));
    fixture.scan();
    fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), service("web-v1", 81)));
    let (applied, deleted, _) = fixture.scan();
    assert_eq!((applied.len(), deleted.len()), (1, 0), "{applied:?}");
    fixture.write("a.yaml", &service("web", 80));
    let (applied, deleted, _) = fixture.scan();
    assert_eq!((applied.len(), deleted.len()), (0, 1), "{deleted:?}");
    fs::remove_file(fixture.dir.path().join("a.yaml")).unwrap();
    assert_eq!(fixture.scan().1.len(), 1);
}

#[test]
fn a_refused_object_keeps_its_last_good_version_and_names_the_field() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), split("10")));
    fixture.scan();
    for (weight, field) in [("-1", "weight"), ("1.5", "weight"), ("\"many\"", "weight"), ("0", "backends")] {
        fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), split(weight)));
        let (applied, deleted, problems) = fixture.scan();
        assert!(applied.is_empty() && deleted.is_empty(), "{weight}: {applied:?} {deleted:?}");
        let [problem] = &problems[..] else { panic!("{weight}: {problems:?}") };
        assert_eq!((problem.document, problem.line), (2, 6), "{problem:?}");
        assert!(problem.object.contains("canary") && problem.field.contains(field), "{problem:?}");
        assert!(problem.message.contains("last good version stays in force"), "{problem:?}");
    }
    fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), split("20")));
    let (applied, _, problems) = fixture.scan();
    assert!(applied.len() == 1 && problems.is_empty(), "{problems:?}");
}

#[test]
fn a_document_that_is_not_yaml_takes_nothing_away_and_leaves_the_others_usable() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &format!("{}---\n{}", service("web", 80), split("10")));
    fixture.scan();
    fixture.write("a.yaml", &format!("{}---\nkind: [TrafficSplit\n---\n{}", service("web", 81), service("web-v1", 80)));
    let (applied, deleted, problems) = fixture.scan();
    assert_eq!(applied.len(), 2, "the good documents are applied: {applied:?}");
    assert!(deleted.is_empty(), "{deleted:?}");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].document, 2);
    assert!(problems[0].message.contains("not valid YAML"), "{problems:?}");
}

#[test]
fn a_file_that_cannot_be_read_keeps_its_objects() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("web", 80));
    fixture.scan();
    let path = fixture.dir.path().join("a.yaml");
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let (applied, deleted, problems) = fixture.scan();
    assert!(applied.is_empty() && deleted.is_empty());
    assert!(
        problems[0].message.contains("not UTF-8") && problems[0].message.contains("1 objects stay"),
        "{problems:?}"
    );
}

#[test]
fn the_same_object_in_two_files_is_in_force_from_the_first_and_reported() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("web", 80));
    fixture.write("b.yaml", &service("web", 81));
    let (applied, _, problems) = fixture.scan();
    assert_eq!(applied.len(), 1);
    assert!(problems[0].file.ends_with("b.yaml") && problems[0].message.contains("a.yaml"), "{problems:?}");
    fs::remove_file(fixture.dir.path().join("a.yaml")).unwrap();
    let (applied, deleted, problems) = fixture.scan();
    assert!(applied.len() == 1 && deleted.is_empty() && problems.is_empty(), "the second one takes over without a gap");
}

#[test]
fn a_directory_that_is_gone_is_an_error_and_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("web", 80));
    fixture.scan();
    fs::remove_dir_all(fixture.dir.path()).unwrap();
    assert!(fixture.reader.scan(&BTreeSet::new()).is_err());
    fs::create_dir(fixture.dir.path()).unwrap();
    fixture.write("a.yaml", &service("web", 80));
    assert_eq!(fixture.scan(), (vec![], vec![], vec![]));
}

#[test]
fn a_write_that_looks_the_same_is_read_when_it_is_named() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("web", 80));
    fixture.scan();
    let path = fixture.dir.path().join("a.yaml");
    let change = fixture.reader.scan(&BTreeSet::from([path])).unwrap();
    assert!(change.events.is_empty() && change.problems.is_empty());
}
