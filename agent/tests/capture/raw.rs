//! System calls that no safe wrapper has.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use io_uring::{IoUring, opcode, squeue, types};
use socket2::{SockAddr, Socket};

/// Entries of the ring; one operation is in it at a time.
const RING_ENTRIES: u32 = 4;

/// Sets a socket option that is a number.
pub(crate) fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`, which is as long.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// connect(2) by way of io_uring: by this thread, or by one of the kernel's workers.
pub(crate) fn connect_by_ring(socket: RawFd, to: SocketAddr, by_worker: bool) -> io::Result<()> {
    let mut ring = IoUring::new(RING_ENTRIES)?;
    let address = SockAddr::from(to);
    let flags = if by_worker { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
    let connect = opcode::Connect::new(types::Fd(socket), address.as_ptr().cast(), address.len()).build().flags(flags);
    // SAFETY: the address and the socket outlive the operation, whose end is waited for here.
    unsafe { ring.submission().push(&connect) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("nothing completed"))?.result();
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}

// Commands of bpf(2), linux/bpf.h `enum bpf_cmd`.
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const CGROUP_SOCK_ADDR: u32 = 18;

/// One instruction (linux/bpf.h `struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    pub(crate) fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: destination | (source << 4), offset, immediate }
    }
}

/// What PROG_LOAD reads, up to the last field that is needed.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads a program for one of the connect hooks.
pub(crate) fn load_connect(hook: u32, name: &str, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: CGROUP_SOCK_ADDR,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: hook,
        ..LoadAttr::default()
    };
    attr.prog_name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the instructions and the licence outlive the call, and the kernel only reads them.
    unsafe { bpf(PROG_LOAD, &mut attr) }
}

/// Attaches it to a cgroup, beside whatever is attached there.
pub(crate) fn attach_connect(program: &OwnedFd, cgroup: &impl AsRawFd, hook: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook,
        flags: 0,
    };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_CREATE, &mut attr) }
}

/// Calls bpf(2) for something that gives a descriptor.
///
/// # Safety
/// `attr` must be the command's part of `union bpf_attr`, and every address in it valid for what the command does there.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<A>()` bytes; the caller answers for the addresses inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
