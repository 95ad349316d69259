//! Manifests named on the command line.

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::lines::Lines;
use crate::{
    limits,
    watch::{
        directory::is_manifest,
        yaml::{self, YamlError},
    },
};

/// Why nothing can be read at all.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file or directory that was named cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// As it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is larger than the agent would read.
    #[error("{path} is over the limit of {} bytes", limits::MANIFEST_FILE_BYTES_MAX)]
    TooLarge {
        /// As it was named.
        path: PathBuf,
    },
    /// A directory has no manifest.
    #[error("{path} has no *.yaml, *.yml or *.json file in it (subdirectories are not read)")]
    Empty {
        /// As it was named.
        path: PathBuf,
    },
    /// There are more documents than the agent would read.
    #[error("{path} has over {} documents", limits::MANIFEST_DOCUMENTS_MAX)]
    TooMany {
        /// As it was named.
        path: PathBuf,
    },
}

/// One document of one file. Items of a List are documents of their own.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file as it was named; `-` for standard input.
    pub file: String,
    /// From 1 inside the file.
    pub document: usize,
    /// Line at which it starts, from 1.
    pub line: usize,
    /// The path of the item inside its List, `items[3]`; empty for a document by itself.
    pub item: String,
    /// Where its fields are.
    pub lines: Lines,
    /// What it holds.
    pub value: Result<Value, YamlError>,
}

impl Source {
    /// The line of a field, from 1: that of its nearest parent if the field itself is not there.
    #[must_use]
    pub fn line_of(&self, field: &str) -> usize {
        let path = match (self.item.as_str(), field) {
            ("", field) => field.to_owned(),
            (item, "") => item.to_owned(),
            (item, field) => format!("{item}.{field}"),
        };
        self.lines.find(&path).map_or(self.line, |line| self.line + line - 1)
    }
}

/// Reads files, the manifests directly inside directories, and standard input (`-`), in this order.
///
/// # Errors
/// When something that was named cannot be read. Documents that are no YAML are no such error: each says so itself.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Source>, FilesError> {
    let mut sources = Vec::new();
    for path in paths {
        let failed = |source| FilesError::Read { path: path.clone(), source };
        if path == Path::new("-") {
            let mut text = Vec::new();
            io::stdin().take(limits::MANIFEST_FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
            add(path, text, &mut sources)?;
        } else if path.is_dir() {
            let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
            let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
            files.retain(|file| is_manifest(file) && file.is_file());
            files.sort();
            if files.is_empty() {
                return Err(FilesError::Empty { path: path.clone() });
            }
            for file in files {
                add_file(&file, &mut sources)?;
            }
        } else {
            add_file(path, &mut sources)?;
        }
    }
    Ok(sources)
}

fn add_file(path: &Path, sources: &mut Vec<Source>) -> Result<(), FilesError> {
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limits::MANIFEST_FILE_BYTES_MAX + 1).read_to_end(&mut text))
        .map_err(|source| FilesError::Read { path: path.to_owned(), source })?;
    add(path, text, sources)
}

fn add(path: &Path, text: Vec<u8>, sources: &mut Vec<Source>) -> Result<(), FilesError> {
    if text.len() as u64 > limits::MANIFEST_FILE_BYTES_MAX {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    let text = String::from_utf8(text).map_err(|error| FilesError::Read {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })?;
    let found = parse(&path.display().to_string(), &text);
    if found.len() > limits::MANIFEST_DOCUMENTS_MAX {
        return Err(FilesError::TooMany { path: path.to_owned() });
    }
    sources.extend(found);
    Ok(())
}

/// The documents of one file's text.
#[must_use]
pub fn parse(file: &str, text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for document in yaml::documents(text) {
        let source = Source {
            file: file.to_owned(),
            document: document.number,
            line: document.line,
            item: String::new(),
            lines: Lines::new(&document.text),
            value: document.value,
        };
        items(source, 0, &mut sources);
    }
    sources
}

fn items(source: Source, depth: usize, sources: &mut Vec<Source>) {
    let is_list = |value: &Value| value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    let list = source.value.as_ref().ok().filter(|value| is_list(value));
    match list.and_then(|value| value.get("items")).and_then(Value::as_array) {
        Some(list) if depth < weft_crds::limits::LIST_DEPTH_MAX => {
            for (index, item) in list.iter().enumerate() {
                let prefix = if source.item.is_empty() { String::new() } else { format!("{}.", source.item) };
                let one = Source {
                    file: source.file.clone(),
                    item: format!("{prefix}items[{index}]"),
                    lines: source.lines.clone(),
                    value: Ok(item.clone()),
                    ..source
                };
                items(one, depth + 1, sources);
            }
        }
        _ => sources.push(source),
    }
}
