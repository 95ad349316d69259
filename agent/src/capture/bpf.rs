//! bpf(2) for what aya has no words for: maps that many threads use at once, look-up-and-delete in one call, link update, and
//! information about links and programs of others. Must not decide anything.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

// Commands of bpf(2), linux/bpf.h `enum bpf_cmd`.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// What an object that is pinned is (linux/bpf.h `enum bpf_map_type`).
pub(crate) mod map_type {
    pub(crate) const HASH: u32 = 1;
    pub(crate) const ARRAY: u32 = 2;
    pub(crate) const PERCPU_HASH: u32 = 5;
    pub(crate) const PERCPU_ARRAY: u32 = 6;
    pub(crate) const SOCKHASH: u32 = 18;
    pub(crate) const SK_STORAGE: u32 = 24;
}

/// Attach types (linux/bpf.h `enum bpf_attach_type`).
pub(crate) mod attach_type {
    pub(crate) const INET4_CONNECT: u32 = 10;
    pub(crate) const INET6_CONNECT: u32 = 11;
    /// Socket look-up, attached to a network namespace.
    pub(crate) const SK_LOOKUP: u32 = 36;
}

/// Elements take memory only while they are there (`BPF_F_NO_PREALLOC`, linux/bpf.h).
const NO_PREALLOC: u32 = 1;

/// Start of the anonymous struct for `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct PathAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct OneWordAttr {
    word: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// Start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
}

/// Start of `struct bpf_link_info`: for a cgroup the target is its id, for a namespace the inode is in the low half.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) prog_id: u32,
    pad: u32,
    pub(crate) target: u64,
}

impl LinkInfo {
    /// For a link to a network namespace: the namespace's inode, 0 if it is gone.
    pub(crate) fn netns_inode(&self) -> u64 {
        // `netns_ino` and `attach_type` are two words.
        let words: [u32; 2] = bytemuck::cast(self.target);
        u64::from(words[0])
    }
}

/// Start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(crate) struct ProgramInfo {
    kind: u32,
    pub(crate) id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

impl ProgramInfo {
    pub(crate) fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` must be the command's part of `union bpf_attr`, and every address in it must be valid for what the command does there.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<i64> {
    // SAFETY: the kernel reads (and for queries writes) `size_of::<A>()` bytes; the caller answers for the addresses inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), mem::size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn address_mut<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value) as u64
}

/// Opens a pinned map, program or link.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: pathname.as_ptr() as u64, ..PathAttr::default() };
    // SAFETY: the path ends in NUL and outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    owned(fd)
}

/// Gives an object a name in a BPF file system, for root alone to open.
fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: pathname.as_ptr() as u64, fd: raw(object), ..PathAttr::default() };
    // SAFETY: the path ends in NUL and outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::Error::other("descriptor out of range"))?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn info<T: Pod + Zeroable>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::zeroed();
    let size = u32::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr { fd: raw(fd), info_len: size, info: address_mut(&mut info) };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which are plain data.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// What a descriptor that [`open_pinned`] gave refers to; the kernel tells only by the name of its anonymous inode.
pub(crate) fn is_map(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(kind_of(fd)?.ends_with("bpf-map"))
}

/// As [`is_map`], for links.
pub(crate) fn is_link(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = kind_of(fd)?;
    Ok(kind.ends_with("bpf_link") || kind.ends_with("bpf-link"))
}

fn kind_of(fd: BorrowedFd<'_>) -> io::Result<String> {
    Ok(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.to_string_lossy().replace(['[', ']'], ""))
}

pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// A loaded program, by its id.
pub(crate) fn program_info(id: u32) -> io::Result<ProgramInfo> {
    let mut attr = OneWordAttr { word: id, pad: 0 };
    // SAFETY: no addresses.
    let fd = owned(unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?)?;
    info(fd.as_fd())
}

/// Makes a link run another program, in one step.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), ..LinkUpdateAttr::default() };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_UPDATE, &mut attr) }?;
    Ok(())
}

/// Detaches a link at once; removing its pin alone would do it some time later.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = OneWordAttr { word: raw(link), pad: 0 };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_DETACH, &mut attr) }?;
    Ok(())
}

/// Ids of the programs attached to this very cgroup or namespace, in the order in which they run.
pub(crate) fn attached_programs(target: BorrowedFd<'_>, attach_type: u32, at_most: usize) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; at_most];
    let count = u32::try_from(at_most).map_err(io::Error::other)?;
    let mut attr = QueryAttr {
        target_fd: raw(target),
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: count,
        ..QueryAttr::default()
    };
    // SAFETY: the kernel writes at most `prog_cnt` ids into the buffer.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// A map that any number of threads may use at once: the kernel does the locking, and a call is one system call.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// Opens a pinned map.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pinned(path)?;
        let info = map_info(fd.as_fd())?;
        if info.key_size as usize != mem::size_of::<K>() || info.value_size as usize != mem::size_of::<V>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "key or value has another size"));
        }
        Ok(Self { fd, max_entries: info.max_entries, types: PhantomData })
    }

    /// Opens a pinned hash, and makes and pins it first if it is not there: for maps that no program uses, which the loader therefore
    /// does not make. `name` has at most 15 bytes.
    pub(crate) fn open_or_create(path: &Path, name: &str, max_entries: u32) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let size = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        let mut attr = CreateAttr {
            map_type: map_type::HASH,
            key_size: size(mem::size_of::<K>())?,
            value_size: size(mem::size_of::<V>())?,
            max_entries,
            map_flags: NO_PREALLOC,
            ..CreateAttr::default()
        };
        for (to, from) in attr.map_name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: no addresses.
        let map = owned(unsafe { bpf(MAP_CREATE, &mut attr) }?)?;
        match pin(map.as_fd(), path) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        Self::open(path)
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_ELEM, key)
    }

    /// Reads an entry and deletes it, in one step.
    pub(crate) fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    fn read(&self, command: libc::c_int, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            value: address_mut(&mut value),
            ..ElementAttr::default()
        };
        // SAFETY: key and value are plain data of the sizes that `open` compared with the map's.
        present(unsafe { bpf(command, &mut attr) }).map(|found| found.then_some(value))
    }

    /// Inserts or replaces.
    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            value: address(value),
            ..ElementAttr::default()
        };
        // SAFETY: as in `read`; the kernel only reads.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }?;
        Ok(())
    }

    /// Whether there was one.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        remove(self.fd.as_fd(), key)
    }

    /// All keys; those that come or go meanwhile may be missed or be there twice.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        keys(self.fd.as_fd(), self.max_entries)
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Pod> Map<K, u32> {
    /// Puts a socket into a map of sockets.
    pub(crate) fn set_socket(&self, key: &K, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.set(key, &raw(socket))
    }
}

fn remove<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr { map_fd: raw(map), key: address(key), ..ElementAttr::default() };
    // SAFETY: the key is plain data of the map's key size; the kernel only reads it.
    present(unsafe { bpf(MAP_DELETE_ELEM, &mut attr) })
}

fn keys<K: Pod>(map: BorrowedFd<'_>, max_entries: u32) -> io::Result<Vec<K>> {
    let mut found: Vec<K> = Vec::new();
    // When its predecessor is deleted meanwhile, the walk starts again; the bound ends it even then.
    for _ in 0..=max_entries {
        let mut next = K::zeroed();
        let mut attr = ElementAttr {
            map_fd: raw(map),
            key: found.last().map_or(0, address),
            value: address_mut(&mut next),
            ..ElementAttr::default()
        };
        // SAFETY: the kernel reads one key (or none, for the first) and writes one, both plain data of the map's key size.
        if !present(unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) })? {
            break;
        }
        found.push(next);
    }
    Ok(found)
}

fn present(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A map that keeps one value for each CPU.
#[derive(Debug)]
pub(crate) struct PerCpuMap<K, V> {
    fd: OwnedFd,
    cpus: usize,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> PerCpuMap<K, V> {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pinned(path)?;
        let info = map_info(fd.as_fd())?;
        // The kernel rounds each CPU's value up to 8 bytes; all of ours are multiples of that.
        if info.key_size as usize != mem::size_of::<K>()
            || info.value_size as usize != mem::size_of::<V>()
            || !mem::size_of::<V>().is_multiple_of(8)
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "key or value has another size"));
        }
        let cpus =
            aya::util::nr_cpus().map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        Ok(Self { fd, cpus, types: PhantomData })
    }

    /// The values of all CPUs.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<Vec<V>>> {
        let mut values = vec![V::zeroed(); self.cpus];
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            value: values.as_mut_ptr() as u64,
            ..ElementAttr::default()
        };
        // SAFETY: the kernel writes one value for each possible CPU, which is how many the buffer has room for.
        present(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }).map(|found| found.then_some(values))
    }

    /// The same value for all CPUs.
    pub(crate) fn set(&self, key: &K, value: V) -> io::Result<()> {
        let values = vec![value; self.cpus];
        let mut attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            key: address(key),
            value: values.as_ptr() as u64,
            ..ElementAttr::default()
        };
        // SAFETY: as in `get`; the kernel only reads.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }?;
        Ok(())
    }

    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        remove(self.fd.as_fd(), key)
    }
}
