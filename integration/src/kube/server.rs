//! etcd and an API server in a node's network namespace, and ways to talk to them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    bulk,
    tools::{Server, Tools},
};
use crate::{Node, Process, command, http, limits, wait};

// Each node has a network namespace of its own, so ports may be fixed.
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
const API_PORT: u16 = 6443;
const PROXY_PORT: u16 = 8001;
/// Addresses of Services where `kube-apiserver` hands them out and checks them: all that tests use. Its own Service gets the first.
const SERVICE_RANGES: &str = "10.72.0.0/13,fd78::/108";
/// Who may ask. The token is the name.
pub const USERS: [&str; 3] = [ADMIN, AGENT, SECOND_AGENT];
/// The user of kubectl and of the harness.
pub const ADMIN: &str = "admin";
/// The user of the agent.
pub const AGENT: &str = "weft-agent";
/// The user of another node's agent. In a cluster they all have one, but then nobody could tell who asked.
pub const SECOND_AGENT: &str = "weft-agent-b";

/// An API server with its own etcd, for one node. All of it goes with this value.
#[derive(Debug)]
pub struct ApiServer {
    // The server is ended before etcd.
    proxy: Process,
    server: Option<Process>,
    _etcd: Process,
    node: Node,
    dir: PathBuf,
    tools: Tools,
}

/// What the server said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub code: u16,
    /// Body.
    pub body: Value,
}

/// A request that the server has seen, in the words of RBAC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Request {
    /// Who asked.
    pub user: String,
    /// `list`, `watch`, `patch` and so on.
    pub verb: String,
    /// API group; empty for the core.
    pub group: String,
    /// Resource, plural; empty if none was asked for.
    pub resource: String,
    /// Subresource, as `status`.
    #[serde(default)]
    pub subresource: String,
    /// Namespace; empty for all, and for what has none.
    #[serde(default)]
    pub namespace: String,
    /// Name of the object, if one was asked for.
    #[serde(default)]
    pub name: String,
    /// Path, if no resource was asked for.
    #[serde(default)]
    pub path: String,
}

impl ApiServer {
    /// Starts etcd and an API server on the node and waits until it is ready.
    ///
    /// # Errors
    /// When the programs are not there, or do not come up.
    pub fn start(node: &Node) -> Result<Self> {
        let tools = Tools::find()?;
        let dir = node.state_dir().join("kubernetes");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut etcd = node.command(&tools.etcd.to_string_lossy());
        let client = format!("http://127.0.0.1:{ETCD_PORT}");
        etcd.arg("--data-dir").arg(dir.join("etcd"));
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &format!("http://127.0.0.1:{ETCD_PEER_PORT}")]);
        etcd.args(["--unsafe-no-fsync", "--log-level", "error"]);
        let etcd = Process::start(etcd, &dir.join("etcd.log"))?;
        for user in USERS {
            fs::write(kubeconfig(&dir, user), config_of(&dir, user, &format!("https://127.0.0.1:{API_PORT}")))
                .context("cannot write a kubeconfig")?;
        }
        let server = start_server(node, &tools, &dir)?;
        // The harness' own way in: no TLS, and no start of kubectl for each request.
        let mut proxy = node.command(&tools.kubectl.to_string_lossy());
        proxy.arg("--kubeconfig").arg(kubeconfig(&dir, ADMIN));
        proxy.args(["proxy", "--port", &PROXY_PORT.to_string()]);
        wait::until("the server's certificate", limits::API_SERVER_TIMEOUT, || {
            Ok(certificate(&dir).is_file().then_some(()))
        })?;
        let proxy = Process::start(proxy, &dir.join("proxy.log"))?;
        let server = Self { proxy, server: Some(server), _etcd: etcd, node: node.clone(), dir, tools };
        server.wait_ready()?;
        Ok(server)
    }

    /// A kubeconfig for one of [`USERS`].
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        kubeconfig(&self.dir, user)
    }

    /// A kubeconfig for a user that leads to `url`, called `way`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_through(&self, user: &str, way: &str, url: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{user}.{way}.kubeconfig"));
        fs::write(&path, config_of(&self.dir, user, url)).context("cannot write a kubeconfig")?;
        Ok(path)
    }

    /// Where the API server listens, in the node's namespace.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT))
    }

    /// Where the harness asks it, as admin and without TLS.
    #[must_use]
    pub fn plain_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT))
    }

    /// The API server's process id.
    ///
    /// # Errors
    /// When it is stopped.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("the API server is stopped")?.id())
    }

    /// Ends the API server; etcd stays.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        let mut server = self.server.take().context("the API server is stopped already")?;
        server.signal(Signal::TERM)?;
        // It would wait for its watches, a minute: their clients are to see a server that has gone.
        let ended = wait::until("the API server to end", limits::API_SERVER_GRACE, || server.has_ended());
        if ended.is_err() {
            server.kill()?;
        }
        Ok(())
    }

    /// Kills the API server; etcd stays.
    ///
    /// # Errors
    /// When it is stopped already.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("the API server is stopped already")?.kill()
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Errors
    /// When it runs, or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        if self.server.is_some() {
            bail!("the API server runs");
        }
        self.server = Some(start_server(&self.node, &self.tools, &self.dir)?);
        self.wait_ready()
    }

    /// Lets the API server stand still (SIGSTOP) or go on (SIGCONT): connections to it stay, and say nothing.
    ///
    /// # Errors
    /// When it is stopped.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let server = self.server.as_ref().context("the API server is stopped")?;
        server.signal(if frozen { Signal::STOP } else { Signal::CONT })
    }

    fn wait_ready(&self) -> Result<()> {
        wait::until("the API server to be ready", limits::API_SERVER_TIMEOUT, || {
            Ok((self.request("GET", "/readyz", None)?.code == 200).then_some(()))
        })
        .with_context(|| self.log_tail())
    }

    /// Forgets all versions of all objects but the last: a watch that wants to go on from one of them is told 410 Gone.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        // Both are etcd's own JSON gateway. "AA==" is the key of one zero byte: the first that there can be.
        let header = self.etcd("/v3/kv/range", &json!({"key": "AA==", "limit": 1}))?;
        let revision = header.pointer("/header/revision").context("etcd did not tell its revision")?;
        self.etcd("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).map(drop)
    }

    fn etcd(&self, path: &str, body: &Value) -> Result<Value> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ETCD_PORT));
        let (code, text) = self.node.namespace().run(|| {
            http::send(address, "POST", path, Some(("application/json", &body.to_string())), limits::API_TIMEOUT)
        })?;
        if code != 200 {
            bail!("etcd answered {code} to {path}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("etcd answered {text:?}"))
    }

    /// A request to the API, as admin. A body is a merge patch for `PATCH`, an object otherwise.
    ///
    /// # Errors
    /// When there is no answer. An answer that says no is no error.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let address = self.plain_address();
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let text = body.map(Value::to_string);
        let body = text.as_deref().map(|text| (kind, text));
        let (code, text) =
            self.node.namespace().run(|| http::send(address, method, path, body, limits::API_TIMEOUT))?;
        // Probes and errors are plain text.
        Ok(Answer { code, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    /// As [`request`](Self::request), for what must succeed; returns the object.
    ///
    /// # Errors
    /// When the answer is not 2xx.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.request(method, path, body)?;
        if !(200..300).contains(&answer.code) {
            bail!("{method} {path} was answered {}: {}", answer.code, answer.body);
        }
        Ok(answer.body)
    }

    /// Creates many objects, each at the path of its kind, in any order; how many.
    ///
    /// # Errors
    /// When one is refused.
    pub fn create_all(&self, objects: impl Iterator<Item = (String, Value)> + Send) -> Result<usize> {
        bulk::create(self.node.namespace(), SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_PORT)), objects)
    }

    /// The items of a list.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        match self.call("GET", path, None)?["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("{path} is no list"),
        }
    }

    /// kubectl, as admin.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = self.node.command(&self.tools.kubectl.to_string_lossy());
        command.arg("--kubeconfig").arg(self.kubeconfig(ADMIN)).env("HOME", &self.dir);
        command
    }

    /// helm, as admin.
    #[must_use]
    pub fn helm(&self) -> Command {
        let mut command = self.node.command(&self.tools.helm.to_string_lossy());
        command.env("KUBECONFIG", self.kubeconfig(ADMIN)).env("HOME", &self.dir);
        command
    }

    /// `kubectl apply` of YAML documents; returns what it printed.
    ///
    /// # Errors
    /// When one is refused.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        command::input(self.kubectl().args(["apply", "-f", "-"]), yaml)
    }

    /// `kubectl delete` of the objects of YAML documents; those that are not there are no error.
    ///
    /// # Errors
    /// When one cannot be deleted.
    pub fn delete(&self, yaml: &str) -> Result<String> {
        command::input(self.kubectl().args(["delete", "--ignore-not-found", "-f", "-"]), yaml)
    }

    /// Waits until custom resources are served, in every version that their definitions serve.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_established(&self) -> Result<()> {
        wait::until("the custom resources to be served", limits::API_SERVER_TIMEOUT, || {
            let definitions = self.list("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")?;
            for definition in &definitions {
                let spec = &definition["spec"];
                let (group, plural) = (text(spec, "/group"), text(spec, "/names/plural"));
                for version in
                    spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true)
                {
                    let path = format!("/apis/{group}/{}/{plural}?limit=1", text(version, "/name"));
                    if self.request("GET", &path, None)?.code != 200 {
                        return Ok(None);
                    }
                }
            }
            Ok(Some(()))
        })
    }

    /// All requests that the server has seen so far. Only the project's own server tells.
    ///
    /// # Errors
    /// When there is no log.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let path = request_log(&self.dir);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// The end of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let lines = |process: &Process| process.log_tail(limits::LOG_TAIL_LINES);
        let server = self.server.as_ref().map(lines).unwrap_or_default();
        format!("the API server's log ends:\n{server}\nand kubectl proxy's:\n{}", lines(&self.proxy))
    }
}

/// The text at a JSON pointer, or none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn start_server(node: &Node, tools: &Tools, dir: &Path) -> Result<Process> {
    let command = match &tools.server {
        Server::Testapi(program) => {
            let mut command = node.command(&program.to_string_lossy());
            command.args(["--etcd", &format!("http://127.0.0.1:{ETCD_PORT}"), "--port", &API_PORT.to_string()]);
            command.arg("--cert-dir").arg(certificates(dir)).arg("--request-log").arg(request_log(dir));
            command
        }
        Server::Upstream(program) => {
            let tokens = USERS.map(|user| format!("{user},{user},{user},system:masters\n")).concat();
            fs::write(dir.join("tokens.csv"), tokens).context("cannot write the tokens")?;
            let key = dir.join("service-accounts.key");
            if !key.exists() {
                command::output(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
            }
            let mut command = node.command(&program.to_string_lossy());
            command.args(upstream_args(dir, &key));
            command
        }
    };
    Process::start(command, &dir.join("server.log"))
}

/// The flags of `kube-apiserver` for one node without anything else of a control plane.
fn upstream_args(dir: &Path, key: &Path) -> Vec<String> {
    let at = |path: PathBuf| path.display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={API_PORT}"),
        format!("--cert-dir={}", at(certificates(dir))),
        format!("--token-auth-file={}", at(dir.join("tokens.csv"))),
        "--authorization-mode=RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", at(key.to_path_buf())),
        format!("--service-account-signing-key-file={}", at(key.to_path_buf())),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        // It would wait for service accounts that a controller makes.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ]
}

fn certificates(dir: &Path) -> PathBuf {
    dir.join("certificates")
}

fn certificate(dir: &Path) -> PathBuf {
    certificates(dir).join("apiserver.crt")
}

fn request_log(dir: &Path) -> PathBuf {
    dir.join("requests.jsonl")
}

fn kubeconfig(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}.kubeconfig"))
}

fn config_of(dir: &Path, user: &str, url: &str) -> String {
    // JSON is YAML.
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "harness",
        "clusters": [{"name": "harness", "cluster": {
            "server": url, "certificate-authority": certificate(dir)}}],
        "users": [{"name": user, "user": {"token": user}}],
        "contexts": [{"name": "harness", "context": {"cluster": "harness", "user": user}}],
    })
    .to_string()
}
