//! The application of the SMI conformance suite, as its tests know it: `POST /call` makes a request, `/echo` tells what arrived, `/metrics`
//! tells (`GET`) or forgets (`DELETE`) what was received and what became of calls.
//!
//! Source: layer5io/learn-layer5, service/main.go. Like there, a call that gets no HTTP answer is in neither list.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

/// Header that says which application asks.
const CALLER: &str = "ServiceName";

/// Arguments of `conformance`.
#[derive(clap::Args)]
pub struct ConformanceArgs {
    /// Name of this application, as others see it.
    #[arg(long, env = "SERVICE_NAME", default_value = "Default")]
    pub name: String,
    /// Port.
    #[arg(long, env = "PORT", default_value_t = 9091)]
    pub port: u16,
    /// Lines of address and name, in place of a resolver.
    #[arg(long)]
    pub hosts: PathBuf,
}

/// What `GET /metrics` tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metrics {
    /// Who asked, in order.
    pub req_received: Vec<String>,
    /// Calls that were answered with 200 to 399.
    pub resp_succeeded: Vec<Called>,
    /// Calls that were answered otherwise.
    pub resp_failed: Vec<Called>,
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Called {
    /// URL.
    #[serde(rename = "URL")]
    pub url: String,
    /// Method.
    pub method: String,
}

/// The body of `POST /call`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// URL, with a name that the cluster's DNS knows.
    pub url: String,
    /// Method.
    pub method: String,
    /// Body.
    #[serde(default)]
    pub body: String,
    /// Headers.
    #[serde(default)]
    pub headers: std::collections::BTreeMap<String, String>,
}

struct App {
    name: String,
    hosts: PathBuf,
    metrics: Mutex<Metrics>,
}

/// Serves until accepting fails.
///
/// # Errors
/// When accepting fails.
pub async fn serve(listener: TcpListener, args: ConformanceArgs) -> Result<()> {
    let app = Arc::new(App { name: args.name, hosts: args.hosts, metrics: Mutex::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let app = Arc::clone(&app);
                async move { Ok::<_, Infallible>(app.respond(request).await) }
            });
            // What goes wrong on a connection is for the client to see.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

impl App {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method().clone(), request.uri().path()) {
            (Method::GET, "/metrics") => {
                let text = serde_json::to_string(&*self.metrics.lock().await).unwrap_or_default();
                answer(StatusCode::OK, text)
            }
            (Method::DELETE, "/metrics") => {
                *self.metrics.lock().await = Metrics::default();
                answer(StatusCode::OK, String::new())
            }
            (_, "/metrics") => answer(StatusCode::BAD_REQUEST, "Method not defined\n".to_owned()),
            (_, "/echo") => {
                self.count(&request).await;
                answer(StatusCode::OK, head_of(&request))
            }
            (Method::POST, "/call") => {
                self.count(&request).await;
                match self.call(request).await {
                    Ok(body) => answer(StatusCode::OK, body),
                    Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
                }
            }
            _ => answer(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        }
    }

    async fn count(&self, request: &Request<Incoming>) {
        let caller = request.headers().get(CALLER).and_then(|value| value.to_str().ok()).unwrap_or("Unidentified");
        self.metrics.lock().await.req_received.push(caller.to_owned());
    }

    /// Makes the call that is asked for, and returns the body of the answer to it.
    async fn call(&self, request: Request<Incoming>) -> Result<String> {
        let body = request.into_body().collect().await?.to_bytes();
        let Call { url, method, body, headers } = serde_json::from_slice(&body).context("cannot read the call")?;
        let uri: Uri = url.parse()?;
        let authority = uri.authority().context("a URL without host")?;
        let stream = TcpStream::connect(self.resolve(authority.host(), authority.port_u16().unwrap_or(80))?).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut request = Request::builder().method(method.as_str()).uri(path).header(header::HOST, authority.as_str());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.header(CALLER, &self.name).body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let succeeded = (200..400).contains(&response.status().as_u16());
        {
            let called = Called { url, method };
            let mut metrics = self.metrics.lock().await;
            if succeeded { metrics.resp_succeeded.push(called) } else { metrics.resp_failed.push(called) }
        }
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn resolve(&self, host: &str, port: u16) -> Result<SocketAddr> {
        if let Ok(ip) = host.parse() {
            return Ok(SocketAddr::new(ip, port));
        }
        // A name may end in the root's dot.
        let name = host.trim_end_matches('.');
        let hosts = std::fs::read_to_string(&self.hosts).context("cannot read the names")?;
        let found = hosts.lines().filter_map(|line| line.split_once(' ')).find(|(_, of)| *of == name);
        let (address, _) = found.with_context(|| format!("no such host: {name}"))?;
        Ok(SocketAddr::new(address.parse()?, port))
    }
}

/// A request's head as it stands on the wire.
fn head_of(request: &Request<Incoming>) -> String {
    let mut head = format!("{} {} {:?}\r\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        head += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    head + "\r\n"
}

fn answer(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
