//! Two pods, a node, a cgroup and a pin directory; all gone when dropped, also after a panic.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weft_agent::capture::{Capture, CaptureConfig, PodSpec, cleanup};
use weft_policy::names::{ServiceAccountKey, WorkloadId};

/// One world at a time: they share the machine's interface names and the process's cgroup.
static ONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Set where it counts: a test that cannot run fails.
const MUST_RUN: &str = "WEFT_CAPTURE_MUST_RUN";

/// How long anything may take that has no reason to take any time.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// A network namespace that plays a pod.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) netns: PathBuf,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl Pod {
    pub(crate) fn spec(&self) -> PodSpec {
        PodSpec {
            id: WorkloadId::new(&format!("uid-{}", self.name)),
            namespace: "test".into(),
            name: self.name.as_str().into(),
            owner: self.name.as_str().into(),
            account: ServiceAccountKey::new("test", "default"),
            netns: Some(self.netns.clone()),
            cgroup: None,
            ips: vec![self.v4, self.v6],
            fail_closed: false,
        }
    }

    pub(crate) fn id(&self) -> WorkloadId {
        self.spec().id
    }

    /// Does something on a thread inside the pod.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns, work)
    }

    pub(crate) fn sysctl(&self, name: &str) -> String {
        self.run(|| fs::read_to_string(Path::new("/proc/sys").join(name)).expect(name).trim().to_owned())
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.name]).args(arguments.split(' ')).output().expect("ip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// An application that answers every connection with the address that it sees, and a newline.
    pub(crate) fn serve(&self, port: u16) {
        for any in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))] {
            let listener = self.run(|| {
                let socket = socket2::Socket::new(socket2::Domain::for_address(any), socket2::Type::STREAM, None)?;
                if any.is_ipv6() {
                    socket.set_only_v6(true)?;
                }
                socket.set_reuse_address(true)?;
                socket.bind(&any.into())?;
                socket.listen(1024)?;
                Ok::<TcpListener, io::Error>(socket.into())
            });
            let listener = listener.expect("application listens");
            // Ends with the process; its namespace is gone long before.
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || answer(stream));
                }
            });
        }
    }

    /// Connects from inside the pod and reads what is answered.
    pub(crate) fn ask(&self, to: SocketAddr) -> io::Result<String> {
        self.run(move || {
            let stream = TcpStream::connect_timeout(&to, SOON)?;
            read_line(&stream)
        })
    }
}

fn answer(mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    if stream.write_all(format!("app sees {}\n", peer.ip()).as_bytes()).is_ok() {
        // Until the client closes, so that it, and not the server, ends in TIME_WAIT.
        let mut rest = Vec::new();
        let _closed_or_reset = stream.read_to_end(&mut rest);
    }
}

pub(crate) fn read_line(mut stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(SOON))?;
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ => line.push(byte[0]),
        }
    }
}

/// Does something on a thread inside a namespace.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(netns).expect("namespace");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network))
                .expect("entered");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < until, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) struct World {
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) node_v4: IpAddr,
    pub(crate) node_v6: IpAddr,
    pub(crate) config: CaptureConfig,
    bridge: String,
    cgroup_home: PathBuf,
    /// Whether agents beat; held while one does.
    beating: Arc<Mutex<bool>>,
    _one: MutexGuard<'static, ()>,
}

impl World {
    /// `None` where these tests cannot run.
    pub(crate) fn new() -> Option<Self> {
        let why_not = if !rustix::process::geteuid().is_root() {
            Some("needs root")
        } else if !weft_agent::capture::built() {
            Some("the agent was built without its BPF objects, run `cargo xtask build-ebpf`")
        } else {
            None
        };
        if let Some(why_not) = why_not {
            assert!(std::env::var_os(MUST_RUN).is_none(), "{why_not}");
            eprintln!("SKIPPED: {why_not}");
            return None;
        }
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        let slot = u8::try_from(pid % 200).expect("small");
        let tag = format!("{pid}x{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (v4, v6) = (
            |host| IpAddr::from(Ipv4Addr::new(198, 18, slot, host)),
            |host| IpAddr::from(Ipv6Addr::new(0xfd77, 0x77, u16::from(slot), 0, 0, 0, 0, host)),
        );
        if !fs::read_to_string("/proc/mounts").expect("mounts").contains(" /sys/fs/bpf bpf ") {
            run("mount", "-t bpf bpf /sys/fs/bpf");
        }
        let (cgroup, cgroup_home) = enter_cgroup(&tag);
        let pod = |letter: &str, host: u8| Pod {
            name: format!("weft{letter}{tag}"),
            netns: PathBuf::from(format!("/run/netns/weft{letter}{tag}")),
            v4: v4(host),
            v6: v6(u16::from(host)),
        };
        let world = Self {
            a: pod("a", 2),
            b: pod("b", 3),
            node_v4: v4(1),
            node_v6: v6(1),
            config: CaptureConfig {
                bpf_dir: PathBuf::from(format!("/sys/fs/bpf/weft-test-{tag}")),
                cgroup_root: Some(cgroup),
                ..CaptureConfig::default()
            },
            bridge: format!("wbr{tag}"),
            cgroup_home,
            beating: Arc::new(Mutex::new(true)),
            _one: one,
        };
        world.build(slot);
        Some(world)
    }

    fn build(&self, slot: u8) {
        let bridge = &self.bridge;
        // A fixed address: a bridge takes another one when ports come and go, and the pods lose traffic.
        let mut node = format!(
            "link add {bridge} address 02:00:00:00:00:{slot:02x} type bridge
             addr add {}/24 dev {bridge}
             addr add {}/64 dev {bridge} nodad
             link set {bridge} up\n",
            self.node_v4, self.node_v6
        );
        for vip in [self.vip4(0).ip(), self.vip6(0).ip()] {
            // Nobody's addresses: not even a connection that escapes capture may leave the machine.
            node.push_str(&format!("route add unreachable {vip}\n"));
        }
        for (pod, end) in [(&self.a, "a"), (&self.b, "b")] {
            node.push_str(&format!(
                "netns add {name}
                 link add {bridge}{end} type veth peer name eth0 netns {name}
                 link set {bridge}{end} master {bridge} up\n",
                name = pod.name
            ));
        }
        batch(None, &node);
        for pod in [&self.a, &self.b] {
            // Link-local addresses are there at once.
            pod.run(|| fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").expect("sysctl"));
            batch(
                Some(&pod.name),
                &format!(
                    "addr add {}/24 dev eth0
                     addr add {}/64 dev eth0 nodad
                     link set eth0 up
                     link set lo up
                     route add default via {}
                     route add default via {}\n",
                    pod.v4, pod.v6, self.node_v4, self.node_v6
                ),
            );
        }
        for pod in [&self.a, &self.b] {
            // The link is up when its address can be reached.
            wait_until("the pod's link", || {
                TcpStream::connect_timeout(&SocketAddr::new(pod.v6, 1), Duration::from_millis(100))
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            });
        }
    }

    pub(crate) fn open(&self) -> Capture {
        let capture = Capture::open(&self.config).expect("capture opens");
        capture.beat(Duration::ZERO).expect("beats");
        let (heartbeat, beating) = (Arc::downgrade(&capture.heartbeat()), Arc::clone(&self.beating));
        thread::spawn(move || {
            while let Some(heartbeat) = heartbeat.upgrade() {
                let may_beat = beating.lock().expect("no panic");
                if !*may_beat {
                    return;
                }
                heartbeat.beat(Duration::ZERO).expect("beats");
                drop((may_beat, heartbeat));
                thread::sleep(Duration::from_millis(500));
            }
        });
        capture
    }

    /// From now on every agent of this world hangs, as far as the programs can tell.
    pub(crate) fn stop_beating(&self) {
        // No beat is under way once this is written, and none comes after.
        *self.beating.lock().expect("no panic") = false;
        // As a hung agent's would be: it counts as missing at once, and one that beats again undoes it.
        let dir = self.config.bpf_dir.join(format!("v{}", weft_abi::ABI_VERSION));
        let pinned = MapData::from_pin(dir.join(weft_abi::map_name::SETTINGS)).expect("pinned");
        let mut map: Array<MapData, weft_abi::Settings> = Map::Array(pinned).try_into().expect("an array");
        let mut settings = map.get(&0, 0).expect("settings");
        settings.heartbeat_ns = 0;
        map.set(0, settings, 0).expect("written");
    }

    pub(crate) fn cgroup(&self) -> &Path {
        self.config.cgroup_root.as_deref().expect("set")
    }

    /// Where programs find a cgroup of all pods, once there is one.
    pub(crate) fn pods_cgroup(&self) -> PathBuf {
        self.cgroup().join("kubepods")
    }

    /// Makes a cgroup of all pods, and moves this process into it.
    pub(crate) fn enter_pods_cgroup(&self) {
        fs::create_dir(self.pods_cgroup()).expect("cgroup");
        fs::write(self.pods_cgroup().join("cgroup.procs"), std::process::id().to_string()).expect("joined the cgroup");
    }

    /// An address that nobody has, as a Service's.
    pub(crate) fn vip4(&self, port: u16) -> SocketAddr {
        let IpAddr::V4(node) = self.node_v4 else { unreachable!("an IPv4 address") };
        SocketAddr::from(([198, 19, node.octets()[2], 9], port))
    }

    pub(crate) fn vip6(&self, port: u16) -> SocketAddr {
        let IpAddr::V6(node) = self.node_v6 else { unreachable!("an IPv6 address") };
        SocketAddr::new(Ipv6Addr::new(0xfd77, 0x78, node.segments()[2], 0, 0, 0, 0, 9).into(), port)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Every step, whatever became of the others: a test that failed leaves anything behind.
        if let Err(error) = cleanup(&self.config) {
            eprintln!("cleanup: {error}");
        }
        // A namespace lives on while an application's thread listens in it; its link must not.
        let bridge = &self.bridge;
        let mut gone = format!("link del {bridge}a\nlink del {bridge}b\nlink del {bridge}\n");
        for pod in [&self.a, &self.b] {
            gone.push_str(&format!("netns del {}\n", pod.name));
        }
        for vip in [self.vip4(0).ip(), self.vip6(0).ip()] {
            gone.push_str(&format!("route del unreachable {vip}\n"));
        }
        // What is gone already is no reason to leave the rest.
        let _gone = ip_batch(&["-force"], &gone);
        let _gone = fs::remove_dir_all(&self.config.bpf_dir);
        let _left = fs::write(self.cgroup_home.join("cgroup.procs"), std::process::id().to_string());
        let below = ["host-pod", "kubepods/pod1", "kubepods"].map(|name| self.cgroup().join(name));
        for dir in below.into_iter().chain([self.cgroup().to_owned()]) {
            let until = Instant::now() + SOON;
            // A process that just ended keeps its cgroup for a moment.
            while dir.exists() && fs::remove_dir(&dir).is_err() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Makes a cgroup and moves this process into it. Gives it, and where the process was before.
fn enter_cgroup(tag: &str) -> (PathBuf, PathBuf) {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())
        .expect("a cgroup2 hierarchy");
    let now = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let now = now.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup2 hierarchy");
    let home = root.join(now);
    let cgroup = root.join(format!("weft-test-{tag}"));
    fs::create_dir_all(&cgroup).expect("cgroup");
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("joined the cgroup");
    (cgroup, home)
}

/// Runs commands of ip in one process, in a namespace: a process for each takes most of a test's time on an emulated machine.
fn batch(netns: Option<&str>, commands: &str) {
    let arguments: Vec<&str> = netns.into_iter().flat_map(|netns| ["-n", netns]).collect();
    let output = ip_batch(&arguments, commands);
    assert!(output.status.success(), "ip: {}\n{commands}", String::from_utf8_lossy(&output.stderr));
}

fn ip_batch(arguments: &[&str], commands: &str) -> std::process::Output {
    let mut ip = Command::new("ip");
    ip.args(arguments).args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ip.spawn().expect("ip");
    child.stdin.take().expect("a pipe").write_all(commands.as_bytes()).expect("written");
    child.wait_with_output().expect("ip")
}

pub(crate) fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect(program);
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
