//! Something between the agent and the API server that answers in its place, cuts answers short, or never answers. What no rule is about
//! passes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context as TaskContext, Poll, ready},
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

use super::{
    reviews::{self, Token, Tokens},
    server::{AGENT, ApiServer},
};
use crate::{Node, namespace};

type AnyError = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = BoxBody<Bytes, AnyError>;

/// What is done to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is answered with this status, this header and this body.
    Answer(u16, Option<(&'static str, &'static str)>, &'static str),
    /// Its answer ends after so many bytes, and the connection with it.
    Cut(usize),
}

/// A request that was seen.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When.
    pub at: Instant,
    /// Method, path and query, as in `GET /api/v1/pods?watch=true`.
    pub line: String,
    /// How it was answered; 0 while it was not.
    pub code: u16,
}

/// The proxy. It speaks plain HTTP to the agent, and to the API server through the harness' own way in.
#[derive(Debug)]
pub struct Faults {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    /// What a request line has to contain, and what is done to such a request. The first one counts.
    rules: Mutex<Vec<(Vec<String>, Fault)>>,
    asked: Mutex<Vec<Asked>>,
    tokens: Tokens,
    /// Counts how often all connections were ended.
    cuts: watch::Sender<u64>,
}

impl Faults {
    /// Starts the proxy in the node's namespace, without any fault.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn before(node: &Node, server: &ApiServer) -> Result<Self> {
        let shared = Arc::new(Shared {
            upstream: server.plain_address(),
            rules: Mutex::default(),
            asked: Mutex::default(),
            tokens: Tokens::default(),
            cuts: watch::channel(0).0,
        });
        let (stop, stopped) = oneshot::channel();
        let (told, address) = std::sync::mpsc::channel();
        let (of_thread, netns) = (Arc::clone(&shared), node.namespace().path());
        let thread = thread::spawn(move || {
            // Whoever waits for the address sees that nobody tells it.
            namespace::run_in(&netns, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                    told.send(listener.local_addr()?)?;
                    tokio::select! {
                        _ = stopped => Ok(()),
                        end = serve(listener, of_thread) => end,
                    }
                })
            })
            .ok();
        });
        let address = address.recv().context("the proxy of faults did not start")?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on, this is done to requests whose line contains all of `words`. Connections end, so that it shows at once.
    pub fn set(&self, words: &[&str], fault: Fault) {
        locked(&self.shared.rules).push((words.iter().map(|word| (*word).to_owned()).collect(), fault));
        self.end_connections();
    }

    /// From now on, everything passes.
    pub fn clear(&self) {
        locked(&self.shared.rules).clear();
    }

    /// Ends all connections in the midst of what is said on them.
    pub fn end_connections(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on, tokens are reviewed here, and this one says so. Others are none.
    pub fn put_token(&self, token: &str, says: Token) {
        self.shared.tokens.put(token, says);
    }

    /// From now on, this token is none.
    pub fn remove_token(&self, token: &str) {
        self.shared.tokens.remove(token);
    }

    /// Where it listens, in the node's namespace.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests that were seen, oldest first.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        locked(&self.shared.asked).clone()
    }

    /// A kubeconfig of the agent that leads here.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, server: &ApiServer) -> Result<PathBuf> {
        server.kubeconfig_through(AGENT, "faults", &self.url())
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            stop.send(()).ok();
            thread.join().ok();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut cuts = shared.cuts.subscribe();
            let service = service_fn(|request| answer(Arc::clone(&shared), request));
            let connection = server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // How a connection ends is the agent's affair.
            tokio::select! {
                _ = connection => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<AnyBody>, AnyError> {
    let line = format!("{} {}", request.method(), request.uri());
    let fault = locked(&shared.rules)
        .iter()
        .find(|(words, _)| words.iter().all(|word| line.contains(word)))
        .map(|(_, fault)| fault.clone());
    let number = {
        let mut asked = locked(&shared.asked);
        asked.push(Asked { at: Instant::now(), line, code: 0 });
        asked.len() - 1
    };
    let response = match fault {
        Some(Fault::Answer(code, header, text)) => {
            let mut response = Response::builder().status(StatusCode::from_u16(code)?);
            if let Some((name, value)) = header {
                response = response.header(name, value);
            }
            response.body(Full::new(Bytes::from(text)).map_err(AnyError::from).boxed())?
        }
        None if is_review(&shared, &request) => review(&shared, request).await?,
        Some(Fault::Cut(bytes)) => forward(&shared, request).await?.map(|body| Short { body, left: bytes }.boxed()),
        None => forward(&shared, request).await?.map(|body| body.map_err(AnyError::from).boxed()),
    };
    locked(&shared.asked)[number].code = response.status().as_u16();
    Ok(response)
}

fn is_review(shared: &Shared, request: &Request<Incoming>) -> bool {
    request.uri().path() == reviews::PATH && !shared.tokens.is_empty()
}

async fn review(shared: &Shared, request: Request<Incoming>) -> Result<Response<AnyBody>, AnyError> {
    let question = serde_json::from_slice(&request.into_body().collect().await?.to_bytes())?;
    let answer = Bytes::from(shared.tokens.review(&question).to_string());
    let response = Response::builder().status(StatusCode::CREATED).header("content-type", "application/json");
    Ok(response.body(Full::new(answer).map_err(AnyError::from).boxed())?)
}

async fn forward(shared: &Shared, mut request: Request<Incoming>) -> Result<Response<Incoming>, AnyError> {
    let stream = TcpStream::connect(shared.upstream).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // kubectl proxy wants to be asked by its own name.
    let host = shared.upstream.to_string().parse()?;
    request.headers_mut().insert(http::header::HOST, host);
    Ok(sender.send_request(request).await?)
}

/// A body that fails after so many bytes.
struct Short {
    body: Incoming,
    left: usize,
}

impl Body for Short {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnyError>>> {
        if self.left == 0 {
            return Poll::Ready(Some(Err("cut short".into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => frame.into_data().ok().map(|mut data| {
                data.truncate(self.left);
                self.left -= data.len();
                Ok(Frame::data(data))
            }),
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
