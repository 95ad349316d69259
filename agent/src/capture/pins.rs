//! The pin directory: a directory of our own in a BPF file system, with one directory for each ABI version in it.
//!
//! Must never touch a file that is not weft's, nor use one that is not as this version would have left it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use weft_abi::{
    ABI_VERSION, Addr, DestKey, DestVerdict, FlowKey, FlowOwner, ListenerKey, OriginalDst, PodConfig, PodStats,
    Settings, SocketState, UdpGrant, UdpPort, counter, limits, map_name,
};

use super::{
    bpf::{self, MapInfo, map_type},
    error::CaptureError,
    keep,
    limits::KEEP_ENTRIES_MAX,
};

/// Where weft pins by default.
pub const BPF_DIR: &str = "/sys/fs/bpf/weft";

/// What every link's name begins with.
const LINK: &str = "link_";
/// What every pod's link's name begins with; the rest is the namespace's cookie.
const LOOKUP_LINK: &str = "link_lookup_";
/// What every released pod's link's name begins with; the rest is the namespace's cookie, and the link's end.
const RELEASED_LINK: &str = "link_released_";
/// What every version's directory begins with.
const VERSION: &str = "v";

/// A map as it must be.
struct Shape {
    name: &'static str,
    kind: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
}

const fn shape<K, V>(name: &'static str, kind: u32, max_entries: u32) -> Shape {
    Shape { name, kind, key_size: size_of::<K>(), value_size: size_of::<V>(), max_entries }
}

const SHAPES: [Shape; 16] = [
    shape::<u32, Settings>(map_name::SETTINGS, map_type::ARRAY, 1),
    shape::<u64, PodConfig>(map_name::PODS, map_type::HASH, limits::PODS_MAX),
    shape::<u64, PodConfig>(map_name::HOST_PODS, map_type::HASH, limits::PODS_MAX),
    shape::<Addr, u64>(map_name::LOCAL_ADDRS, map_type::HASH, limits::LOCAL_ADDRS_MAX),
    shape::<DestKey, DestVerdict>(map_name::DESTINATIONS, map_type::HASH, limits::DESTINATIONS_MAX),
    shape::<FlowKey, OriginalDst>(map_name::CAPTURED, map_type::HASH, limits::CAPTURED_MAX),
    shape::<FlowKey, FlowOwner>(map_name::BYPASS, map_type::HASH, limits::BYPASS_MAX),
    shape::<FlowKey, FlowOwner>(map_name::NODE_FLOWS, map_type::HASH, limits::NODE_FLOWS_MAX),
    shape::<ListenerKey, u32>(map_name::LISTENERS, map_type::SOCKHASH, limits::LISTENERS_MAX),
    shape::<i32, SocketState>(map_name::SOCKETS, map_type::SK_STORAGE, 0),
    shape::<i32, u32>(map_name::ACCEPTED, map_type::SK_STORAGE, 0),
    shape::<UdpPort, u32>(map_name::UDP_PORTS, map_type::HASH, limits::UDP_PORTS_MAX),
    shape::<UdpGrant, u32>(map_name::UDP_GRANTS, map_type::HASH, limits::UDP_GRANTS_MAX),
    shape::<u64, PodStats>(map_name::POD_STATS, map_type::PERCPU_HASH, 2 * limits::PODS_MAX),
    shape::<u32, u64>(map_name::COUNTERS, map_type::PERCPU_ARRAY, counter::COUNT),
    shape::<keep::Name, keep::Value>(keep::MAP, map_type::HASH, KEEP_ENTRIES_MAX),
];

/// The link of a program that stays where a pod was captured. All that is known of it is in its name, so that the next agent knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReleasedLink {
    /// Cookie of the namespace.
    pub(crate) netns_cookie: u64,
    /// From when it does nothing any more: CLOCK_MONOTONIC, nanoseconds.
    pub(crate) until_ns: u64,
}

/// The directory of this agent's ABI version.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    dir: PathBuf,
}

impl Pins {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), dir: root.join(format!("{VERSION}{ABI_VERSION}")) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn link(&self, hook: &str) -> PathBuf {
        self.dir.join(format!("{LINK}{hook}"))
    }

    pub(crate) fn lookup_link(&self, netns_cookie: u64) -> PathBuf {
        self.dir.join(format!("{LOOKUP_LINK}{netns_cookie}"))
    }

    /// Makes the directories.
    pub(crate) fn create(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)
    }

    /// Cookies of the namespaces that have a link.
    pub(crate) fn lookup_cookies(&self) -> io::Result<Vec<u64>> {
        let names = entries(&self.dir)?;
        Ok(names.iter().filter_map(|path| name_of(path).strip_prefix(LOOKUP_LINK)?.parse().ok()).collect())
    }

    pub(crate) fn released_link(&self, link: &ReleasedLink) -> PathBuf {
        self.dir.join(format!("{RELEASED_LINK}{}_{}", link.netns_cookie, link.until_ns))
    }

    /// The links of released pods.
    pub(crate) fn released_links(&self) -> io::Result<Vec<ReleasedLink>> {
        let parse = |name: &str| {
            let (cookie, until) = name.strip_prefix(RELEASED_LINK)?.split_once('_')?;
            Some(ReleasedLink { netns_cookie: cookie.parse().ok()?, until_ns: until.parse().ok()? })
        };
        Ok(entries(&self.dir)?.iter().filter_map(|path| parse(name_of(path))).collect())
    }

    /// Compares what is pinned with what must be. Nothing at all is fine.
    pub(crate) fn verify(&self) -> Result<(), CaptureError> {
        for path in entries(&self.dir).map_err(CaptureError::kernel(format!("read {}", self.dir.display())))? {
            self.verify_one(&path)?;
        }
        Ok(())
    }

    fn verify_one(&self, path: &Path) -> Result<(), CaptureError> {
        let wrong = |what: String| CaptureError::Pins { path: path.to_owned(), what };
        let name = name_of(path);
        let shape = SHAPES.iter().find(|shape| shape.name == name);
        if shape.is_none() && !name.starts_with(LINK) {
            return Err(wrong("is not a file that weft makes".to_owned()));
        }
        let object = bpf::open_pinned(path).map_err(|error| wrong(format!("is not a pinned BPF object ({error})")))?;
        let Some(shape) = shape else {
            return if bpf::is_link(object.as_fd()).unwrap_or(false) {
                Ok(())
            } else {
                Err(wrong("is not a link".to_owned()))
            };
        };
        if !bpf::is_map(object.as_fd()).unwrap_or(false) {
            return Err(wrong("is not a map".to_owned()));
        }
        let info =
            bpf::map_info(object.as_fd()).map_err(CaptureError::kernel(format!("inspect {}", path.display())))?;
        shape.compare(&info).map_err(wrong)
    }

    /// Files in the directory that weft did not make, and directories beside it that are not a version's.
    pub(crate) fn foreign(&self) -> Vec<PathBuf> {
        let mut foreign = Vec::new();
        for path in entries(&self.root).unwrap_or_default() {
            if !is_version(&path) {
                foreign.push(path);
                continue;
            }
            foreign.extend(entries(&path).unwrap_or_default().into_iter().filter(|path| !is_ours(path)));
        }
        foreign
    }

    /// Directories of other ABI versions.
    pub(crate) fn other_versions(&self) -> Vec<PathBuf> {
        entries(&self.root)
            .unwrap_or_default()
            .into_iter()
            .filter(|path| is_version(path) && *path != self.dir)
            .collect()
    }
}

impl Shape {
    fn compare(&self, info: &MapInfo) -> Result<(), String> {
        let sizes = [
            ("type", info.kind as usize, self.kind as usize),
            ("key size", info.key_size as usize, self.key_size),
            ("value size", info.value_size as usize, self.value_size),
            ("number of entries", info.max_entries as usize, self.max_entries as usize),
        ];
        match sizes.iter().find(|(_, is, must)| is != must) {
            Some((what, is, must)) => Err(format!("has {what} {is}, and not {must}")),
            None => Ok(()),
        }
    }
}

/// Detaches everything that is pinned in a directory, then removes weft's files in it, and it, if nothing else is left. Gives what it
/// removed: links, then maps.
pub(crate) fn remove_all(dir: &Path) -> io::Result<(usize, usize)> {
    let (mut links, mut maps) = (0, 0);
    let ours: Vec<PathBuf> = entries(dir)?.into_iter().filter(|path| is_ours(path)).collect();
    // Links first: a program without its maps is only ever seen by nobody.
    for path in ours.iter().filter(|path| name_of(path).starts_with(LINK)) {
        remove_link(path)?;
        links += 1;
    }
    for path in ours.iter().filter(|path| !name_of(path).starts_with(LINK)) {
        std::fs::remove_file(path)?;
        maps += 1;
    }
    remove_empty(dir)?;
    Ok((links, maps))
}

/// Removes a directory unless something is in it.
pub(crate) fn remove_empty(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        other => other,
    }
}

/// Detaches a pinned link at once and removes its pin. A link that is gone already is fine.
pub(crate) fn remove_link(path: &Path) -> io::Result<()> {
    if let Ok(link) = bpf::open_pinned(path) {
        detach(&link);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn detach(link: &OwnedFd) {
    // It fails for a link whose target is gone, which is detached as well as can be; removing the pin does the rest.
    if let Err(error) = bpf::link_detach(link.as_fd()) {
        tracing::debug!(%error, "link not detached");
    }
}

fn is_ours(path: &Path) -> bool {
    let name = name_of(path);
    name.starts_with(LINK) || SHAPES.iter().any(|shape| shape.name == name)
}

fn is_version(path: &Path) -> bool {
    name_of(path).strip_prefix(VERSION).is_some_and(|version| version.parse::<u32>().is_ok())
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(shape: &Shape) -> MapInfo {
        MapInfo {
            kind: shape.kind,
            key_size: u32::try_from(shape.key_size).expect("small"),
            value_size: u32::try_from(shape.value_size).expect("small"),
            max_entries: shape.max_entries,
            ..MapInfo::default()
        }
    }

    #[test]
    fn every_map_has_a_shape_and_differences_are_named() {
        for shape in &SHAPES {
            assert_eq!(shape.compare(&info(shape)), Ok(()), "{}", shape.name);
            let longer = MapInfo { value_size: info(shape).value_size + 8, ..info(shape) };
            let error = shape.compare(&longer).expect_err("another value size");
            assert!(error.contains("value size"), "{error}");
        }
    }

    #[test]
    fn only_names_that_weft_gives_are_wefts() {
        for (name, ours) in
            [("PODS", true), ("link_connect4", true), ("link_lookup_12", true), ("cilium_lxc", false), ("pods", false)]
        {
            assert_eq!(is_ours(&Path::new("/sys/fs/bpf/weft/v1").join(name)), ours, "{name}");
        }
        assert!(is_version(Path::new("/x/v12")));
        assert!(!is_version(Path::new("/x/vendor")));
    }

    #[test]
    fn foreign_files_are_found_and_left() {
        let root = tempfile::tempdir().expect("directory");
        let pins = Pins::new(root.path());
        pins.create().expect("directories");
        std::fs::write(pins.dir().join("stranger"), "").expect("file");
        std::fs::write(root.path().join("other"), "").expect("file");
        assert_eq!(pins.foreign(), [root.path().join("other"), pins.dir().join("stranger")]);
        assert_eq!(remove_all(pins.dir()).expect("removed"), (0, 0));
        assert!(pins.dir().join("stranger").exists());
    }
}
