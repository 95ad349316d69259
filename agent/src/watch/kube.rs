//! A Kubernetes API server as the source of truth: one watch for each kind, merged into atomic changes.
//!
//! What is known stays in force while the API server is away or answers nonsense. A list replaces all objects of its kind in one change,
//! so a deletion that nobody saw is applied, and nothing that is the same is touched.

use std::{path::Path, sync::Arc, time::Duration};

use kube::{
    Client,
    config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::sync::mpsc;
use weft_crds::object::{Kind, Object, ObjectKey};

use super::Change;
use crate::limits;

mod backoff;
mod client;
mod discovery;
pub mod health;
pub mod inventory;
pub mod ledger;
mod merge;
mod reflect;
pub(crate) mod wire;

use discovery::Discovery;
use health::Sources;
use ledger::Note;
use merge::Merge;

/// Why an API server cannot be a source at all. One that does not answer is no such reason: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The kubeconfig file.
    #[error("cannot use the kubeconfig file {path}")]
    Kubeconfig {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No file, and no cluster around this process.
    #[error("not in a pod of a cluster: give --manifests DIR or --kubeconfig FILE")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// Certificates or credentials.
    #[error("cannot make a client for {url}")]
    Client {
        /// The API server.
        url: String,
        /// What is wrong.
        #[source]
        source: Box<kube::Error>,
    },
    /// What the kubeconfig file says of the certificate.
    #[error("tls-server-name: {name:?} is no name that a certificate can have")]
    ServerName {
        /// The name.
        name: String,
    },
}

/// What a watch has to say.
#[derive(Debug)]
enum Batch {
    /// Every object of the kind, in place of what was known.
    Replace(Kind, Vec<Seen>),
    /// One object.
    Apply(Kind, Box<Seen>),
    /// One object is gone.
    Delete(ObjectKey),
}

/// An object as the API server has it.
#[derive(Debug)]
struct Seen {
    /// Trimmed; or why it cannot be used.
    object: Result<Object, weft_crds::parse::ParseError>,
    /// What is noted of it, for kinds that get a status.
    note: Option<Note>,
}

/// A client for the API server that a file names, or for that of the cluster around this process. Its connections are given up after
/// `lost_after` without a sign of life.
///
/// # Errors
/// When the file or the credentials cannot be used. Whether the API server answers is not asked.
pub async fn connect(kubeconfig: Option<&Path>, lost_after: Duration) -> Result<Client, KubeError> {
    let config = match kubeconfig {
        Some(path) => {
            let error = |source| KubeError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(error)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)?
        }
        None => Config::incluster().map_err(|error| KubeError::InCluster(Box::new(error)))?,
    };
    client::build(config, lost_after)
}

/// The objects of a cluster, as far as they concern one node.
#[derive(Debug)]
pub struct Cluster {
    merge: Merge,
}

impl Cluster {
    /// Begins to watch. `node` is the one whose pods are of interest.
    #[must_use]
    pub fn watch(client: &Client, node: &str, sources: &Arc<Sources>) -> Self {
        let (batches, receiver) = mpsc::channel(limits::KUBE_QUEUE_MAX);
        let discovery = Discovery::new(client.clone(), node, Arc::clone(sources), batches);
        tokio::spawn(discovery.run());
        Self { merge: Merge::new(receiver, Arc::clone(sources)) }
    }

    /// Everything there is, once every kind was listed; waits for the API server for as long as it takes. `None`: the watches have
    /// ended, which they do not by themselves.
    pub async fn first(&mut self) -> Option<Change> {
        self.merge.first().await
    }

    /// Hands over every further change, until the receiver is gone.
    pub async fn follow(mut self, changes: mpsc::Sender<Change>) {
        while let Some(change) = self.merge.next().await {
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
