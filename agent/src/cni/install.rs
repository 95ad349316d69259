//! The plugin on the node: the program in the runtime's directory, and the entry in the network configuration that the runtime uses.
//!
//! That configuration is another plugin's file, which may come later than the agent, be written anew, or be replaced by another one, so it
//! is watched. Nothing here stops the agent: without the plugin, pods are captured a moment after they start.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{
    conflist::{self, ConflistError, TYPE},
    metrics::CniMetrics,
};
use crate::{limits, telemetry::Chain};

/// Where the container runtime looks for plugins and configurations, as far as this process sees it.
#[derive(Clone, Debug)]
pub struct CniPlaces {
    /// Programs.
    pub bin_dir: PathBuf,
    /// Network configurations.
    pub conf_dir: PathBuf,
}

/// The plugin of this node, in the hands of who keeps it in its place and of who takes it away for good.
#[derive(Clone, Debug)]
pub struct Plugin {
    places: CniPlaces,
    removed: Arc<Mutex<bool>>,
}

/// Why the plugin is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The program.
    #[error("cannot copy the plugin to {path}")]
    Program {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory of configurations.
    #[error("cannot read {path}")]
    Directory {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is none yet.
    #[error("{path} has no network configuration yet; one is waited for")]
    Nothing {
        /// Where.
        path: PathBuf,
    },
    /// A single plugin's configuration, to which none can be chained.
    #[error("{path} is a single plugin's configuration and no list (*.conflist), so no plugin can be chained to it")]
    NoList {
        /// Which.
        path: PathBuf,
    },
    /// A list that is not understood; it stays as it is.
    #[error("{path} stays as it is")]
    List {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ConflistError,
    },
    /// A list that cannot be written.
    #[error("{path} cannot be read or written and stays as it is")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Plugin {
    /// A plugin that nobody keeps in its place yet.
    #[must_use]
    pub fn new(places: CniPlaces) -> Self {
        Self { places, removed: Arc::default() }
    }

    /// Keeps it in its place until the task is dropped. `socket`: the agent's, by the node's path.
    pub async fn keep(self, program: PathBuf, socket: PathBuf, metrics: CniMetrics) {
        let (event, mut events) = mpsc::channel(1);
        let mut watcher = None;
        let mut said = String::new();
        loop {
            if watcher.is_none() || !self.places.conf_dir.is_dir() {
                watcher = watch(&self.places.conf_dir, event.clone());
            }
            let (plugin, program, socket) = (self.clone(), program.clone(), socket.clone());
            let Ok(done) = tokio::task::spawn_blocking(move || plugin.put(&program, &socket)).await else { return };
            let mut changed = false;
            match done {
                Ok(None) => return,
                Ok(Some((path, is_new))) => {
                    metrics.chained.set(1);
                    if is_new {
                        tracing::info!(path = %path.display(), "the CNI plugin is in the node's network configuration");
                    }
                    said.clear();
                    changed = is_new;
                }
                Err(error) => {
                    metrics.chained.set(0);
                    let text = Chain(&error).to_string();
                    if text != said {
                        tracing::warn!(
                            error = text,
                            "the CNI plugin is not in the node's network configuration; pods are captured a moment after they start"
                        );
                        said = text;
                    }
                }
            }
            if changed {
                tokio::time::sleep(limits::CNI_CHANGE_PAUSE).await;
            }
            if let Ok(None) = tokio::time::timeout(limits::CNI_LOOK, events.recv()).await {
                return;
            }
            // A file is often written in several steps.
            tokio::time::sleep(limits::MANIFEST_QUIET_CAP).await;
        }
    }

    /// One round; nothing once it is removed.
    fn put(&self, program: &Path, socket: &Path) -> Result<Option<(PathBuf, bool)>, InstallError> {
        // Held while files are written: a removal comes before or after a round.
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return Ok(None);
        }
        install_program(program, &self.places.bin_dir)?;
        chain(&self.places.conf_dir, socket).map(Some)
    }

    /// Takes it away for good; see [`remove`].
    ///
    /// # Errors
    /// As [`remove`].
    pub fn remove(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        *removed = true;
        remove(&self.places)
    }
}

fn watch(directory: &Path, event: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let handler = move |happened: notify::Result<notify::Event>| {
        if happened.is_ok_and(|happened| !happened.kind.is_access() || happened.kind == CLOSED) {
            // A full queue means that a round is due anyway.
            let _ = event.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler).ok()?;
    watcher.watch(directory, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

const CLOSED: notify::EventKind =
    notify::EventKind::Access(notify::event::AccessKind::Close(notify::event::AccessMode::Write));

/// The plugin's program beside this one: both are in the same image.
///
/// # Errors
/// When this process cannot tell where it is.
pub fn program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(TYPE))
}

/// Copies the program, if another one or none is there.
///
/// # Errors
/// When it cannot be read or written.
pub fn install_program(program: &Path, bin_dir: &Path) -> Result<(), InstallError> {
    let path = bin_dir.join(TYPE);
    let copy = || {
        let (wanted, found) = (fs::metadata(program)?, fs::metadata(&path));
        // A copy has the time of its original, so that a look is enough to tell.
        if found.is_ok_and(|found| found.len() == wanted.len() && found.modified().ok() == wanted.modified().ok()) {
            return Ok(());
        }
        let bytes = fs::read(program)?;
        replace(&path, &bytes, |file| {
            file.set_permissions(fs::Permissions::from_mode(0o755))?;
            file.set_modified(wanted.modified()?)
        })
    };
    copy().map_err(|source| InstallError::Program { path: path.clone(), source })
}

/// Puts the entry into the configuration that the runtime uses, and takes it out of all others. Returns which, and whether it was not there.
///
/// # Errors
/// When there is none, or it cannot be understood or written; it is as it was then.
pub fn chain(conf_dir: &Path, socket: &Path) -> Result<(PathBuf, bool), InstallError> {
    let files = configurations(conf_dir)?;
    let (used, others) = files.split_first().ok_or_else(|| InstallError::Nothing { path: conf_dir.to_owned() })?;
    for other in others {
        // Left behind when another configuration came before it. Not understood: not ours either.
        let _ = edit(other, conflist::unchained);
    }
    if used.extension().is_none_or(|extension| extension != "conflist") {
        return Err(InstallError::NoList { path: used.clone() });
    }
    let changed = edit(used, |text| conflist::chained(text, socket))?;
    Ok((used.clone(), changed))
}

/// Takes entry and program away, in this order: the runtime refuses pods whose configuration names a plugin that is not there. Returns
/// what was removed.
///
/// # Errors
/// When something could not be removed; the program stays as long as a configuration names it.
pub fn remove(places: &CniPlaces) -> Result<Vec<PathBuf>, InstallError> {
    let mut removed = Vec::new();
    for path in configurations(&places.conf_dir)? {
        match edit(&path, conflist::unchained) {
            Ok(true) => removed.push(path),
            // It cannot name ours in a way that a runtime understands.
            Ok(false) | Err(InstallError::List { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let path = places.bin_dir.join(TYPE);
    match fs::remove_file(&path) {
        Ok(()) => removed.push(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(InstallError::Program { path, source }),
    }
    Ok(removed)
}

/// Configurations in the order in which runtimes prefer them: by name (containerd, go-cni; CRI-O, ocicni).
fn configurations(directory: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let failed = |source| InstallError::Directory { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries.take(limits::CNI_CONFIG_FILES_MAX) {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if ["conf", "conflist", "json"].contains(&extension) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Edits a list in one step; `None` leaves it alone. Returns whether it was changed.
fn edit(path: &Path, change: impl FnOnce(&str) -> Result<Option<String>, ConflistError>) -> Result<bool, InstallError> {
    let failed = |source| InstallError::File { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > limits::CNI_CONFIG_BYTES_MAX {
        let what = format!("it is no plain file of at most {} bytes", limits::CNI_CONFIG_BYTES_MAX);
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    let before = fs::read_to_string(path).map_err(failed)?;
    let changed = change(&before).map_err(|source| InstallError::List { path: path.to_owned(), source })?;
    let Some(after) = changed else { return Ok(false) };
    let write = || {
        replace(path, after.as_bytes(), |file| {
            file.set_permissions(metadata.permissions())?;
            // Of somebody else: it is their file.
            let owner = file.metadata()?;
            if (owner.uid(), owner.gid()) != (metadata.uid(), metadata.gid()) {
                let descriptor = std::os::fd::AsRawFd::as_raw_fd(file);
                chown(format!("/proc/self/fd/{descriptor}"), Some(metadata.uid()), Some(metadata.gid()))?;
            }
            // Its owner may have written it meanwhile; the next round sees what came of it.
            if fs::read_to_string(path)? != before {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it changes at this moment"));
            }
            Ok(())
        })
    };
    write().map_err(failed)?;
    Ok(true)
}

/// Writes a file under a name that nobody looks for, and puts it in the place of another in one step.
fn replace(path: &Path, bytes: &[u8], finish: impl FnOnce(&fs::File) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.weft-{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        finish(&file)?;
        fs::rename(&fresh, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests;
