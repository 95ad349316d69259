//! nginx: HTTP/1.1, HTTP/2 and TLS.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{Pod, Process, command, programs};

/// Serves HTTP/1.1.
pub const HTTP1: u16 = 8080;
/// Serves HTTP/2 without TLS, to clients that know beforehand.
pub const HTTP2: u16 = 8081;
/// Serves both over TLS, as ALPN says.
pub const TLS: u16 = 8443;
/// The name in the certificate.
pub const TLS_NAME: &str = "nginx.shop.svc.cluster.local";
/// Bytes that `/large` answers with.
pub const LARGE_BYTES: usize = 8 << 20;
/// Answers to any other path: what the server saw.
const ANSWER: &str = "$server_protocol $request_method $remote_addr $host $request_uri";

/// Starts nginx in a pod; its files are in `dir`.
///
/// # Errors
/// When it does not come up.
pub fn start(pod: &Pod, dir: &Path) -> Result<Process> {
    fs::create_dir_all(dir.join("html")).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(dir.join("html/large"), vec![b'x'; LARGE_BYTES])?;
    command::output(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={TLS_NAME}"), "-addext", &format!("subjectAltName=DNS:{TLS_NAME}")])
            .arg("-keyout")
            .arg(dir.join("key.pem"))
            .arg("-out")
            .arg(dir.join("cert.pem")),
    )?;
    let config = dir.join("nginx.conf");
    fs::write(&config, configuration(&dir.display().to_string()))?;
    let mut nginx = pod.command("nginx");
    nginx.arg("-e").arg(dir.join("error.log")).arg("-p").arg(dir).arg("-c").arg(&config);
    let process = pod.spawn(nginx)?;
    programs::wait_listening(pod, &[HTTP1, HTTP2, TLS]).with_context(|| process.log_tail(20))?;
    Ok(process)
}

fn configuration(dir: &str) -> String {
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/nginx.pid;\nevents {{ worker_connections 16384; }}\n\
         http {{\n access_log off;\n default_type text/plain;\n keepalive_requests 1000000;\n\
         client_body_temp_path {dir}/body;\n proxy_temp_path {dir}/proxy;\n fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi;\n scgi_temp_path {dir}/scgi;\n\
         server {{\n\
          listen {HTTP1} backlog=4096;\n listen [::]:{HTTP1} backlog=4096;\n\
          listen {HTTP2} http2 backlog=4096;\n listen [::]:{HTTP2} http2 backlog=4096;\n\
          listen {TLS} ssl http2;\n listen [::]:{TLS} ssl http2;\n\
          ssl_certificate {dir}/cert.pem;\n ssl_certificate_key {dir}/key.pem;\n\
          location = /large {{ root {dir}/html; }}\n\
          location / {{ return 200 \"{ANSWER}\\n\"; }}\n\
         }}\n}}\n"
    )
}
