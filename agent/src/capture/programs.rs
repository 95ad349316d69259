//! The BPF objects: loading, attaching, and taking over what an earlier agent attached.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, Program, ProgramError, SkLookup, links::FdLink},
};
use object::{Object, ObjectSection, ObjectSymbol};
use weft_abi::map_name;

use super::{
    bpf,
    cgroup::{Cgroup, Cgroups},
    error::CaptureError,
    netns::Netns,
    pins::{Pins, ReleasedLink, remove_link},
    probe,
};

// Sets `CGROUP`, `LOOKUP` and `RELEASED`, each `Option<&[u8]>`: see build.rs.
include!(concat!(env!("OUT_DIR"), "/bpf_objects.rs"));

/// The variable of the look-up object that holds the namespace's cookie.
const NETNS_SYMBOL: &str = "NETNS";
/// The look-up object's only program.
const LOOKUP_PROGRAM: &str = "pod_lookup";
/// The variable of the released object that holds its end.
const UNTIL_SYMBOL: &str = "REFUSE_UNTIL_NS";
/// The released object's only program.
const RELEASED_PROGRAM: &str = "released_lookup";

/// Whether the programs were there when the agent was built.
#[must_use]
pub fn built() -> bool {
    CGROUP.is_some() && LOOKUP.is_some() && RELEASED.is_some()
}

/// A program of the cgroup object.
struct CgroupHook {
    /// Name of the program, and of its link's pin.
    program: &'static str,
    hook: &'static str,
    /// First kernel that has the hook and every helper that the program calls.
    needs: &'static str,
    /// At the root of the hierarchy, and not only over the pods.
    at_root: bool,
}

const CGROUP_HOOKS: [CgroupHook; 7] = [
    // Before anything is redirected, its tuple can be published.
    CgroupHook { program: "socket_events", hook: "sock_ops with bpf_get_netns_cookie", needs: "5.15", at_root: true },
    CgroupHook { program: "getpeername4", hook: "cgroup/getpeername4", needs: "5.8", at_root: false },
    CgroupHook { program: "getpeername6", hook: "cgroup/getpeername6", needs: "5.8", at_root: false },
    CgroupHook { program: "connect4", hook: "cgroup/connect4 with bpf_set_retval", needs: "5.18", at_root: false },
    CgroupHook { program: "connect6", hook: "cgroup/connect6 with bpf_set_retval", needs: "5.18", at_root: false },
    CgroupHook { program: "sendmsg4", hook: "cgroup/sendmsg4 with bpf_set_retval", needs: "5.18", at_root: false },
    CgroupHook { program: "sendmsg6", hook: "cgroup/sendmsg6 with bpf_set_retval", needs: "5.18", at_root: false },
];

/// Whether any program takes part in socket look-up in a namespace. If that cannot be told, there is one.
pub(crate) fn looks_sockets_up(netns: &Netns) -> bool {
    let attached = bpf::attached_programs(netns.as_fd(), bpf::attach_type::SK_LOOKUP, 1);
    !attached.is_ok_and(|programs| programs.is_empty())
}

/// An attached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program.
    pub name: String,
    /// What it is attached to.
    pub target: String,
    /// Its id, as `bpftool prog` shows it; 0 if it is not attached.
    pub program_id: u32,
    /// Its link's id.
    pub link_id: u32,
}

/// Loads programs. The loader is kept: a new one reads the kernel's types, which takes 15 ms.
pub(crate) struct Programs {
    loader: EbpfLoader<'static>,
    lookup: OneConstant,
    released: OneConstant,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Programs {
    pub(crate) fn new(pins: &Pins) -> Result<Self, CaptureError> {
        let lookup = OneConstant::new("weft-lookup", LOOKUP.ok_or(CaptureError::NoObject)?, NETNS_SYMBOL)?;
        let released = OneConstant::new("weft-released", RELEASED.ok_or(CaptureError::NoObject)?, UNTIL_SYMBOL)?;
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(pins.dir());
        for map in [map_name::SOCKETS, map_name::ACCEPTED] {
            loader.map_pin_path(map, pins.map(map));
        }
        Ok(Self { loader, lookup, released })
    }

    /// Loads the cgroup programs and attaches each, or puts it into the link that is already pinned.
    pub(crate) fn attach_cgroups(&mut self, pins: &Pins, cgroups: &Cgroups) -> Result<(), CaptureError> {
        self.attach_object(CGROUP.ok_or(CaptureError::NoObject)?, pins, cgroups)
    }

    fn attach_object(&mut self, object: &[u8], pins: &Pins, cgroups: &Cgroups) -> Result<(), CaptureError> {
        let mut object = load(&mut self.loader, "weft-cgroup", object)?;
        // All before any is attached: a kernel that lacks the last one is left as it was.
        for hook in &CGROUP_HOOKS {
            let program = object.program_mut(hook.program).ok_or_else(|| missing_program(hook.program))?;
            load_program(program).map_err(|source| missing_hook(hook.hook, hook.needs, source))?;
        }
        for hook in &CGROUP_HOOKS {
            let program = object.program_mut(hook.program).ok_or_else(|| missing_program(hook.program))?;
            let cgroup = if hook.at_root { &cgroups.root } else { cgroups.connect() };
            attach_or_adopt(program, cgroup, &pins.link(hook.program)).map_err(|source| CaptureError::Kernel {
                action: format!("attach {} to cgroup {}", hook.program, cgroup.path.display()),
                source,
            })?;
        }
        Ok(())
    }

    /// Loads a look-up program for one namespace and attaches it, or puts it into the link that is already pinned.
    pub(crate) fn attach_lookup(&mut self, pins: &Pins, netns: &Netns) -> Result<(), CaptureError> {
        let mut object = load_lookup(&mut self.loader, &self.lookup, netns.cookie(), LOOKUP_PROGRAM)?;
        let program = object.program_mut(LOOKUP_PROGRAM).ok_or_else(|| missing_program(LOOKUP_PROGRAM))?;
        let path = pins.lookup_link(netns.cookie());
        attach_lookup(program, netns, &path)
            .map_err(CaptureError::kernel("attach the look-up program to the pod's network namespace"))
    }

    /// Loads the program that stays in a released pod's namespace until then, and attaches it beside what is there.
    pub(crate) fn attach_released(&mut self, pins: &Pins, netns: &Netns, until_ns: u64) -> Result<(), CaptureError> {
        let mut object = load_lookup(&mut self.loader, &self.released, until_ns, RELEASED_PROGRAM)?;
        let program = object.program_mut(RELEASED_PROGRAM).ok_or_else(|| missing_program(RELEASED_PROGRAM))?;
        let path = pins.released_link(&ReleasedLink { netns_cookie: netns.cookie(), until_ns });
        attach_lookup(program, netns, &path)
            .map_err(CaptureError::kernel("attach a program to the released pod's network namespace"))
    }
}

fn load_lookup(
    loader: &mut EbpfLoader<'static>,
    object: &OneConstant,
    constant: u64,
    program: &'static str,
) -> Result<Ebpf, CaptureError> {
    let mut loaded = load(loader, object.name, &object.with(constant))?;
    let found = loaded.program_mut(program).ok_or_else(|| missing_program(program))?;
    load_program(found).map_err(|source| missing_hook("sk_lookup with ingress_ifindex", "5.17", source))?;
    Ok(loaded)
}

/// An object with one constant that is set before each time it is loaded.
struct OneConstant {
    name: &'static str,
    bytes: &'static [u8],
    offset: usize,
}

impl OneConstant {
    /// Finds the constant. aya can set it too, but its loader then borrows the value for as long as the loader itself lives.
    fn new(name: &'static str, bytes: &'static [u8], variable: &str) -> Result<Self, CaptureError> {
        let bad = |what: &str| CaptureError::Object {
            object: name,
            source: format!("its variable {variable} {what}").into(),
        };
        let file =
            object::File::parse(bytes).map_err(|error| CaptureError::Object { object: name, source: error.into() })?;
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(variable)).ok_or_else(|| bad("is not there"))?;
        let section = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
            .and_then(|section| section.file_range())
            .ok_or_else(|| bad("has no data"))?;
        let offset = usize::try_from(section.0 + symbol.address()).map_err(|_| bad("is too far away"))?;
        if symbol.size() != size_of::<u64>() as u64 || offset + size_of::<u64>() > bytes.len() {
            return Err(bad("is not a u64"));
        }
        Ok(Self { name, bytes, offset })
    }

    fn with(&self, value: u64) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes[self.offset..self.offset + size_of::<u64>()].copy_from_slice(&value.to_ne_bytes());
        bytes
    }
}

fn load(loader: &mut EbpfLoader<'static>, object: &'static str, bytes: &[u8]) -> Result<Ebpf, CaptureError> {
    loader.load(bytes).map_err(|error| CaptureError::Object { object, source: error.into() })
}

fn missing_program(program: &'static str) -> CaptureError {
    CaptureError::Object { object: program, source: "the object does not hold this program".into() }
}

fn missing_hook(hook: &'static str, needs: &'static str, source: ProgramError) -> CaptureError {
    CaptureError::MissingHook { hook, needs, running: probe::kernel_release(), source: source.into() }
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach_or_adopt(program: &mut Program, cgroup: &Cgroup, path: &Path) -> io::Result<()> {
    if let Some(link) = pinned(path)? {
        let info = bpf::link_info(link.as_fd())?;
        if info.target == cgroup.id {
            return bpf::link_update(link.as_fd(), program_fd(program)?);
        }
        // The pods' cgroup appeared or went since; a link cannot move, and two programs would capture twice.
        remove_link(path)?;
    }
    // Single is the mode that links accept; with it any number of programs can be attached.
    let link: FdLink = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(&cgroup.file, CgroupAttachMode::Single).map_err(io::Error::other)?;
            program.take_link(id).map_err(io::Error::other)?.try_into().map_err(io::Error::other)?
        }
        Program::SockOps(program) => {
            let id = program.attach(&cgroup.file, CgroupAttachMode::Single).map_err(io::Error::other)?;
            program.take_link(id).map_err(io::Error::other)?.try_into().map_err(io::Error::other)?
        }
        _ => return Err(io::Error::other(ProgramError::UnexpectedProgramType)),
    };
    link.pin(path).map_err(io::Error::other)?;
    Ok(())
}

fn attach_lookup(program: &mut Program, netns: &Netns, path: &Path) -> io::Result<()> {
    if let Some(link) = pinned(path)? {
        if bpf::link_info(link.as_fd())?.netns_inode() == netns.inode() {
            return bpf::link_update(link.as_fd(), program_fd(program)?);
        }
        remove_link(path)?;
    }
    let program: &mut SkLookup = program.try_into().map_err(io::Error::other)?;
    let id = program.attach(netns).map_err(io::Error::other)?;
    let link: FdLink = program.take_link(id).map_err(io::Error::other)?.into();
    link.pin(path).map_err(io::Error::other)?;
    Ok(())
}

fn pinned(path: &Path) -> io::Result<Option<std::os::fd::OwnedFd>> {
    match bpf::open_pinned(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn program_fd(program: &Program) -> io::Result<BorrowedFd<'_>> {
    let fd = match program {
        Program::CgroupSockAddr(program) => program.fd(),
        Program::SockOps(program) => program.fd(),
        Program::SkLookup(program) => program.fd(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    fd.map(AsFd::as_fd).map_err(io::Error::other)
}

/// What is attached now, from the pins.
pub(crate) fn hooks(pins: &Pins, cgroups: &Cgroups, netns: impl Iterator<Item = (u64, String)>) -> Vec<Hook> {
    let of_cgroups = CGROUP_HOOKS.iter().map(|hook| {
        let cgroup = if hook.at_root { &cgroups.root } else { cgroups.connect() };
        attached(hook.program.to_owned(), cgroup.path.display().to_string(), &pins.link(hook.program))
    });
    let of_pods = netns.map(|(cookie, pod)| attached(LOOKUP_PROGRAM.to_owned(), pod, &pins.lookup_link(cookie)));
    of_cgroups.chain(of_pods).collect()
}

fn attached(name: String, target: String, path: &Path) -> Hook {
    let info = bpf::open_pinned(path).and_then(|link| bpf::link_info(link.as_fd())).unwrap_or_default();
    Hook { name, target, program_id: info.prog_id, link_id: info.id }
}

/// Ids of our connect programs, IPv4 and IPv6.
pub(crate) fn connect_ids(pins: &Pins) -> [u32; 2] {
    ["connect4", "connect6"].map(|name| attached(name.to_owned(), String::new(), &pins.link(name)).program_id)
}

/// Whether the namespace of a pod's link still exists.
pub(crate) fn netns_exists(pins: &Pins, cookie: u64) -> bool {
    link_has_netns(&pins.lookup_link(cookie))
}

/// Whether the namespace that a pinned link is attached to still exists.
pub(crate) fn link_has_netns(path: &Path) -> bool {
    bpf::open_pinned(path).and_then(|link| bpf::link_info(link.as_fd())).is_ok_and(|info| info.netns_inode() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's verifier says to a helper that it does not know is the same for one that was never there and one that is
    /// younger than the kernel.
    const NO_HELPER: i32 = 100_000;
    /// `BPF_JMP | BPF_CALL`, linux/bpf.h.
    const CALL: u8 = 0x85;
    /// `bpf_set_retval`, linux/bpf.h `enum bpf_func_id`.
    const SET_RETVAL: i32 = 187;

    /// The cgroup object, calling a helper of the future.
    fn from_the_future(object: &[u8]) -> Vec<u8> {
        let mut object = object.to_vec();
        let mut calls = 0;
        for instruction in object.chunks_exact_mut(8) {
            if instruction[..4] == [CALL, 0, 0, 0] && instruction[4..] == SET_RETVAL.to_le_bytes() {
                instruction[4..].copy_from_slice(&NO_HELPER.to_le_bytes());
                calls += 1;
            }
        }
        assert!(calls >= 2, "both connect programs call it");
        object
    }

    /// Gone with its value.
    struct Dirs {
        pins: Pins,
        cgroup: std::path::PathBuf,
    }

    impl Drop for Dirs {
        fn drop(&mut self) {
            std::fs::remove_dir_all(self.pins.root()).ok();
            std::fs::remove_dir(&self.cgroup).ok();
        }
    }

    #[test]
    fn a_kernel_without_a_helper_is_refused_by_hook_and_version_and_left_as_it_was() {
        let Some(object) = CGROUP.filter(|_| rustix::process::geteuid().is_root()) else { return };
        let tag = format!("weft-unit-{}", std::process::id());
        let root = Cgroups::find(None).expect("a cgroup2 hierarchy").root.path;
        let dirs = Dirs { pins: Pins::new(&Path::new("/sys/fs/bpf").join(&tag)), cgroup: root.join(&tag) };
        std::fs::create_dir(&dirs.cgroup).expect("cgroup");
        let cgroups = Cgroups::find(Some(&dirs.cgroup)).expect("cgroups");
        let mut programs = Programs::new(&dirs.pins).expect("the look-up object");
        probe::bpf_fs(dirs.pins.root()).expect("a BPF file system");
        dirs.pins.create().expect("made");

        let error = programs.attach_object(&from_the_future(object), &dirs.pins, &cgroups).expect_err("no such helper");
        assert!(matches!(error, CaptureError::MissingHook { .. }), "{error:?}");
        let text = error.to_string();
        for part in ["cgroup/connect4 with bpf_set_retval", "5.18", &probe::kernel_release()] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(hooks(&dirs.pins, &cgroups, std::iter::empty()).iter().all(|hook| hook.program_id == 0), "attached");
        // The same object as it is, on the same kernel.
        programs.attach_object(object, &dirs.pins, &cgroups).expect("attached");
    }
}
