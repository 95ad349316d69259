//! The authority's ports: gRPC over TLS 1.3 for agents, and `/metrics`, `/livez`, `/readyz`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{Request, StatusCode};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;
use weft_identity::wire::authority_server::AuthorityServer;

use super::{keeper::Keys, limits, metrics::CaMetrics, service::Service};
use crate::{
    admin::http::{Reply, reply, serve, slots, text},
    watch::kube::inventory::Inventory,
};

/// Serves agents until `stopping` says so; then open calls may finish for a while.
pub(super) async fn serve_agents(
    listener: TcpListener,
    service: Service,
    keys: Arc<Keys>,
    metrics: CaMetrics,
    mut stopping: watch::Receiver<bool>,
) {
    let service = AuthorityServer::new(service).max_decoding_message_size(limits::MESSAGE_MAX);
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let stopped = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = until(&mut stopping) => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            metrics.handshakes.with_label_values(&["connections_max"]).inc();
            continue;
        };
        let (service, keys, metrics, stopped) = (service.clone(), Arc::clone(&keys), metrics.clone(), stopped.clone());
        tokio::spawn(async move {
            metrics.connections.inc();
            if let Err(reason) = connection(stream, service, &keys, stopped).await {
                metrics.handshakes.with_label_values(&[reason]).inc();
            }
            metrics.connections.dec();
            drop(slot);
        });
    }
    let all = u32::try_from(limits::CONNECTIONS_MAX).unwrap_or(u32::MAX);
    // Whoever is left then is cut off: it comes to another replica.
    let _ = timeout(limits::STOP_TIMEOUT, slots.acquire_many(all)).await;
}

/// One connection, from the handshake to its end.
async fn connection(
    stream: TcpStream,
    service: AuthorityServer<Service>,
    keys: &Keys,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), &'static str> {
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(keys.server().ok_or("not_ready")?);
    let stream = match timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Err(_) => return Err("timeout"),
        Ok(Err(_)) => return Err("tls"),
        Ok(Ok(stream)) => stream,
    };
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("alpn");
    }
    let service = service_fn(move |request: Request<Incoming>| service.clone().call(request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_MAX)
        .keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // How a connection ends is the agent's affair.
        _ = connection.as_mut() => {}
        () = until(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(limits::STOP_TIMEOUT, connection).await;
        }
    }
    Ok(())
}

/// Waits until it is said that the authority stops.
async fn until(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Serves the metrics port until the task is dropped.
pub(super) async fn serve_metrics(
    listener: TcpListener,
    keys: Arc<Keys>,
    inventory: Arc<Inventory>,
    registry: Registry,
) {
    let slots = slots();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            continue;
        };
        let (keys, inventory, registry) = (Arc::clone(&keys), Arc::clone(&inventory), registry.clone());
        serve(stream, &slots, move |request| {
            let reply = answer(&request, &keys, &inventory, &registry);
            async move { reply }
        });
    }
}

fn answer(request: &Request<Incoming>, keys: &Keys, inventory: &Inventory, registry: &Registry) -> Reply {
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" if !inventory.is_listed() => text(StatusCode::SERVICE_UNAVAILABLE, "pods are not listed yet\n"),
        "/readyz" => match keys.is_ready() {
            true => text(StatusCode::OK, "ok\n"),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "there is no key that is known to be in force\n"),
        },
        "/metrics" => {
            let mut body = Vec::new();
            match TextEncoder::new().encode(&registry.gather(), &mut body) {
                Ok(()) => reply(StatusCode::OK, prometheus::TEXT_FORMAT, body.into()),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Opens a port.
///
/// # Errors
/// When it is in use or not this machine's.
pub(super) async fn bind(addr: SocketAddr) -> Result<TcpListener, super::CaError> {
    let bound = match TcpListener::bind(addr).await {
        // A kernel without IPv6: "any address" is meant all the same.
        Err(error)
            if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| super::CaError::Port { addr, source })
}
