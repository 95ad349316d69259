//! Which backend and endpoint a request goes to.

use std::sync::atomic::Ordering;

use weft_policy::{
    endpoints::EndpointSet,
    names::WorkloadId,
    plan::{AppProtocol, PodPlan, PodPort},
};

use crate::{
    mesh::{Mesh, cell, endpoint, plan, service, split, until, vip},
    origin::{Named, Origin, refusing},
    wire::Wire,
};

#[tokio::test]
async fn split_is_made_per_request_on_one_connection() {
    let (mesh, v1, v2) = (Mesh::start(), Named::start("v1").await, Named::start("v2").await);
    let (one, two) = (cell(&[v1.address]), cell(&[v2.address]));
    mesh.serve(vip(1), plan(AppProtocol::Http, split("canary", &[("v1", 90, &one), ("v2", 10, &two)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut counts = [0, 0];
    for _ in 0..1000 {
        let answer = client.get("/").await;
        counts[usize::from(answer.text() == "v2")] += 1;
    }
    assert_eq!(counts, [900, 100]);
    for (backend, count) in [("v1", 900.0), ("v2", 100.0)] {
        mesh.metric_becomes("weft_requests_total", &[("backend", backend), ("status_class", "2xx")], count).await;
        mesh.metric_becomes("weft_request_duration_seconds", &[("backend", backend)], count).await;
    }
}

#[tokio::test]
async fn changed_plan_holds_from_the_next_request_of_a_live_connection() {
    let (mesh, v1, v2) = (Mesh::start(), Named::start("v1").await, Named::start("v2").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[v1.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(client.get("/").await.text(), "v1");
    mesh.serve(vip(1), service(AppProtocol::Http, &[v2.address]));
    assert_eq!(client.get("/").await.text(), "v2");
    mesh.publish(|snapshot| _ = snapshot.addresses.remove(&vip(1)));
    let answer = client.get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "destination_gone"));
    mesh.serve(vip(1), service(AppProtocol::Http, &[v1.address]));
    assert_eq!(client.get("/").await.text(), "v1");
}

#[tokio::test]
async fn endpoint_that_leaves_gets_no_more_requests() {
    let (mesh, v1, v2) = (Mesh::start(), Named::start("v1").await, Named::start("v2").await);
    let web = cell(&[v1.address]);
    mesh.serve(vip(1), plan(AppProtocol::Http, split("web", &[("web", 1, &web)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(client.get("/").await.text(), "v1");
    web.store(EndpointSet {
        ready: Box::new([endpoint(v2.address)]),
        draining: Box::new([endpoint(v1.address)]),
        ..EndpointSet::default()
    });
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "v2");
    }
    assert_eq!(v1.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn pooled_connection_to_an_endpoint_that_left_is_dropped() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    let web = cell(&[origin.address]);
    mesh.serve(vip(1), plan(AppProtocol::Http, split("web", &[("web", 1, &web)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    client.answer().await;
    web.store(EndpointSet::default());
    server.ended().await;
}

#[tokio::test]
async fn endpoint_that_refuses_costs_no_request() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Http, &[dead, web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for n in 0..20 {
        let body = format!("body {n}");
        let answer =
            client.ask(format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        assert_eq!((answer.head.status(), answer.text()), (200, body.as_str()));
    }
    assert!(mesh.metric("weft_dials_total", &[("result", "refused")]) >= 1.0);
}

#[tokio::test]
async fn socket_that_cannot_be_had_is_passed_over_too() {
    let (mesh, web, other) = (Mesh::start(), Named::start("v1").await, Named::start("v2").await);
    mesh.capture.no_socket.lock().unwrap().insert(other.address);
    mesh.serve(vip(1), service(AppProtocol::Http, &[other.address, web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..6 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
}

#[tokio::test]
async fn pooled_connection_that_the_server_closed_is_no_error() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for n in 0..20 {
        let body = format!("body {n}");
        client.send(format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        let mut server = origin.accept().await;
        server.head().await;
        assert_eq!(server.exactly(body.len()).await, body.as_bytes());
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.answer().await.text(), "ok");
        // Without a word; the mesh may not have seen it when the next request comes.
        drop(server);
    }
}

#[tokio::test]
async fn backend_without_endpoints_gives_its_share_to_the_others() {
    let (mesh, v1) = (Mesh::start(), Named::start("v1").await);
    let (one, two) = (cell(&[v1.address]), cell(&[]));
    mesh.serve(vip(1), plan(AppProtocol::Http, split("canary", &[("v1", 50, &one), ("v2", 50, &two)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    assert_eq!(mesh.metric("weft_split_skipped_total", &[]), 10.0);
}

#[tokio::test]
async fn headless_service_is_routed_by_host_and_a_pod_by_its_address() {
    let (mesh, pod, canary) = (Mesh::start(), Named::start("pod").await, Named::start("canary").await);
    let headless = plan(AppProtocol::Http, split("web", &[("canary", 1, &cell(&[canary.address]))]));
    let port = PodPort { target_port: pod.address.port(), protocol: AppProtocol::Http, headless: Some(headless) };
    let workload = WorkloadId::new("uid-web-0");
    mesh.serve_pod(PodPlan { workload, node: None, address: pod.address.ip(), ports: Box::new([port]) });
    let mut client = Wire::new(mesh.connect(pod.address).await);
    for (host, who) in [
        ("web", "canary"),
        ("web.shop.svc.cluster.local:80", "canary"),
        ("web-0.web.shop", "pod"),
        ("127.0.0.1", "pod"),
    ] {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.text(), who, "{host}");
    }
}

#[tokio::test]
async fn captured_endpoint_on_this_node_needs_the_inbound_step() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    let workload = WorkloadId::new("uid-web-1");
    let mut ready = endpoint(web.address);
    ready.workload = Some(workload.clone());
    let cell = cell(&[]);
    cell.store(EndpointSet { ready: Box::new([ready]), ..EndpointSet::default() });
    mesh.capture.captured.lock().unwrap().insert(workload.clone());
    mesh.serve(vip(1), plan(AppProtocol::Http, split("web", &[("web", 1, &cell)])));
    mesh.serve(vip(2), plan(AppProtocol::Tcp, split("web", &[("web", 1, &cell)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answer = client.get("/").await;
    assert_eq!(
        (answer.head.status(), answer.head.reason()),
        (403, "denied"),
        "a captured workload without a plan takes nothing"
    );
    mesh.connect_and_be_reset(vip(2)).await;
    mesh.allow_inbound(&workload);
    assert_eq!(client.get("/").await.text(), "v1");
    // And again for a connection from the pool.
    mesh.publish(|snapshot| _ = snapshot.inbound.remove(&workload));
    assert_eq!(client.get("/").await.head.reason(), "denied");
}

#[tokio::test]
async fn address_of_another_pod_is_never_served_by_an_old_connection() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    let web_cell = cell(&[web.address]);
    mesh.serve(vip(1), plan(AppProtocol::Http, split("web", &[("web", 1, &web_cell)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for (uid, connections) in [("uid-a", 1), ("uid-a", 1), ("uid-b", 2)] {
        let mut ready = endpoint(web.address);
        ready.workload = Some(WorkloadId::new(uid));
        web_cell.store(EndpointSet { ready: Box::new([ready]), ..EndpointSet::default() });
        client.get("/").await;
        until("server saw the connection", || web.connections.load(Ordering::SeqCst) == connections).await;
    }
}

#[tokio::test]
async fn all_workers_serve_all_pods() {
    let config = weft_proxy::config::ProxyConfig { workers: Some(3), ..Default::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    assert_eq!(mesh.proxy().workers(), 3);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut clients = Vec::new();
    let mut seen = std::collections::HashSet::new();
    // Who accepts is the kernel's choice; every one of them must come up in time.
    while seen.len() < 3 {
        assert!(clients.len() < 500, "only workers {seen:?} accepted of {} connections", clients.len());
        let batch: Vec<_> = futures_of(&mesh, 10).await;
        for mut client in batch {
            assert_eq!(client.get("/").await.text(), "v1");
            clients.push(client);
        }
        seen = mesh.proxy().flows(1000).await.into_iter().map(|row| row.worker).collect();
    }
    assert_eq!(mesh.proxy().flows(1000).await.len(), clients.len());
}

async fn futures_of(mesh: &Mesh, count: usize) -> Vec<Wire> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Wire::new(mesh.connect(vip(1)).await));
    }
    clients
}
