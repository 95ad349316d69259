//! Servers that note every request as they read it: nginx and haproxy, each with a parser of its own.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{Pod, Process, programs};

/// Serves HTTP/1.1.
pub const HTTP1: u16 = 8080;
/// Serves HTTP/2 without TLS, to clients that know beforehand.
pub const HTTP2: u16 = 8081;
/// The field that tells requests apart.
pub const NONCE: &str = "X-Nonce";
/// Begins each line that notes a request.
const SEEN: &str = "seen:";

/// Starts nginx in a pod; its files are in `dir`. It answers with `ok` and the nonce.
///
/// # Errors
/// When it does not come up.
pub fn nginx(pod: &Pod, dir: &Path) -> Result<Process> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let at = dir.display();
    let config = dir.join("nginx.conf");
    let text = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {at}/nginx.pid;\nevents {{ worker_connections 1024; }}\n\
         http {{\n default_type text/plain;\n keepalive_requests 1000000;\n underscores_in_headers on;\n merge_slashes off;\n\
         client_body_temp_path {at}/body;\n proxy_temp_path {at}/proxy;\n fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi;\n scgi_temp_path {at}/scgi;\n\
         log_format seen '{SEEN} $http_x_nonce $request_method $request_uri $host';\n access_log /dev/stderr seen;\n\
         server {{\n\
          listen {HTTP1};\n listen [::]:{HTTP1};\n listen {HTTP2} http2;\n listen [::]:{HTTP2} http2;\n\
          location / {{ return 200 \"ok $http_x_nonce\\n\"; }}\n\
         }}\n}}\n"
    );
    fs::write(&config, text)?;
    let mut nginx = pod.command("nginx");
    nginx.arg("-e").arg(dir.join("error.log")).arg("-p").arg(dir).arg("-c").arg(&config);
    start(pod, nginx)
}

/// Starts haproxy in a pod; its files are in `dir`. It answers as [`nginx`] does.
///
/// # Errors
/// When it does not come up.
pub fn haproxy(pod: &Pod, dir: &Path) -> Result<Process> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let config = dir.join("haproxy.cfg");
    let text = format!(
        "global\n nbthread 1\n maxconn 1024\n log stderr format raw local0\n\
         defaults\n mode http\n log global\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
         frontend witness\n bind :::{HTTP1} v4v6\n bind :::{HTTP2} v4v6 proto h2\n\
          http-request set-var-fmt(txn.seen) \"%[req.hdr(x-nonce)] %[method] %[pathq] %[req.hdr(host)]\"\n\
          log-format \"{SEEN} %[var(txn.seen)]\"\n\
          http-request return status 200 content-type text/plain lf-string \"ok %[req.hdr(x-nonce)]\\n\"\n"
    );
    fs::write(&config, text)?;
    let mut haproxy = pod.command("haproxy");
    haproxy.arg("-db").arg("-f").arg(&config);
    start(pod, haproxy)
}

fn start(pod: &Pod, command: std::process::Command) -> Result<Process> {
    let process = pod.spawn(command)?;
    programs::wait_listening(pod, &[HTTP1, HTTP2]).with_context(|| process.log_tail(20))?;
    Ok(process)
}

/// What a witness has seen so far, in its order: nonce, method, target and host of each request. What it could not read is an empty line.
#[must_use]
pub fn seen(witness: &Process) -> Vec<String> {
    let log = witness.log_tail(usize::MAX);
    log.lines().filter_map(|line| line.split_once(SEEN)).map(|(_, seen)| seen.trim().to_owned()).collect()
}
