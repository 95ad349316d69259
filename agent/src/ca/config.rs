//! Command line of the authority.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use weft_identity::{
    TrustDomain,
    authority::{Profile, rotation},
    limits as identity_limits,
};
use weft_policy::names::ServiceAccountKey;

use super::{cert_manager::IssuerRef, limits, stored};
use crate::{config::MetricsAddr, limits as agent_limits, telemetry::LogFormat};

/// Arguments of `ca`.
#[derive(Clone, Debug, Args)]
pub struct CaArgs {
    /// Use the API server that the current context of this file names [default: that of the cluster that this runs in].
    #[arg(long, value_name = "FILE", env = "WEFT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// A connection to the API server without a sign of life for so long counts as lost, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = agent_limits::KUBE_LOST_AFTER_S, value_parser = clap::value_parser!(u64).range(agent_limits::KUBE_LOST_AFTER_S_MIN..=agent_limits::KUBE_LOST_AFTER_S_MAX), env = "WEFT_API_LOST_AFTER_S")]
    pub api_lost_after_s: u64,
    /// Namespace of the authority: where its Secrets, the bundle and the Lease are.
    #[arg(long, value_name = "NAME", default_value = "weft-system", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this replica.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub replica: String,
    /// UID of this replica's pod, which then owns the CertificateRequests that it makes.
    #[arg(long, value_name = "UID", env = "POD_UID")]
    pub replica_uid: Option<String>,
    /// Name of the authority's Service, for which its own certificate is.
    #[arg(long, value_name = "NAME", default_value = "weft-ca", env = "WEFT_CA_SERVICE")]
    pub service: String,
    /// DNS domain of the cluster.
    #[arg(long, value_name = "NAME", default_value = "cluster.local", env = "WEFT_CLUSTER_DOMAIN")]
    pub cluster_domain: String,
    /// Trust domain of all identities: the first part of every SPIFFE ID.
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain, env = "WEFT_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Audience that agents' tokens must be meant for.
    #[arg(long, value_name = "NAME", default_value = "weft-ca", env = "WEFT_CA_AUDIENCE")]
    pub audience: String,
    /// Service account of the agents, in --namespace: nobody else may ask.
    #[arg(long, value_name = "NAME", default_value = "weft", env = "WEFT_AGENT_ACCOUNT")]
    pub agent_account: String,
    /// Address for agents.
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:15012", env = "WEFT_CA_LISTEN")]
    pub listen: SocketAddr,
    /// Address of /metrics, /livez and /readyz, or "none".
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15020", value_parser = crate::config::parse_metrics_addr, env = "WEFT_METRICS_ADDR")]
    pub metrics_addr: MetricsAddr,
    /// Have certificates signed by this issuer of cert-manager, instead of making keys: `ClusterIssuer/mesh`, or with the API group of an
    /// external one, `AWSPCAIssuer.awspca.cert-manager.io/mesh`.
    #[arg(long, value_name = "KIND[.GROUP]/NAME", requires = "cert_manager_roots", env = "WEFT_CERT_MANAGER_ISSUER")]
    pub cert_manager_issuer: Option<IssuerRef>,
    /// ConfigMap, in --namespace, with the roots that the issuer's certificates lead to, as PEM; and its key if it is not ca.crt.
    #[arg(long, value_name = "NAME[/KEY]", value_parser = roots, requires = "cert_manager_issuer", env = "WEFT_CERT_MANAGER_ROOTS")]
    pub cert_manager_roots: Option<RootsRef>,
    /// Life of a workload's certificate, seconds. It is renewed after half of it.
    #[arg(long, value_name = "SECONDS", default_value_t = identity_limits::TTL_DEFAULT.as_secs(), env = "WEFT_CERTIFICATE_TTL_S")]
    pub ttl_s: u64,
    /// Take any --ttl-s: for tests that watch certificates end.
    #[arg(long, hide = true)]
    pub any_ttl: bool,
    /// From the publication of a new root until it is used, seconds: how long a mounted ConfigMap may be behind.
    #[arg(long, hide = true, default_value_t = rotation::PROPAGATION.as_secs())]
    pub propagation_s: u64,
    /// From a new issuer until nobody signs with the one before, seconds.
    #[arg(long, hide = true, default_value_t = limits::ISSUER_TAKEN_UP.as_secs())]
    pub takeover_s: u64,
    /// How log lines look. Levels are set by WEFT_LOG.
    #[arg(long, value_enum, default_value_t, env = "WEFT_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Where the roots are that a user says are to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootsRef {
    /// The ConfigMap.
    pub name: String,
    /// Its key.
    pub key: String,
}

impl CaArgs {
    /// After how long a connection to the API server without a sign of life counts as lost.
    pub(super) fn api_lost_after(&self) -> Duration {
        Duration::from_secs(self.api_lost_after_s)
    }

    /// What certificates look like.
    pub(super) fn profile(&self) -> Result<Profile, super::CaError> {
        let ttl = Duration::from_secs(self.ttl_s);
        if self.any_ttl { Ok(Profile::unchecked(ttl)) } else { Ok(Profile::new(ttl)?) }
    }

    /// Who may ask.
    pub(super) fn agents(&self) -> ServiceAccountKey {
        ServiceAccountKey::new(&self.namespace, &self.agent_account)
    }

    /// The replica's pod, if its UID is known.
    pub(super) fn owner(&self) -> Option<(String, String)> {
        let uid = self.replica_uid.as_ref().filter(|uid| !uid.is_empty())?;
        Some((self.replica.clone(), uid.clone()))
    }

    /// Names of the authority's own server that name its namespace too: what another signer is asked for.
    pub(super) fn full_names(&self) -> Vec<String> {
        self.names().into_iter().take(2).collect()
    }

    /// Names of the authority's own server, as agents may call it. The full ones come first.
    pub(super) fn names(&self) -> Vec<String> {
        let Self { service, namespace, cluster_domain, .. } = self;
        vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.{cluster_domain}"),
            format!("{service}.{namespace}"),
            service.clone(),
        ]
    }
}

fn roots(text: &str) -> Result<RootsRef, String> {
    let (name, key) = text.split_once('/').unwrap_or((text, stored::ROOTS));
    if name == stored::BUNDLE {
        return Err(format!("{name} is what weft publishes; name the ConfigMap that says what it is to publish"));
    }
    let is_name = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            && !text.starts_with('.')
    };
    if !is_name(name) || !is_name(key) {
        return Err(format!("{text:?} is no ConfigMap: expected NAME or NAME/KEY"));
    }
    Ok(RootsRef { name: name.to_owned(), key: key.to_owned() })
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_in_a_configmap_that_is_not_our_own() {
        let of = |name: &str, key: &str| RootsRef { name: name.to_owned(), key: key.to_owned() };
        assert_eq!(roots("mesh-roots"), Ok(of("mesh-roots", "ca.crt")));
        assert_eq!(roots("mesh-roots/root.pem"), Ok(of("mesh-roots", "root.pem")));
        for wrong in ["", "/", "a/", "/b", "a/b/c", "../secrets/x", "a b", "weft-trust-bundle"] {
            assert!(roots(wrong).is_err(), "{wrong:?}");
        }
    }
}
