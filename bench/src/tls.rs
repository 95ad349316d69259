//! Two Envoys with HTTP/2 and mutual TLS between them: certificates as weft's authority gives them, TLS 1.3, and the other side's identity
//! checked on both ends.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};
use weft_identity::{
    TrustDomain,
    authority::{Profile, Root},
    bundle,
    key::PrivateKey,
};
use weft_policy::names::ServiceAccountKey;

use crate::peer::{PORT, envoy_cluster, envoy_config, envoy_listener, envoy_split};

/// Ports on which the far Envoy listens, one for each backend.
pub const PORTS: [u16; 2] = [18_001, 18_002];
const TRUST_DOMAIN: &str = "bench.test";

/// Writes the configuration of the near and of the far Envoy, with keys and certificates, to `dir`.
///
/// # Errors
/// When nothing can be signed or written.
pub fn write(dir: &Path, far: Ipv4Addr, backends: [SocketAddr; 2]) -> Result<[PathBuf; 2]> {
    let now = SystemTime::now();
    let root = Root::generate(now).context("cannot make a root")?;
    let issuer = root.issuer(now).context("cannot make an issuer")?;
    let roots = file(dir, "envoy-roots.pem", &root.certificate_pem())?;
    let domain = TrustDomain::new(TRUST_DOMAIN)?;
    let mut contexts = Vec::new();
    for (own, other) in [("near", "far"), ("far", "near")] {
        let id = |name: &str| domain.account(&ServiceAccountKey::new("bench", name));
        let key = PrivateKey::generate()?;
        let chain = issuer.sign(&id(own)?, &key.public(), &Profile::default(), now).context("cannot sign")?;
        let chain = file(dir, &format!("envoy-{own}.pem"), &bundle::to_pem(&chain))?;
        let key = file(dir, &format!("envoy-{own}.key"), &key.to_pem())?;
        contexts.push(format!(
            "common_tls_context: {{ tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}, \
             alpn_protocols: [h2], \
             tls_certificates: [{{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }}], \
             validation_context: {{ trusted_ca: {{ filename: {} }}, match_typed_subject_alt_names: \
             [{{ san_type: URI, matcher: {{ exact: \"{}\" }} }}] }} }}",
            chain.display(),
            key.display(),
            roots.display(),
            id(other)?
        ));
    }
    let http2 = "    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
";
    let upstream = format!(
        "{http2}    transport_socket:
      name: tls
      typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {} }}
",
        contexts[0]
    );
    let downstream = format!(
        "      transport_socket:
        name: tls
        typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         require_client_certificate: true, {} }}
",
        contexts[1]
    );
    let (mut near, mut listeners, mut clusters) = (String::new(), String::new(), String::new());
    for ((name, port), backend) in ["a", "b"].into_iter().zip(PORTS).zip(backends) {
        near.push_str(&envoy_cluster(name, SocketAddr::new(IpAddr::V4(far), port), &upstream));
        listeners.push_str(&envoy_listener(name, port, "HTTP2", &format!("cluster: {name}"), &downstream));
        clusters.push_str(&envoy_cluster(name, backend, ""));
    }
    let outbound = envoy_listener("outbound", PORT, "HTTP1", &envoy_split(), "");
    Ok([
        file(dir, "envoy-near.yaml", &envoy_config(&outbound, &near))?,
        file(dir, "envoy-far.yaml", &envoy_config(&listeners, &clusters))?,
    ])
}

fn file(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
