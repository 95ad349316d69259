//! Lets each captured pod prove that it takes mutual TLS before other nodes are told so: the agent comes to it as another node's would,
//! and what must answer is the agent itself, with the pod's own certificate. The application hears nothing of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use weft_abi::ports;
use weft_crds::weft::node_workloads::PublishedPod;
use weft_identity::{Alpn, Credential, Credentials as _, refusal, tls};

use crate::{capture::CaptureSockets, identity::Store, limits, readiness::Readiness};

/// Proves pods as they come, and tries those again that failed, until it is aborted.
pub async fn run(readiness: Arc<Readiness>, sockets: Arc<CaptureSockets>, store: Arc<Store>) {
    let mut certificates = store.changed();
    loop {
        let mut failed = false;
        for pod in readiness.unproved() {
            let Some(credential) = store.of(&pod.account) else { continue };
            let outcome = prove(&pod, &credential, &sockets).await;
            failed |= outcome.is_err();
            let reason = outcome.as_ref().err().cloned();
            if readiness.proved(&pod, outcome)
                && let Some(reason) = reason
            {
                tracing::warn!(
                    namespace = %pod.account.namespace, pod = %pod.name, reason,
                    "pod does not take mutual TLS, so other nodes are not told that it does"
                );
            }
        }
        let again = if failed { limits::PROVE_AGAIN } else { Duration::MAX };
        tokio::select! {
            () = readiness.news() => {}
            changed = certificates.changed() => if changed.is_err() { return },
            () = sleep(again) => {}
        }
    }
}

/// One handshake, at each of the pod's addresses.
async fn prove(pod: &PublishedPod, credential: &Arc<Credential>, sockets: &CaptureSockets) -> Result<(), String> {
    for ip in &pod.ips {
        // A port at which no application listens; the agent takes all of them.
        let to = SocketAddr::new(*ip, ports::LISTENER_INBOUND);
        let attempt = handshake(to, credential, sockets);
        timeout(limits::PROVE_TIMEOUT, attempt)
            .await
            .unwrap_or_else(|_| Err("it did not answer in time".to_owned()))
            .map_err(|reason| format!("at {ip}: {reason}"))?;
    }
    Ok(())
}

async fn handshake(to: SocketAddr, credential: &Arc<Credential>, sockets: &CaptureSockets) -> Result<(), String> {
    let socket = sockets.probe(to).map_err(|error| format!("no socket: {error}"))?;
    let stream = connect(socket, to).await.map_err(|error| format!("cannot connect: {error}"))?;
    // Requests, and then none: nothing is said to the application.
    let connector = TlsConnector::from(credential.client_config(credential.id(), Alpn::H2));
    let stream = connector.connect(tls::server_name(), stream).await.map_err(|error| refusal(&error).to_string())?;
    tls::finished(stream.get_ref().1).map(drop).map_err(|refusal| refusal.to_string())
}

async fn connect(socket: socket2::Socket, to: SocketAddr) -> std::io::Result<TcpStream> {
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await
}
