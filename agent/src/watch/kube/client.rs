//! The connection to the API server.

use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt},
};
use tower::ServiceBuilder;

use crate::limits;

/// A client whose connections notice when the other side is gone. kube's own asks nothing of the kernel, so a watch through a network that
/// drops packets would look alive for minutes; and it logs each failure as an error of its own.
pub(super) fn build(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(limits::KUBE_CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(limits::KUBE_KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(limits::KUBE_KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(limits::KUBE_KEEPALIVE_PROBES));
    // Without one, the first use of TLS would panic if another crate ever brought a second provider. Whoever came first has chosen.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http: legacy::Client<_, Body> = legacy::Builder::new(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
