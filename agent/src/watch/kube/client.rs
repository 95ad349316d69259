//! The connection to the API server.

use std::{sync::Arc, time::Duration};

use hyper_rustls::{DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt},
};
use rustls::pki_types::ServerName;
use tower::ServiceBuilder;

use super::KubeError;
use crate::limits;

/// What is offered in TLS (RFC 7301). With HTTP/2 all watches of an agent share one connection, as client-go's do.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A client whose connections notice when the other side is gone. kube's own asks nothing of the other side, so a watch through a network
/// that drops packets would look alive for minutes; and it logs each failure as an error of its own.
///
/// A connection without a sign of life for `lost_after` is closed. The kernel asks the kernel of the other side, and HTTP/2 the API server
/// itself: a load balancer in between answers for itself even when what is behind it has gone.
pub(super) fn build(config: Config, lost_after: Duration) -> Result<Client, KubeError> {
    let url = config.cluster_url.to_string();
    let cannot = |source: kube::Error| KubeError::Client { url: url.clone(), source: Box::new(source) };
    let step = lost_after / limits::KUBE_SIGNS_ASKED_FOR;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(limits::KUBE_CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(step));
    tcp.set_keepalive_interval(Some(step));
    tcp.set_keepalive_retries(Some(limits::KUBE_SIGNS_ASKED_FOR - 1));
    // The kernel does not ask while it has something to send again, which it would do for a quarter of an hour.
    tcp.set_tcp_user_timeout(Some(lost_after));
    // Without one, the first use of TLS would panic if another crate ever brought a second provider. Whoever came first has chosen.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut tls = config.rustls_client_config().map_err(cannot)?;
    tls.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    let https = HttpsConnector::new(tcp, tls, false, server_name(&config)?);
    let http: legacy::Client<_, Body> = legacy::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(step * (limits::KUBE_SIGNS_ASKED_FOR - 1))
        .http2_keep_alive_timeout(step)
        .http2_keep_alive_while_idle(true)
        .build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(cannot)?)
        .layer(config.extra_headers_layer().map_err(cannot)?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// The name that the API server's certificate must have: that of its address, or what the kubeconfig file says (`tls-server-name`).
fn server_name(config: &Config) -> Result<Arc<dyn ResolveServerName + Send + Sync>, KubeError> {
    let Some(name) = &config.tls_server_name else { return Ok(Arc::new(DefaultServerNameResolver::default())) };
    match ServerName::try_from(name.clone()) {
        Ok(name) => Ok(Arc::new(FixedServerNameResolver::new(name))),
        Err(_) => Err(KubeError::ServerName { name: name.clone() }),
    }
}
