//! Two data paths, as of two nodes: a client pod on one, a server pod on the other, and certificates of one authority.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{net::TcpStream, sync::mpsc};
use weft_identity::{
    Credentials as _,
    testing::{FixedCredentials, TestAuthority},
};
use weft_policy::{
    endpoints::{EndpointCell, EndpointSet},
    inbound::InboundPlan,
    names::{ServiceAccountKey, WorkloadId},
    peer::Peer,
    plan::AppProtocol,
};
use weft_proxy::{config::ProxyConfig, socket::PodListeners};

use crate::{
    mesh::{Mesh, endpoint, local_pod, plan, shared_listener, soon, split, vip},
    origin::Named,
    wire::Wire,
};

/// The pod that is asked: `shop/web-1`, service account `web-1`. The client's account is `shop/client-1`.
pub(crate) struct Nodes {
    pub(crate) authority: TestAuthority,
    pub(crate) client_credentials: Arc<FixedCredentials>,
    pub(crate) server_credentials: Arc<FixedCredentials>,
    pub(crate) client: Mesh,
    pub(crate) server: Mesh,
    /// The server pod's address.
    pub(crate) address: SocketAddr,
    connections: Option<mpsc::UnboundedReceiver<std::net::TcpStream>>,
}

impl Nodes {
    /// With a Service that speaks `protocol` at [`vip`] 1, whose only endpoint is the server pod; it takes everything.
    pub(crate) fn new(protocol: AppProtocol) -> Self {
        Self::with(protocol, &ProxyConfig::default())
    }

    pub(crate) fn with(protocol: AppProtocol, config: &ProxyConfig) -> Self {
        let authority = TestAuthority::new("cluster.local");
        let client_credentials = authority.credentials(&["shop/client-1"]);
        let server_credentials = authority.credentials(&["shop/web-1"]);
        let client = Mesh::secured(config, Some(client_credentials.clone()));
        // Listeners that applications have for a moment are one worker's.
        let server =
            Mesh::secured(&ProxyConfig { workers: Some(1), ..config.clone() }, Some(server_credentials.clone()));
        let (given, connections) = mpsc::unbounded_channel();
        *server.capture.applications.lock().unwrap() = Some(given);
        server.capture.tls_ports.store(true, Ordering::SeqCst);
        let pod = local_pod("web-1");
        server.allow_inbound(&pod.id);
        server.capture.captured.lock().unwrap().insert(pod.id.clone());
        // On every address, so that none is the listener's own.
        let listener = shared_listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port())));
        let address = SocketAddr::from(([127, 0, 0, 7], listener.local_addr().unwrap().port()));
        server.proxy().add_pod(PodListeners { pod, outbound: Vec::new(), inbound: vec![listener] });
        let mut ready = endpoint(address);
        ready.workload = Some(web());
        let cell =
            Arc::new(EndpointCell::new(EndpointSet { ready: Box::new([ready]), protocol, ..EndpointSet::default() }));
        client.serve(vip(1), plan(protocol, split("web", &[("web", 1, &cell)])));
        let nodes = Self {
            authority,
            client_credentials,
            server_credentials,
            client,
            server,
            address,
            connections: Some(connections),
        };
        nodes.publish("web-1");
        nodes
    }

    /// Says that the server pod takes mutual TLS, as a service account.
    pub(crate) fn publish(&self, account: &str) {
        let peer = Peer {
            workload: web(),
            account: ServiceAccountKey::new("shop", account),
            node: "node-b".into(),
            addresses: Box::new([self.address.ip()]),
            namespace: "shop".into(),
            name: "web-1".into(),
        };
        self.client.publish(|snapshot| _ = snapshot.peers.insert(web(), Arc::new(peer)));
    }

    /// What the server pod takes.
    pub(crate) fn allow(&self, plan: InboundPlan) {
        self.server.publish(|snapshot| _ = snapshot.inbound.insert(web(), Arc::new(plan)));
    }

    /// A server of HTTP/1.1 in the server pod.
    pub(crate) fn application(&mut self) -> Named {
        Named::given("v1", self.connections.take().unwrap())
    }

    /// The next connection that the application gets.
    pub(crate) async fn accept(&mut self) -> Wire {
        let stream = soon(self.connections.as_mut().unwrap().recv()).await.unwrap();
        stream.set_nonblocking(true).unwrap();
        Wire::new(TcpStream::from_std(stream).unwrap())
    }

    /// Whether the application has got none.
    pub(crate) fn nothing_arrived(&mut self) -> bool {
        self.connections.as_mut().unwrap().try_recv().is_err()
    }

    /// A connection of the client pod to the Service.
    pub(crate) async fn connect(&self) -> Wire {
        Wire::new(self.client.connect(vip(1)).await)
    }

    /// Gives the client another certificate.
    pub(crate) fn renew_client(&self) {
        let before = self.client_credentials.of(&ServiceAccountKey::new("shop", "client-1")).unwrap().epoch();
        let renewed = self.authority.credential("shop", "client-1");
        assert_ne!(renewed.epoch(), before);
        self.client_credentials.put(&renewed);
    }
}

/// A port below those that the kernel gives out, and no other test's: it would give one that is to be shared to several.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::SeqCst);
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// The server pod.
pub(crate) fn web() -> WorkloadId {
    WorkloadId::new("uid-web-1")
}
