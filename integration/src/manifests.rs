//! The directory of manifests that an agent follows: one file an object, replaced whole by rename.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{node::Node, pod::Pod};

/// Names the network namespace of a pod.
pub const NETNS_ANNOTATION: &str = "weft.dev/netns";
/// Names the cgroup of a pod.
pub const CGROUP_ANNOTATION: &str = "weft.dev/cgroup";
/// Label of a namespace (or pod) whose pods are captured, with the value `enabled`.
pub const MESH_LABEL: &str = "weft.dev/mesh";
/// Label that says what happens while the agent is gone: `open` or `closed`.
pub const FAIL_MODE_LABEL: &str = "weft.dev/fail-mode";

/// Label of a namespace that says what holds where no TrafficTarget selects: `allow` or `deny`.
pub const STANCE_LABEL: &str = "weft.dev/default";

/// Identifies an object: kind, namespace, name.
pub type Key = (String, String, String);

/// A directory of manifests, and the objects in it.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    /// On the same file system, so that a rename is atomic, and outside of the directory that is watched.
    staging: PathBuf,
    /// Each with the file that holds it.
    objects: BTreeMap<Key, (String, Value)>,
}

impl Manifests {
    /// An empty directory that belongs to the node.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(node: &Node) -> Result<Self> {
        Self::at(&node.state_dir().join("manifests"), &node.state_dir().join("staging"))
    }

    /// An empty directory at `dir`; `staging` must be on the same file system.
    ///
    /// # Errors
    /// When they cannot be created.
    pub fn at(dir: &Path, staging: &Path) -> Result<Self> {
        for dir in [dir, staging] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(Self { dir: dir.to_path_buf(), staging: staging.to_path_buf(), objects: BTreeMap::new() })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything in it.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values().map(|(_, object)| object)
    }

    /// The objects of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |((of, ..), _)| of == kind).map(|(_, (_, object))| object)
    }

    /// Writes an object, in place of the one with its kind, namespace and name.
    ///
    /// # Errors
    /// When the object has no kind or name, or the file cannot be written.
    pub fn put(&mut self, object: &Value) -> Result<()> {
        let key = key(object)?;
        let text = serde_saphyr::to_string(object).with_context(|| format!("cannot write {key:?} as YAML"))?;
        let file = file_name(&key);
        self.put_text(&file, &text)?;
        self.objects.insert(key, (file, object.clone()));
        Ok(())
    }

    /// Writes a file of YAML documents, in place of the file with that name and all objects in it.
    ///
    /// # Errors
    /// When it is not YAML, a document is no object, or the file cannot be written.
    pub fn put_yaml(&mut self, file: &str, text: &str) -> Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| format!("{file} is not YAML"))?;
        let keys = documents.iter().map(key).collect::<Result<Vec<_>>>().with_context(|| format!("in {file}"))?;
        self.put_text(file, text)?;
        self.objects.retain(|_, (of, _)| of != file);
        self.objects.extend(keys.into_iter().zip(documents.into_iter().map(|object| (file.to_owned(), object))));
        Ok(())
    }

    /// Writes several objects, each as [`put`](Self::put) does.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_all<'a>(&mut self, objects: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        objects.into_iter().try_for_each(|object| self.put(object))
    }

    /// Writes a pod, ready.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_pod(&mut self, pod: &Pod) -> Result<()> {
        self.put(&pod.object(true))
    }

    /// Writes any text into a file, by rename.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let staged = self.staging.join(file);
        let target = self.dir.join(file);
        fs::write(&staged, text).with_context(|| format!("cannot write {}", staged.display()))?;
        fs::rename(&staged, &target).with_context(|| format!("cannot rename to {}", target.display()))
    }

    /// Removes a file and all objects in it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_file(&mut self, file: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        self.objects.retain(|_, (of, _)| of != file);
        Ok(())
    }

    /// Removes an object that [`put`](Self::put) wrote.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.remove_file(&file_name(&(kind.to_owned(), namespace.to_owned(), name.to_owned())))
    }

    /// The file that holds an object that [`put`](Self::put) wrote.
    #[must_use]
    pub fn path_of(&self, kind: &str, namespace: &str, name: &str) -> PathBuf {
        self.dir.join(file_name(&(kind.to_owned(), namespace.to_owned(), name.to_owned())))
    }
}

/// Kind, namespace and name of an object.
///
/// # Errors
/// When it has none.
pub fn key(object: &Value) -> Result<Key> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/kind").context("an object without kind")?;
    let name = text("/metadata/name").with_context(|| format!("a {kind} without name"))?;
    Ok((kind, text("/metadata/namespace").unwrap_or_default(), name))
}

fn file_name((kind, namespace, name): &Key) -> String {
    let kind = kind.to_lowercase();
    if namespace.is_empty() { format!("{kind}-{name}.yaml") } else { format!("{kind}-{namespace}-{name}.yaml") }
}
