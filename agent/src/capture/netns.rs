//! Network namespaces: who they are, and doing something inside one.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` and container runtimes keep named namespaces.
const NAMED_DIRECTORIES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// An open network namespace. It lives at least as long as this does.
#[derive(Clone, Debug)]
pub(crate) struct Netns {
    file: Arc<File>,
    home: Arc<File>,
    cookie: u64,
    inode: u64,
}

impl Netns {
    /// The namespace that the agent runs in.
    pub(crate) fn home() -> io::Result<Self> {
        let file = Arc::new(File::open("/proc/self/ns/net")?);
        Ok(Self { cookie: cookie_here()?, inode: file.metadata()?.ino(), home: Arc::clone(&file), file })
    }

    /// Opens the namespace at a path.
    pub(crate) fn open(path: &Path, home: &Self) -> io::Result<Self> {
        let file = Arc::new(File::open(path)?);
        let mut netns = Self { inode: file.metadata()?.ino(), file, home: Arc::clone(&home.file), cookie: 0 };
        netns.cookie = netns.enter(cookie_here)??;
        Ok(netns)
    }

    /// Unique for as long as the machine runs, unlike the inode.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Does something with this thread moved into the namespace, and moves it back before returning. The thread must be in the
    /// agent's own namespace. What is done must not block or await: on a worker, other connections wait.
    ///
    /// # Errors
    /// When the namespace cannot be entered; nothing was done then.
    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        if self.file.as_raw_fd() == self.home.as_raw_fd() {
            return Ok(work());
        }
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let _back = WayBack(&self.home);
        Ok(work())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the thread home, also when what was done panicked.
struct WayBack<'a>(&'a File);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
            // A worker that stays in a pod's namespace would open every later socket there: of the wrong pod.
            std::process::abort();
        }
    }
}

/// The cookie of the namespace that this thread is in.
fn cookie_here() -> io::Result<u64> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None)?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the option's value is 8 bytes, and so is `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Every network namespace of this machine that has a name or a process, the agent's own left out, each once.
pub(crate) fn all(home: &Netns) -> Vec<Netns> {
    let mut seen = std::collections::HashSet::from([home.inode()]);
    let mut found = Vec::new();
    for path in candidates() {
        let Ok(inode) = std::fs::metadata(&path).map(|metadata| metadata.ino()) else { continue };
        if !seen.insert(inode) {
            continue;
        }
        if let Ok(netns) = Netns::open(&path, home) {
            found.push(netns);
        }
    }
    found
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = NAMED_DIRECTORIES
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()));
    let of_processes = std::fs::read_dir("/proc")
        .into_iter()
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .map(|entry| entry.path().join("ns/net"));
    named.chain(of_processes)
}
