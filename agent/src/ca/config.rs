//! Command line of the authority.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use weft_identity::{
    TrustDomain,
    authority::{Profile, rotation},
    limits as identity_limits,
};
use weft_policy::names::ServiceAccountKey;

use super::limits;
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

    /// Names of the authority's own server, as agents may call it.
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

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}
