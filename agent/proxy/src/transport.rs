//! How an endpoint is reached: as it is, by mutual TLS through its node's agent, or as the application itself.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_identity::Credential;
use weft_policy::{
    endpoints::Endpoint,
    names::{ObjectRef, ServiceAccountKey},
    peer::Peer,
};

use crate::{
    reply::{LocalReply, Reason},
    socket::{Dial, LocalPod},
    worker::Worker,
};

/// How an endpoint is reached.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// In the clear. `captured`: it is a pod of this node, whose inbound step is taken in this process.
    Plain { captured: bool },
    /// By mutual TLS, to the agent of the pod's node.
    Mutual { peer: Arc<Peer>, credential: Arc<Credential> },
    /// The application of a pod of this node, for a client on another one.
    Application { client: SocketAddr },
}

/// What tells connections apart that one may not be used for what the other one was made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TransportKey {
    Plain,
    Mutual { account: ServiceAccountKey, epoch: u64 },
    Application { client: IpAddr },
}

/// Between whom, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// By mutual TLS.
    MutualTls,
    /// Not at all.
    None,
    /// It never leaves the node, and both ends are known.
    SameNode,
}

impl Encryption {
    /// The word for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::SameNode => "same_node",
        }
    }
}

impl Transport {
    /// The dial for it. Only a pod whose inbound step was taken is to let it through.
    pub(crate) fn dial<'a>(&self, pod: &'a LocalPod, endpoint: &'a Endpoint) -> Dial<'a> {
        let to = endpoint.address;
        match self {
            Self::Plain { captured } => Dial::Outbound {
                source: pod,
                to,
                to_workload: endpoint.workload.as_ref().filter(|_| *captured),
                tls: false,
            },
            Self::Mutual { .. } => Dial::Outbound { source: pod, to, to_workload: None, tls: true },
            Self::Application { client } => Dial::Inbound { pod, client: *client, to },
        }
    }

    pub(crate) fn key(&self) -> TransportKey {
        match self {
            Self::Plain { .. } => TransportKey::Plain,
            Self::Mutual { peer, credential } => {
                TransportKey::Mutual { account: peer.account.clone(), epoch: credential.epoch() }
            }
            Self::Application { client } => TransportKey::Application { client: client.ip() },
        }
    }

    pub(crate) fn is_mutual(&self) -> bool {
        matches!(self, Self::Mutual { .. })
    }

    pub(crate) fn encryption(&self) -> Encryption {
        match self {
            Self::Mutual { .. } => Encryption::MutualTls,
            Self::Plain { captured: false } => Encryption::None,
            Self::Plain { captured: true } | Self::Application { .. } => Encryption::SameNode,
        }
    }
}

impl Worker {
    /// How an endpoint is reached for which this node takes no inbound step. One that is published as taking mutual TLS is never reached
    /// in the clear, and neither is one whose namespace takes nothing else.
    pub(crate) async fn transport(
        &self,
        pod: &LocalPod,
        endpoint: &Endpoint,
        namespace: Option<&str>,
    ) -> Result<Transport, LocalReply> {
        let peer = match self.peer(endpoint, namespace) {
            Ok(Some(peer)) => peer,
            Ok(None) => return Ok(Transport::Plain { captured: false }),
            Err(object) => {
                return Err(LocalReply::new(
                    Reason::MtlsRequired,
                    format_args!(
                        "{object} takes mutual TLS only, and no agent has published that {} does",
                        endpoint.address
                    ),
                ));
            }
        };
        let credential = self.credentials.as_ref().and_then(|credentials| credentials.of(&pod.account));
        let credential = match credential {
            Some(credential) => Some(credential),
            // Boxed, because it is rare and would make every request's future larger.
            None => Box::pin(self.credential(&pod.account)).await,
        };
        match credential {
            Some(credential) => Ok(Transport::Mutual { peer, credential }),
            None => Err(LocalReply::new(
                Reason::NoCertificate,
                format_args!(
                    "{} takes mutual TLS only, and service account {} has no certificate yet",
                    endpoint.address, pod.account
                ),
            )),
        }
    }

    /// The pod behind an endpoint, if its agent takes mutual TLS for it; the object that asks for it, if nobody does.
    fn peer(&self, endpoint: &Endpoint, namespace: Option<&str>) -> Result<Option<Arc<Peer>>, ObjectRef> {
        self.refresh();
        let snapshot = self.snapshot.borrow();
        let address = endpoint.address.ip();
        let of_address = || snapshot.pods.get(&address).map(|pod| &pod.workload);
        let workload = endpoint.workload.as_ref().or_else(of_address);
        if let Some(peer) = workload.and_then(|workload| snapshot.peers.get(workload))
            && peer.addresses.contains(&address)
        {
            return Ok(Some(Arc::clone(peer)));
        }
        match namespace.and_then(|namespace| snapshot.strict.get(namespace)) {
            Some(object) => Err(object.clone()),
            None => Ok(None),
        }
    }
}
