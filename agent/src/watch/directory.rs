//! A directory of manifests as the source of truth: every change of a file becomes one atomic change of objects.
//!
//! What cannot be read never takes anything away: a broken document keeps the last good version of its objects, a file that
//! cannot be read keeps all of its objects, and each says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::Value;
use weft_crds::{
    object::{Object, ObjectKey},
    parse::{self, Parsed},
    store::ObjectEvent,
};

use super::{Change, SourceProblem, yaml};
use crate::limits;

/// Why a directory cannot be a source at all.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory cannot be listed.
    #[error("cannot read the manifest directory {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Reads a directory again and again, and tells what changed in between.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What the store has been told, with the raw value that it was parsed from.
    told: BTreeMap<ObjectKey, Value>,
}

/// The last good content of one file, and what is wrong with its present content.
#[derive(Debug, Default)]
struct File {
    fingerprint: Option<Fingerprint>,
    objects: BTreeMap<ObjectKey, Held>,
    problems: Vec<SourceProblem>,
}

#[derive(Clone, Debug)]
struct Held {
    object: Object,
    raw: Value,
    document: usize,
    line: usize,
}

/// Differs whenever a file was replaced or written, but for a write within one tick of the filesystem's clock; such a file is
/// named by its inotify event and read again whatever its fingerprint says.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Fingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Directory {
    /// A directory that has not been read yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), files: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// Reads what changed since the last time. Files in `touched` are read even if they look the same.
    ///
    /// # Errors
    /// When the directory itself cannot be listed; nothing that was told before changes then.
    pub fn scan(&mut self, touched: &BTreeSet<PathBuf>) -> Result<Change, DirectoryError> {
        let mut problems = Vec::new();
        let present = self.list(&mut problems)?;
        self.files.retain(|path, _| present.contains(path));
        for path in present {
            let file = self.files.entry(path.clone()).or_default();
            let touched = touched.iter().any(|touched| touched.file_name() == path.file_name());
            file.refresh(&path, touched);
        }
        let mut wanted: BTreeMap<&ObjectKey, (&Path, &Held)> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for (key, held) in &file.objects {
                if let Some((first, _)) = wanted.get(key) {
                    problems.push(SourceProblem {
                        file: show(path),
                        document: held.document,
                        line: held.line,
                        object: key.to_string(),
                        field: "metadata.name".into(),
                        message: format!(
                            "the same object is in {} too; that one is in force, this one is not",
                            show(first)
                        ),
                    });
                    continue;
                }
                wanted.insert(key, (path, held));
            }
        }
        let mut events = Vec::new();
        for key in self.told.keys() {
            if !wanted.contains_key(key) {
                events.push(ObjectEvent::Delete(key.clone()));
            }
        }
        for (key, (_, held)) in &wanted {
            if self.told.get(*key) != Some(&held.raw) {
                events.push(ObjectEvent::Apply(held.object.clone()));
            }
        }
        let told = wanted.into_iter().map(|(key, (_, held))| (key.clone(), held.raw.clone())).collect();
        self.told = told;
        problems.sort();
        Ok(Change { events, problems: problems.into() })
    }

    fn list(&self, problems: &mut Vec<SourceProblem>) -> Result<BTreeSet<PathBuf>, DirectoryError> {
        let error = |source| DirectoryError::List { path: self.root.clone(), source };
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(&self.root).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if is_manifest(&path) && path.is_file() {
                present.insert(path);
            }
        }
        while present.len() > limits::MANIFEST_FILES_MAX {
            if let Some(path) = present.pop_last() {
                let message = format!("not read: a directory may hold {} manifest files", limits::MANIFEST_FILES_MAX);
                problems.push(whole_file(&path, message));
            }
        }
        Ok(present)
    }
}

/// Whether a path is read: `.yaml`, `.yml` and `.json`, but nothing hidden (editors' and ConfigMap volumes' own files).
#[must_use]
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden
        && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

impl File {
    fn refresh(&mut self, path: &Path, touched: bool) {
        let fingerprint = match std::fs::metadata(path) {
            Ok(metadata) => Fingerprint {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            },
            Err(error) => return self.unreadable(path, &error.to_string()),
        };
        if self.fingerprint == Some(fingerprint) && !touched {
            return;
        }
        if fingerprint.bytes > limits::MANIFEST_FILE_BYTES_MAX {
            let limit = limits::MANIFEST_FILE_BYTES_MAX;
            return self.unreadable(path, &format!("{} bytes are over the limit of {limit}", fingerprint.bytes));
        }
        match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => {
                self.fingerprint = Some(fingerprint);
                self.read(path, &text);
            }
            Ok(Err(error)) => self.unreadable(path, &format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())),
            Err(error) => self.unreadable(path, &error.to_string()),
        }
    }

    fn unreadable(&mut self, path: &Path, why: &str) {
        self.fingerprint = None;
        let kept = self.objects.len();
        self.problems = vec![whole_file(path, format!("cannot be read: {why}; its {kept} objects stay as they were"))];
    }

    fn read(&mut self, path: &Path, text: &str) {
        let mut before = std::mem::take(&mut self.objects);
        let mut problems = Vec::new();
        let mut keep_unnamed = false;
        let mut documents = yaml::documents(text);
        if documents.len() > limits::MANIFEST_DOCUMENTS_MAX {
            let limit = limits::MANIFEST_DOCUMENTS_MAX;
            problems.push(whole_file(path, format!("only the first {limit} documents are read")));
            documents.truncate(limit);
        }
        for document in documents {
            let problem = |object: String, field: String, line: usize, message: String| SourceProblem {
                file: show(path),
                document: document.number,
                line,
                object,
                field,
                message,
            };
            let value = match document.value {
                Ok(value) => value,
                Err(error) => {
                    keep_unnamed = true;
                    let message = format!(
                        "not valid YAML: {}; every object that this file had and has no new version of stays as it was",
                        error.message
                    );
                    problems.push(problem(String::new(), String::new(), error.line, message));
                    continue;
                }
            };
            let Parsed { objects, errors, ignored } = parse::parse(&value);
            for kind in ignored {
                tracing::debug!(file = %path.display(), document = document.number, kind, "object is of no concern to weft");
            }
            for (object, raw) in objects {
                let key = object.key();
                let held = Held { object, raw, document: document.number, line: document.line };
                if self.objects.insert(key.clone(), held).is_some() {
                    let message = "the same object is in this file twice; the last one is in force".to_owned();
                    problems.push(problem(key.to_string(), "metadata.name".into(), document.line, message));
                }
            }
            for error in errors {
                let kept = match error.key.as_ref() {
                    Some(key) => before.remove(key).map(|held| (key.clone(), held)),
                    None => {
                        keep_unnamed = true;
                        None
                    }
                };
                let fate =
                    if kept.is_some() { "the last good version stays in force" } else { "nothing of it is in force" };
                let message = format!("{}; {fate}", error.message);
                problems.push(problem(error.object.clone(), error.field.clone(), document.line, message));
                if let Some((key, held)) = kept {
                    self.objects.entry(key).or_insert(held);
                }
            }
        }
        if keep_unnamed {
            // It cannot be told which object a broken document was, so none of this file's is taken away.
            for (key, held) in before {
                self.objects.entry(key).or_insert(held);
            }
        }
        self.problems = problems;
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn whole_file(path: &Path, message: String) -> SourceProblem {
    SourceProblem { file: show(path), document: 0, line: 0, object: String::new(), field: String::new(), message }
}

#[cfg(test)]
mod tests;
