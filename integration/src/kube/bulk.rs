//! Many objects at once, over a few connections that stay open.

use std::{net::SocketAddr, sync::Mutex};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::namespace::Namespace;

/// Connections at one time: enough that server, store and harness all have work.
const CONNECTIONS: usize = 4;

/// Creates objects, each at the path of its kind.
pub(super) fn create(
    namespace: &Namespace,
    address: SocketAddr,
    objects: impl Iterator<Item = (String, Value)> + Send,
) -> Result<usize> {
    let objects = Mutex::new(objects);
    std::thread::scope(|scope| {
        let workers = [(); CONNECTIONS].map(|()| scope.spawn(|| namespace.run(|| worker(address, &objects))));
        let mut created = 0;
        for worker in workers {
            created += worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(created)
    })
}

fn worker(address: SocketAddr, objects: &Mutex<impl Iterator<Item = (String, Value)>>) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut created = 0;
        loop {
            let next = objects.lock().ok().and_then(|mut objects| objects.next());
            let Some((path, object)) = next else { break };
            let request = Request::post(&path)
                .header(header::HOST, address.to_string())
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(object.to_string())))?;
            sender.ready().await?;
            let answer = sender.send_request(request).await.with_context(|| format!("no answer to POST {path}"))?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            if !status.is_success() {
                bail!("POST {path} was answered {status}: {}", String::from_utf8_lossy(&body));
            }
            created += 1;
        }
        drop(sender);
        connection.await??;
        Ok(created)
    })
}
