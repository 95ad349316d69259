//! The authority of the mesh (`weft-agent ca`): it gives agents certificates for the pods of their nodes, and everybody the roots.
//!
//! A call is checked in this order: sizes and rates; the token, by the API server, for our audience ([`callers`]); the agent's own pod and
//! its node; the pod that the certificate is for, by its UID, on that node ([`targets`]); the request's key and names; and then a line in
//! the log for each certificate ([`service`]). The name in a certificate comes from the pod, never from the request.
//!
//! Several replicas serve. Each reads what it signs with from a Secret ([`keeper`]); one of them, the holder of a Lease, makes and
//! rotates keys ([`leader`]). Where cert-manager signs instead ([`cert_manager`], [`trial`]) there are no keys of ours. The roots are
//! published for others, too ([`trust_bundle`]).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use prometheus::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};

use crate::{
    status::Identity,
    watch::kube::{
        self,
        health::{self, Sources},
        inventory::Inventory,
    },
};

mod api;
mod callers;
mod cert_manager;
mod config;
mod keeper;
mod leader;
pub mod limits;
mod metrics;
mod problem;
mod rate;
mod refusal;
mod reports;
mod server;
mod service;
mod stored;
mod targets;
mod trial;
mod trust_bundle;

use api::Api;
use callers::Callers;
use cert_manager::CertManager;
pub use config::CaArgs;
use keeper::{Keeper, Keys};
use leader::{Leader, Office, Pace};
use metrics::CaMetrics;
use reports::Reports;
use service::Service;
use targets::Targets;
use trial::{Proof, Trial};

/// Why the authority cannot run.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The API server, or what names it.
    #[error(transparent)]
    Kube(#[from] kube::KubeError),
    /// A port.
    #[error("cannot listen on {addr}")]
    Port {
        /// Its address.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The life of certificates.
    #[error("--ttl-s")]
    Profile(#[from] weft_identity::authority::ProfileError),
    /// Metrics.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// Threads, signals.
    #[error("the runtime cannot start")]
    Runtime(#[source] io::Error),
}

/// Runs the authority until it is told to stop.
///
/// # Errors
/// When it cannot start. An API server that does not answer is waited for.
pub fn run(args: &CaArgs) -> Result<(), CaError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-ca")
        .enable_all()
        .build()
        .map_err(CaError::Runtime)?;
    runtime.block_on(start(args))
}

async fn start(args: &CaArgs) -> Result<(), CaError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CaError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CaError::Runtime)?;
    let profile = args.profile()?;
    let registry = Registry::new();
    let metrics = CaMetrics::register(&registry)?;
    let listener = server::bind(args.listen).await?;
    let metrics_listener = match args.metrics_addr.0 {
        Some(addr) => Some(server::bind(addr).await?),
        None => None,
    };
    let client = kube::connect(args.kubeconfig.as_deref(), args.api_lost_after()).await?;
    let sources = Arc::<Sources>::default();
    health::register(&registry, &sources)?;
    let inventory = Inventory::watch(&client, &sources);
    let api = Api::new(client.clone(), &args.namespace);
    let reports = Arc::<Reports>::default();
    let pace =
        Pace { propagation: Duration::from_secs(args.propagation_s), takeover: Duration::from_secs(args.takeover_s) };
    let keys = Keys::new(args.trust_domain.clone(), pace.takeover);
    let changed = Arc::<Notify>::default();

    let orders = args.cert_manager_issuer.clone().map(|issuer| {
        let orders = CertManager::new(api.clone(), issuer, args.owner(), metrics.clone());
        (orders, Arc::<Proof>::default())
    });
    let office = Office {
        elsewhere: orders.as_ref().map(|(_, proof)| Arc::clone(proof)).zip(args.cert_manager_roots.clone()),
        changed: Arc::clone(&changed),
        trust_domain: args.trust_domain.clone(),
        profile,
        pace,
        agents: args.agents(),
        inventory: Arc::clone(&inventory),
        reports: Arc::clone(&reports),
        metrics: metrics.clone(),
    };
    // A replica that is started again goes on with its Lease.
    let identity = Identity { namespace: args.namespace.clone(), holder: args.replica.clone() };
    let leader = Leader::new(&client, api.clone(), &identity, office);
    let keeper = Keeper {
        api: api.clone(),
        keys: Arc::clone(&keys),
        profile,
        names: args.names(),
        trial: orders.map(|(orders, proof)| Trial::new(orders, proof, args.full_names())),
        changed,
        inventory: Arc::clone(&inventory),
        reports: Arc::clone(&reports),
        replica: args.replica.clone(),
        metrics: metrics.clone(),
    };
    let who = (args.agents(), args.audience.clone());
    let callers = Callers::new(api.clone(), Arc::clone(&inventory), who, reports, metrics.clone());
    let targets = Arc::new(Targets::new(api, Arc::clone(&inventory), args.trust_domain.clone()));
    let service = Service { callers, targets, keys: Arc::clone(&keys), metrics: metrics.clone() };

    let (stop, stopping) = watch::channel(false);
    let serving = tokio::spawn(server::serve_agents(listener, service, Arc::clone(&keys), metrics, stopping));
    let mut tasks = vec![tokio::spawn(keeper.run()), tokio::spawn(leader.run())];
    tasks.extend(
        metrics_listener.map(|listener| tokio::spawn(server::serve_metrics(listener, keys, inventory, registry))),
    );
    tracing::info!(replica = args.replica, listen = %args.listen, trust_domain = %args.trust_domain, pid = std::process::id(), "the authority is running");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    for task in tasks {
        task.abort();
    }
    let _ = serving.await;
    tracing::info!("the authority has stopped");
    Ok(())
}
