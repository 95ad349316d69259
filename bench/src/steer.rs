//! Captures a pod for a peer: the same programs, attached to the same hooks by the agent's own code, hand its connections to the
//! peer's listening socket instead of the agent's.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use weft_abi::{DestVerdict, direction, verdict};
use weft_agent::capture::{Capture, CaptureConfig, PodSpec, cleanup, convert::dest_key, handover::HandedListener};
use weft_integration::{Node, Pod};
use weft_policy::names::WorkloadId;

use crate::{limits, poll};

/// A pod whose connections to certain destinations go to a peer, until this is dropped.
#[derive(Debug)]
pub struct Steering {
    config: CaptureConfig,
    // The thread that beats ends when it is gone.
    _capture: Capture,
}

impl Steering {
    /// Captures `pod`: what it connects to at `destinations` goes to the socket on which process `pid` listens at `port`.
    ///
    /// # Errors
    /// When the process does not listen, or capture refuses.
    pub fn start(node: &Node, pod: &Pod, pid: u32, port: u16, destinations: &[SocketAddr]) -> Result<Self> {
        let config = CaptureConfig {
            bpf_dir: node.bpf_dir(),
            cgroup_root: Some(node.cgroup().to_path_buf()),
            ..CaptureConfig::default()
        };
        let mut capture = Capture::open(&config).context("cannot open capture")?;
        let spec = PodSpec {
            id: WorkloadId::new(pod.uid()),
            namespace: pod.kube_namespace().into(),
            name: pod.name().into(),
            owner: pod.name().into(),
            account: weft_policy::names::ServiceAccountKey::new("bench", "default"),
            netns: Some(pod.netns_path()),
            cgroup: None,
            ips: pod.ips().to_vec(),
            fail_closed: true,
        };
        // Attached once with listeners of its own only to learn the namespace's cookie, which foreign listeners must come with.
        let netns_cookie = capture.attach_pod(&spec, &mut Vec::new())?.listeners.pod.netns_cookie;
        capture.release_pod(&spec.id)?;
        let mut handed = listeners(pod, netns_cookie, listening_socket(pid, port)?)?;
        let attached = capture.attach_pod(&spec, &mut handed)?;
        // Only the kernel and the peer hold its socket from here on.
        drop(attached);
        let proxy = DestVerdict { verdict: verdict::PROXY, pad: 0 };
        capture.set_destinations(
            destinations.iter().map(|address| (dest_key(address.ip(), Some(address.port())), Some(proxy))),
        )?;
        beat(&capture)?;
        Ok(Self { config, _capture: capture })
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // What it cannot undo goes with the node: namespaces, cgroups and pins are the node's own.
        cleanup(&self.config).ok();
    }
}

/// The peer's socket in the place of the agent's outbound listener; the other three only have to be there.
fn listeners(pod: &Pod, netns_cookie: u64, peer: TcpListener) -> Result<Vec<HandedListener>> {
    let idle = |address: SocketAddr| pod.run(|| Ok(poll::listen(address)?));
    let (any4, any6) = (SocketAddr::from(([127, 0, 0, 1], 0)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)));
    let handed = |direction, ip_version, socket| HandedListener {
        workload: WorkloadId::new(pod.uid()),
        netns_cookie,
        direction,
        ip_version,
        socket,
    };
    Ok(vec![
        handed(direction::OUTBOUND, 4, peer),
        handed(direction::OUTBOUND, 6, idle(any6)?),
        handed(direction::INBOUND, 4, idle(any4)?),
        handed(direction::INBOUND, 6, idle(any6)?),
    ])
}

/// A descriptor for the socket on which a process listens at a port, taken out of the process.
fn listening_socket(pid: u32, port: u16) -> Result<TcpListener> {
    let inode = listening_inode(pid, port)?;
    let link = format!("socket:[{inode}]");
    let fds = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut number = None;
    for entry in fs::read_dir(&fds).with_context(|| format!("cannot list {}", fds.display()))? {
        let entry = entry?;
        if fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(&link)) {
            number = entry.file_name().to_string_lossy().parse().ok();
        }
    }
    let number = number.with_context(|| format!("process {pid} does not hold the socket of port {port}"))?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("process id out of range")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot open the process")?;
    let socket: OwnedFd = pidfd_getfd(pidfd.as_fd(), number, PidfdGetfdFlags::empty())
        .context("cannot take a descriptor out of the process")?;
    Ok(socket.into())
}

/// The inode of the IPv4 socket that listens at a port in the network namespace of a process.
///
/// # Errors
/// When none does.
pub fn listening_inode(pid: u32, port: u16) -> Result<u64> {
    const LISTEN: &str = "0A";
    let path = format!("/proc/{pid}/net/tcp");
    let table = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let local = format!(":{port:04X}");
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(1).is_some_and(|address| address.ends_with(&local)) && fields.get(3) == Some(&LISTEN) {
            return fields.get(9).and_then(|inode| inode.parse().ok()).context("no inode in the kernel's table");
        }
    }
    bail!("nobody listens at port {port} yet")
}

/// Beats as an agent would, for as long as there is a capture.
fn beat(capture: &Capture) -> Result<()> {
    capture.beat(Duration::ZERO)?;
    let heartbeat = Arc::downgrade(&capture.heartbeat());
    thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        while let Some(heartbeat) = heartbeat.upgrade() {
            // A failure shows: without a heartbeat the pod's connections are refused.
            heartbeat.beat(Duration::ZERO).ok();
            drop(heartbeat);
            thread::sleep(limits::HEARTBEAT_PERIOD);
        }
    })?;
    Ok(())
}
