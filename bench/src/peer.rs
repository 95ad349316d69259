//! How each proxy is told to do the same: HTTP/1.1 to two backends, 90 to 10, connections kept, one core. Everything else is as it
//! comes, but for limits that the load would meet (requests a connection, connections a process) and access logs, which are off:
//! weft writes none either.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    limits::FIRST_SHARE_PERCENT,
    place::{Place, own_binary},
};

/// Port on which every peer listens, in the client pod's namespace.
pub const PORT: u16 = 18_000;
/// Client connections that haproxy and nginx are told to expect; each takes two descriptors, of which machines may grant 20,000.
const CONNECTIONS_MAX: u32 = 9_000;

/// A proxy that weft is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Envoy.
    Envoy,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// The bound with hyper.
    Tpc,
    /// The bound with nothing but epoll.
    Raw,
    /// The bound that only copies bytes.
    Copy,
}

/// Where the programs are.
#[derive(Clone, Debug, clap::Args)]
pub struct Programs {
    /// Envoy.
    #[arg(long, value_name = "FILE")]
    pub envoy: PathBuf,
    /// nginx.
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/nginx")]
    pub nginx: PathBuf,
    /// HAProxy.
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/haproxy")]
    pub haproxy: PathBuf,
}

impl Peer {
    /// The command that starts it in the foreground; its configuration goes to `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn command(self, programs: &Programs, place: &Place, dir: &Path, backends: [SocketAddr; 2]) -> Result<Command> {
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(match self {
            Self::Envoy => {
                let config = write("envoy.yaml", envoy(backends))?;
                envoy_command(programs, place, &config)
            }
            Self::Nginx => {
                let config = write("nginx.conf", nginx(dir, backends))?;
                let mut command = place.command(&programs.nginx);
                command.arg("-p").arg(dir).arg("-c").arg(config).args(["-g", "daemon off;"]);
                command
            }
            Self::Haproxy => {
                let config = write("haproxy.cfg", haproxy(backends))?;
                let mut command = place.command(&programs.haproxy);
                command.args(["-db", "-f"]).arg(config);
                command
            }
            Self::Tpc | Self::Raw | Self::Copy => {
                let kind = match self {
                    Self::Tpc => "tpc",
                    Self::Raw => "raw",
                    _ => "copy",
                };
                let mut command = place.command(own_binary()?);
                command.args(["bound", kind, "--listen", &format!("0.0.0.0:{PORT}")]);
                command.args(backends.iter().map(ToString::to_string));
                command
            }
        })
    }

    /// What it says about its version.
    #[must_use]
    pub fn version(self, programs: &Programs) -> Option<String> {
        let (program, argument) = match self {
            Self::Envoy => (&programs.envoy, "--version"),
            Self::Nginx => (&programs.nginx, "-v"),
            Self::Haproxy => (&programs.haproxy, "-v"),
            Self::Tpc | Self::Raw | Self::Copy => return None,
        };
        // nginx tells it on standard error.
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        text.lines().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
    }
}

/// The command that starts an Envoy in the foreground.
#[must_use]
pub fn envoy_command(programs: &Programs, place: &Place, config: &Path) -> Command {
    let mut command = place.command(&programs.envoy);
    command.arg("-c").arg(config).args(["--concurrency", "1", "--log-level", "error"]);
    command.args(["--disable-hot-restart"]);
    command
}

fn weights() -> [u32; 2] {
    [FIRST_SHARE_PERCENT, 100 - FIRST_SHARE_PERCENT]
}

fn envoy(backends: [SocketAddr; 2]) -> String {
    let clusters =
        ["a", "b"].iter().zip(backends).map(|(name, address)| envoy_cluster(name, address, "")).collect::<String>();
    let listener = envoy_listener("outbound", PORT, "HTTP1", &envoy_split(), "");
    envoy_config(&listener, &clusters)
}

/// A whole configuration.
pub(crate) fn envoy_config(listeners: &str, clusters: &str) -> String {
    format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}")
}

/// Where the requests of a listener go: to both backends, by weight.
pub(crate) fn envoy_split() -> String {
    let [first, second] = weights();
    format!("weighted_clusters: {{ clusters: [{{ name: a, weight: {first} }}, {{ name: b, weight: {second} }}] }}")
}

/// A cluster of one endpoint. `more` is what else is said of it, indented by four.
pub(crate) fn envoy_cluster(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "  - name: {name}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }}] }}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }} }}] }}]
{more}",
        address.ip(),
        address.port()
    )
}

/// A listener of HTTP. `transport` is its transport socket, indented by six.
pub(crate) fn envoy_listener(name: &str, port: u16, codec: &str, route: &str, transport: &str) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: {codec}
          route_config:
            virtual_hosts:
            - name: web
              domains: [\"*\"]
              routes: [{{ match: {{ prefix: / }}, route: {{ {route} }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
{transport}"
    )
}

fn nginx(dir: &Path, [a, b]: [SocketAddr; 2]) -> String {
    let [first, second] = weights();
    let dir = dir.display();
    // Kept connections: as many as the load has. By default a connection is closed after 1,000 requests, which here is every second.
    format!(
        "user root;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log error;
events {{ worker_connections {}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    upstream web {{
        server {a} weight={first};
        server {b} weight={second};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 0.0.0.0:{PORT} backlog=4096;
        location / {{
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_pass http://web;
        }}
    }}
}}
",
        2 * CONNECTIONS_MAX
    )
}

fn haproxy([a, b]: [SocketAddr; 2]) -> String {
    let [first, second] = weights();
    format!(
        "global
    nbthread 1
    maxconn {CONNECTIONS_MAX}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
frontend outbound
    bind 0.0.0.0:{PORT} backlog 4096
    default_backend web
backend web
    balance roundrobin
    server a {a} weight {first}
    server b {b} weight {second}
"
    )
}
