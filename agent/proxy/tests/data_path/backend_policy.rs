//! What a BackendPolicy does to requests.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use http::HeaderName;
use weft_policy::{
    backend_policy::{BackendPolicy, Balance, HashKey},
    endpoints::{EndpointCell, EndpointSet},
    plan::AppProtocol,
};

use crate::{
    mesh::{Mesh, endpoint, plan, split, vip},
    origin::Named,
    wire::Wire,
};

fn cell_with(policy: BackendPolicy, addresses: &[SocketAddr]) -> Arc<EndpointCell> {
    let mut ready: Vec<_> = addresses.iter().copied().map(endpoint).collect();
    ready.sort();
    Arc::new(EndpointCell::new(EndpointSet { ready: ready.into(), policy: Arc::new(policy), ..EndpointSet::default() }))
}

fn serve(mesh: &Mesh, protocol: AppProtocol, cell: &Arc<EndpointCell>) {
    mesh.serve(vip(1), plan(protocol, split("web", &[("web", 1, cell)])));
}

async fn named(names: [&'static str; 4]) -> Vec<Named> {
    let mut all = Vec::new();
    for name in names {
        all.push(Named::start(name).await);
    }
    all
}

fn addresses(all: &[Named]) -> Vec<SocketAddr> {
    all.iter().map(|one| one.address).collect()
}

/// Also where the port does not say what it speaks, and a connection was made before there was a request to go by.
#[tokio::test]
async fn requests_with_one_key_reach_one_endpoint_on_any_connection() {
    for (balance, protocol) in [(Balance::Maglev, AppProtocol::Http), (Balance::RingHash, AppProtocol::Detect)] {
        let (mesh, servers) = (Mesh::start(), named(["a", "b", "c", "d"]).await);
        let hash_on = vec![HashKey::Header(HeaderName::from_static("x-user"))];
        let policy = BackendPolicy { hash_on, ..BackendPolicy::balanced(balance) };
        serve(&mesh, protocol, &cell_with(policy, &addresses(&servers)));
        let mut used = BTreeSet::new();
        for user in 0..24 {
            let mut reached = BTreeSet::new();
            for _ in 0..3 {
                let mut client = Wire::new(mesh.connect(vip(1)).await);
                for _ in 0..2 {
                    client.send(format!("GET / HTTP/1.1\r\nHost: web\r\nX-User: u{user}\r\n\r\n")).await;
                    reached.insert(client.answer().await.text().to_owned());
                }
            }
            assert_eq!(reached.len(), 1, "{balance:?} u{user}: {reached:?}");
            used.append(&mut reached);
        }
        assert!(used.len() > 2, "{balance:?}: {used:?}");
    }
}
