//! A pod's container as the kubelet and a container runtime would run it: the pod's own spec, as the chart renders it, made into what an OCI
//! runtime reads (OCI runtime specification 1.0.2), and run by one.
//!
//! Real: mounts, read-only root, capabilities, user, namespaces, masked paths, system call filter. Not reproduced: cgroup limits, AppArmor and SELinux,
//! names, and the image, for which a directory with the same programs stands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Cluster, Node, Process, agent::binary, command, kube::server, node::cgroup2};

/// What a container of the runtime's cannot see or change of /proc and /sys (containerd, pkg/oci, `defaultUnixNamespaces` and "masked paths").
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where a service account's credentials are found.
const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where the programs of this build find the libraries that those of an image do not need.
const LIBRARIES: [(&str, &str); 2] = [("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// A root file system for containers.
#[derive(Debug)]
pub struct Image {
    root: PathBuf,
    /// Of this machine; mounted where the programs need them.
    libraries: bool,
}

impl Image {
    /// One with the programs of this build, which are not static.
    ///
    /// # Errors
    /// When they are not built, or cannot be copied.
    pub fn of_build(dir: &Path) -> Result<Self> {
        for path in ["usr/lib", "usr/lib64", "var", "run", "tmp", "etc", "proc", "sys", "dev", "host"] {
            fs::create_dir_all(dir.join(path)).with_context(|| format!("cannot make {path}"))?;
        }
        for (link, target) in LIBRARIES {
            std::os::unix::fs::symlink(target, dir.join(link)).context("cannot make a link")?;
        }
        for name in ["weft-agent", "weft", "weft-cni"] {
            fs::copy(binary(name)?, dir.join(name)).with_context(|| format!("cannot copy {name}"))?;
        }
        Ok(Self { root: dir.to_owned(), libraries: true })
    }

    /// Unpacks an archive of `docker save`'s layout into a directory.
    ///
    /// # Errors
    /// When it is none.
    pub fn unpack(archive: &Path, dir: &Path) -> Result<Self> {
        let (blobs, root) = (dir.join("blobs"), dir.join("root"));
        let extract = |archive: &Path, to: &Path| -> Result<()> {
            fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
            command::output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(to)).map(drop)
        };
        extract(archive, &blobs)?;
        let manifest: Value = serde_json::from_str(&fs::read_to_string(blobs.join("manifest.json"))?)?;
        for layer in strings(&manifest[0]["Layers"]) {
            extract(&blobs.join(layer), &root)?;
        }
        Ok(Self { root, libraries: false })
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Container {
    process: Process,
    /// Below the root of each hierarchy.
    cgroup: PathBuf,
    id: String,
    state: PathBuf,
    log: PathBuf,
}

impl Container {
    /// Runs the first container of a pod. `name` is new on this node.
    ///
    /// # Errors
    /// When the spec has something that is not understood here, or the runtime refuses.
    pub fn start(cluster: &Cluster, image: &Image, pod: &Value, name: &str) -> Result<Self> {
        let node = &cluster.node;
        let dir = node.state_dir().join(format!("container-{name}"));
        let state = node.state_dir().join("runc");
        fs::create_dir_all(&dir).context("cannot make the container's directory")?;
        let account = service_account(cluster, &dir)?;
        let configuration = configuration(cluster, image, pod, name, &account)?;
        fs::write(dir.join("config.json"), configuration.to_string()).context("cannot write config.json")?;
        let mut runtime = Command::new("runc");
        let id = format!("{}{name}", node.prefix());
        runtime.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&dir).arg(&id);
        let log = dir.join("log");
        let process = Process::start(runtime, &log)?;
        Ok(Self { process, cgroup: cgroup(node, name)?, id, state, log })
    }

    /// Runs a command inside, as a probe of the kubelet does.
    ///
    /// # Errors
    /// When the runtime cannot be started. That the command fails is no error.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        let mut runtime = self.runtime();
        runtime.args(["exec", &self.id]).args(command);
        runtime.output().with_context(|| format!("cannot run {}", command::line(&runtime)))
    }

    /// Process id of what runs inside.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        let state = command::output(self.runtime().args(["state", &self.id]))?;
        let state: Value = serde_json::from_str(&state).context("the runtime's state is no JSON")?;
        let pid = state["pid"].as_u64().filter(|pid| *pid > 0).with_context(|| format!("no process: {state}"))?;
        Ok(u32::try_from(pid)?)
    }

    /// Sends a signal to what runs inside.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(rustix::process::Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, signal).context("cannot send a signal")
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.process.has_ended()
    }

    /// What it wrote to standard error.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn runtime(&self) -> Command {
        let mut runtime = Command::new("runc");
        runtime.arg("--root").arg(&self.state);
        runtime
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Kills what runs inside; the runtime's own process, which waits for it, ends then.
        command::output(self.runtime().args(["delete", "--force", &self.id])).ok();
        // The runtime has made the directories above in every hierarchy. In that of the node they are the harness's own.
        let Ok(unified) = cgroup2() else { return };
        for hierarchy in unified.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten() {
            if hierarchy.path() != unified {
                for above in self.cgroup.ancestors().skip(1).take(3) {
                    fs::remove_dir(hierarchy.path().join(above)).ok();
                }
            }
        }
    }
}

/// Beside the agents that the harness starts: in no pod's cgroup, and below the one that programs are attached to.
fn cgroup(node: &Node, name: &str) -> Result<PathBuf> {
    let of_node = node.cgroup().strip_prefix(cgroup2()?).context("the node's cgroup is in no hierarchy")?;
    Ok(of_node.join("agent").join(name))
}

/// What the kubelet puts into a container so that it can ask the API server.
fn service_account(cluster: &Cluster, dir: &Path) -> Result<PathBuf> {
    let account = dir.join("serviceaccount");
    fs::create_dir_all(&account).context("cannot make the service account's directory")?;
    let kubeconfig: Value = serde_json::from_str(&fs::read_to_string(cluster.kubeconfig())?)?;
    let authority = kubeconfig["clusters"][0]["cluster"]["certificate-authority"].as_str().context("an authority")?;
    fs::copy(authority, account.join("ca.crt")).context("cannot copy the authority's certificate")?;
    fs::write(account.join("token"), server::AGENT)?;
    fs::write(account.join("namespace"), "weft-system")?;
    Ok(account)
}

fn configuration(cluster: &Cluster, image: &Image, pod: &Value, name: &str, account: &Path) -> Result<Value> {
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true, "only a pod in the node's namespaces is known here");
    ensure!(security["privileged"].is_null(), "a privileged container has everything");
    let capabilities = capabilities(&security["capabilities"])?;
    let mut args = vec!["/weft-agent".to_owned()];
    args.extend(strings(&container["args"]));
    let mut namespaces: Vec<Value> = ["mount", "ipc", "uts"].iter().map(|kind| json!({"type": kind})).collect();
    namespaces.push(json!({"type": "network", "path": cluster.node.namespace().path()}));
    let cgroup = Path::new("/").join(cgroup(&cluster.node, name)?);
    let mut linux = json!({"namespaces": namespaces, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY,
        "cgroupsPath": cgroup});
    match pod.pointer("/securityContext/seccompProfile/type").and_then(Value::as_str) {
        Some("RuntimeDefault") => linux["seccomp"] = seccomp(&capabilities)?,
        other => bail!("no system call filter is known for {other:?}"),
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": name,
        "root": {"path": image.root, "readonly": security["readOnlyRootFilesystem"] == true},
        "process": {
            "terminal": false,
            "cwd": "/",
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "args": args,
            "env": environment(cluster, container, name)?,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
        },
        "mounts": mounts(image, pod, account)?,
        "linux": linux,
    }))
}

fn strings(value: &Value) -> impl Iterator<Item = String> + '_ {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

fn capabilities(value: &Value) -> Result<Vec<String>> {
    ensure!(value["drop"] == json!(["ALL"]), "a runtime's default capabilities are not known here");
    Ok(strings(&value["add"]).map(|name| format!("CAP_{name}")).collect())
}

fn environment(cluster: &Cluster, container: &Value, name: &str) -> Result<Vec<String>> {
    let address = cluster.server.address();
    let mut variables = vec![
        "PATH=/".to_owned(),
        format!("KUBERNETES_SERVICE_HOST={}", address.ip()),
        format!("KUBERNETES_SERVICE_PORT={}", address.port()),
    ];
    for variable in container["env"].as_array().into_iter().flatten() {
        let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
            None => variable["value"].as_str().context("a value")?,
            Some("spec.nodeName") => cluster.node.name(),
            Some("metadata.namespace") => "weft-system",
            Some("metadata.name") => name,
            Some(other) => bail!("no field {other} is known here"),
        };
        variables.push(format!("{}={value}", variable["name"].as_str().context("a name")?));
    }
    Ok(variables)
}

fn mounts(image: &Image, pod: &Value, account: &Path) -> Result<Vec<Value>> {
    let bind = |to: &str, from: &Path, read_only: bool| {
        let access = if read_only { "ro" } else { "rw" };
        json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "rprivate", access]})
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    if image.libraries {
        mounts.extend(LIBRARIES.map(|(_, path)| bind(&format!("/{path}"), &Path::new("/").join(path), true)));
    }
    let volumes = pod["volumes"].as_array().context("volumes")?;
    for mount in pod["containers"][0]["volumeMounts"].as_array().into_iter().flatten() {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        let volume = volume.with_context(|| format!("no volume {}", mount["name"]))?;
        if ["projected", "configMap"].iter().any(|kind| !volume[*kind].is_null()) {
            // Nobody has made a token or roots yet: the agent starts all the same.
            let options = json!(["nosuid", "noexec", "nodev", "ro", "mode=755"]);
            mounts.push(
                json!({"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": options}),
            );
            continue;
        }
        let host = &volume["hostPath"];
        let path = Path::new(host["path"].as_str().with_context(|| format!("{volume} is no hostPath"))?);
        // As the kubelet: made where the type says so, and required otherwise.
        if host["type"] == "DirectoryOrCreate" {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        ensure!(path.is_dir(), "hostPath.type: {} is no directory", path.display());
        mounts.push(bind(mount["mountPath"].as_str().context("mountPath")?, path, mount["readOnly"] == true));
    }
    mounts.push(bind(ACCOUNT_DIR, account, true));
    Ok(mounts)
}

/// The filter that a runtime makes of its default profile for a container with these capabilities.
fn seccomp(capabilities: &[String]) -> Result<Value> {
    let profile: Value = serde_json::from_str(include_str!("../container/seccomp.json"))?;
    let any = |value: &Value, has: &dyn Fn(&str) -> bool| strings(value).any(|word| has(&word));
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        (includes["arches"].is_null() || any(&includes["arches"], &|arch| arch == "amd64"))
            && (includes["caps"].is_null() || any(&includes["caps"], &has))
            && !any(&excludes["caps"], &has)
    };
    let rules = profile["syscalls"].as_array().context("rules")?.iter().filter(applies);
    let syscalls: Vec<Value> = rules
        .map(|rule| {
            let mut syscall = json!({"names": rule["names"], "action": rule["action"]});
            if let Some(code) = rule["errnoRet"].as_u64() {
                syscall["errnoRet"] = code.into();
            }
            if let Some(args) = rule["args"].as_array().filter(|args| !args.is_empty()) {
                syscall["args"] = args.clone().into();
            }
            syscall
        })
        .collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    }))
}
