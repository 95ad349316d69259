//! gRPC calls, as `h2` peers make them: statuses in trailers, streams both ways, ends that are seen at once.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use weft_policy::plan::AppProtocol;

use crate::{
    mesh::{Mesh, service, vip},
    origin::{Origin, refusing},
    peers2::{self, Client, Server},
};

fn call(path: &str) -> Request<()> {
    Request::post(format!("http://web{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .header("grpc-timeout", "60S")
        .body(())
        .unwrap()
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from_static(status));
    fields.insert("grpc-message", HeaderValue::from_static("said%20so"));
    fields
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc+proto").body(()).unwrap()
}

async fn pair() -> (Mesh, Client, Origin) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http2, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    (mesh, client, origin)
}

#[tokio::test]
async fn status_in_trailers_goes_through_and_is_counted() {
    let (mesh, client, origin) = pair().await;
    let mut server: Option<Server> = None;
    for (status, class) in [("0", "2xx"), ("5", "4xx"), ("14", "5xx")] {
        let (response, mut stream) = client.begin(call("/shop.Cart/Add"), false).await;
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x03abc"), true).unwrap();
        if server.is_none() {
            server = Some(Server::over(origin.accept().await, &h2::server::Builder::new()).await);
        }
        let server = server.as_mut().unwrap();
        let (request, mut respond) = server.call().await;
        let fields = request.headers();
        assert_eq!(fields["te"], "trailers");
        // What is left of the time that the client gives.
        let left: u64 = fields["grpc-timeout"].to_str().unwrap().strip_suffix('m').unwrap().parse().unwrap();
        assert!(left <= 60_000, "{left}");
        assert_eq!(request.uri().to_string(), "http://web/shop.Cart/Add");
        let mut body = request.into_body();
        assert_eq!(server.during(peers2::read(&mut body)).await.unwrap(), b"\0\0\0\0\x03abc");
        let mut stream = respond.send_response(head(), false).unwrap();
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x02ok"), false).unwrap();
        stream.send_trailers(trailers(status)).unwrap();
        let answer = server.during(peers2::answer(response)).await;
        assert_eq!(answer.body, b"\0\0\0\0\x02ok");
        assert_eq!(answer.trailers.unwrap(), trailers(status));
        mesh.metric_becomes("weft_requests_total", &[("status_class", class)], 1.0).await;
    }
}

#[tokio::test]
async fn response_of_trailers_only_goes_through() {
    let (mesh, client, origin) = pair().await;
    let (response, _) = client.begin(call("/"), true).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = server.call().await;
    let mut only = head();
    only.headers_mut().extend(trailers("12"));
    respond.send_response(only, true).unwrap();
    let response = server.during(response).await.unwrap();
    assert!(response.body().is_end_stream(), "a frame more would make another response of it");
    assert_eq!(response.headers()["grpc-status"], "12");
    drop(response);
    mesh.metric_becomes("weft_requests_total", &[("status_class", "5xx")], 1.0).await;
}

#[tokio::test]
async fn messages_pass_both_ways_while_the_call_goes_on() {
    let (_mesh, client, origin) = pair().await;
    let (response, mut sending) = client.begin(call("/"), false).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (request, mut respond) = server.call().await;
    let mut asked = request.into_body();
    // The response begins before the first message of the request.
    let mut answering = respond.send_response(head(), false).unwrap();
    let mut answered = server.during(response).await.unwrap().into_body();
    for n in 0..5_u8 {
        sending.send_data(Bytes::from(vec![n; 8]), false).unwrap();
        assert_eq!(server.during(peers2::part(&mut asked)).await.unwrap().unwrap(), vec![n; 8]);
        answering.send_data(Bytes::from(vec![n + 100; 8]), false).unwrap();
        assert_eq!(server.during(peers2::part(&mut answered)).await.unwrap().unwrap(), vec![n + 100; 8]);
    }
    sending.send_data(Bytes::new(), true).unwrap();
    assert!(server.during(peers2::part(&mut asked)).await.is_none_or(|part| part.unwrap().is_empty()));
    answering.send_trailers(trailers("0")).unwrap();
    assert!(server.during(peers2::part(&mut answered)).await.is_none());
    assert_eq!(server.during(answered.trailers()).await.unwrap().unwrap(), trailers("0"));
}

#[tokio::test]
async fn cancelled_call_is_cancelled_at_the_server() {
    let (_mesh, client, origin) = pair().await;
    let (response, sending) = client.begin(call("/"), false).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (request, mut respond) = server.call().await;
    let mut answering = respond.send_response(head(), false).unwrap();
    let answered = server.during(response).await.unwrap();
    drop((answered, sending));
    let reason = server.during(std::future::poll_fn(|cx| answering.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
    drop(request);
}

#[tokio::test]
async fn the_mesh_answers_calls_in_their_own_way() {
    let mesh = Mesh::start();
    let (dead, _held) = refusing();
    let origin = Origin::bind().await;
    mesh.serve(vip(1), service(AppProtocol::Http2, &[]));
    mesh.serve(vip(2), service(AppProtocol::Http2, &[dead]));
    mesh.serve(vip(3), service(AppProtocol::Http1, &[origin.address]));
    for (at, status, reason, message) in [
        (vip(1), "14", "no_endpoints", "weft: no backend of TrafficSplit shop/web has a ready endpoint".to_owned()),
        (
            vip(2),
            "14",
            "connect_failed",
            format!("weft: backend shop/web of TrafficSplit shop/web cannot be reached: {dead} refused the connection"),
        ),
        (
            vip(3),
            "12",
            "grpc_over_http1",
            "weft: gRPC needs HTTP/2, and the port is declared to speak HTTP/1.1".to_owned(),
        ),
    ] {
        let client = Client::connect(&mesh, at).await;
        let (response, _) = client.begin(call("/"), true).await;
        let response = crate::mesh::soon(response).await.unwrap();
        assert!(response.body().is_end_stream());
        let field = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((response.status().as_u16(), field("content-type").as_str()), (200, "application/grpc"));
        assert_eq!((field("grpc-status").as_str(), field("weft-reason").as_str()), (status, reason));
        assert_eq!(field("grpc-message"), message);
    }
    mesh.metric_becomes("weft_requests_total", &[("status_class", "5xx")], 3.0).await;
}
