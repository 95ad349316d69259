//! What rules do to requests and responses: rewrites, edits, redirects, CORS, timeouts.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use weft_policy::{
    ir::{MatchIr, PathIr},
    matcher::RouteMatcher,
    names::{ObjectRef, ServiceKey, WorkloadId},
    plan::{AppProtocol, OutboundPlan, Route, RouteTable},
    rule::{
        Action, ActionIr, BackendHeaders, Cors, Field, Filters, HeaderEdits, PathChange, Redirect, Rewrite, Rule,
        RuleIr, Timeouts,
    },
    split::{Backend, Split},
};

use crate::{
    access::{captured, grant, granting},
    mesh::{Mesh, plan, speaking, split, until, vip},
    origin::{Named, Origin},
    peers2::{self, Client, Server, named2},
    wire::Wire,
};

fn origin_of(name: &str) -> ObjectRef {
    ObjectRef::new("HTTPRoute", "shop", name)
}

/// A plan with one rule, for all requests or those under a prefix.
pub(crate) fn ruled(
    protocol: AppProtocol,
    to: &Arc<Split>,
    prefix: Option<&str>,
    mirrors: Box<[Backend]>,
    change: impl FnOnce(&mut RuleIr),
) -> Arc<OutboundPlan> {
    let mut ir = RuleIr::forward(origin_of("web"), Vec::new());
    ir.name = "rules[0]".into();
    change(&mut ir);
    let action = match &ir.action {
        ActionIr::Redirect(redirect) => Action::Redirect(redirect.clone()),
        _ => Action::Forward(Arc::clone(to)),
    };
    let rule = Arc::new(Rule { ir: Arc::new(ir), action, mirrors });
    let straight = plan(protocol, Arc::clone(to));
    let routes = match prefix {
        None => RouteTable { matcher: RouteMatcher::default(), matched: Box::default(), otherwise: rule },
        Some(prefix) => {
            let mut matches = MatchIr::any(origin_of("web"), "rules[0].matches[0]");
            matches.path = Some(PathIr::Prefix(prefix.into()));
            let route = Route { rule, prefix: Some(prefix.into()) };
            RouteTable {
                matcher: RouteMatcher::new(&[&[matches]]).0,
                matched: Box::new([route]),
                otherwise: Arc::clone(&straight.routes.otherwise),
            }
        }
    };
    Arc::new(OutboundPlan {
        service: straight.service.clone(),
        port: straight.port,
        protocol,
        routes,
        consumers: Box::default(),
        connection: Arc::clone(to),
    })
}

/// The same with filters, for all requests.
pub(crate) fn filtered(protocol: AppProtocol, to: &Arc<Split>, filters: Filters) -> Arc<OutboundPlan> {
    ruled(protocol, to, None, Box::default(), |ir| ir.filters = Some(Box::new(filters)))
}

pub(crate) fn web(protocol: AppProtocol, at: &[SocketAddr]) -> Arc<Split> {
    split("web", &[("web", 1, &speaking(protocol, at))])
}

fn field(name: &'static str, value: &'static str) -> Field {
    Field { name: HeaderName::from_static(name), value: HeaderValue::from_static(value) }
}

fn edits(
    set: &[(&'static str, &'static str)],
    add: &[(&'static str, &'static str)],
    remove: &[&'static str],
) -> HeaderEdits {
    let fields = |list: &[(&'static str, &'static str)]| list.iter().map(|(name, value)| field(name, value)).collect();
    HeaderEdits {
        set: fields(set),
        add: fields(add),
        remove: remove.iter().map(|name| HeaderName::from_static(name)).collect(),
    }
}

#[tokio::test]
async fn fields_of_requests_and_responses_are_edited_by_rule_and_by_backend() {
    let mesh = Mesh::start();
    for (at, protocol, server) in
        [(vip(1), AppProtocol::Http1, Named::start("v1").await), (vip(2), AppProtocol::Http2, named2("v1").await)]
    {
        let headers = BackendHeaders {
            request: edits(&[("x-backend", "b")], &[], &["x-gone"]),
            response: edits(&[("x-told", "by-backend"), ("x-name", "renamed")], &[], &[]),
        };
        let mut backend = Backend::new(ServiceKey::new("shop", "web"), 80, 1, speaking(protocol, &[server.address]));
        backend.headers = Some(Arc::new(headers));
        let to = Arc::new(Split::new(origin_of("web"), Box::new([backend])));
        let filters = Filters {
            request: edits(&[("x-set", "1"), ("connection", "x")], &[("x-add", "2")], &["x-removed"]),
            response: edits(&[("x-told", "by-rule")], &[("x-added", "3")], &["x-target", "content-length"]),
            ..Filters::default()
        };
        mesh.serve(at, filtered(protocol, &to, filters));
        // A client of either version.
        let mut client = Wire::new(mesh.connect(at).await);
        let answer = client
            .ask("GET / HTTP/1.1\r\nHost: web\r\nx-set: 0\r\nx-add: 1\r\nx-removed: 1\r\nx-gone: 1\r\n\r\n")
            .await;
        let head = &answer.head;
        assert_eq!((head.status(), answer.text()), (200, "v1"), "its length is what it was");
        assert_eq!(head.fields["got-x-set"], ["1"]);
        assert_eq!(head.fields["got-x-add"], ["1", "2"]);
        assert_eq!((head.field("got-x-removed"), head.field("got-x-gone")), (None, None));
        assert_eq!((head.field("got-x-backend"), head.field("got-connection")), (Some("b"), None));
        assert_eq!((head.field("x-told"), head.field("x-name")), (Some("by-rule"), Some("renamed")));
        assert_eq!((head.field("x-added"), head.field("x-target")), (Some("3"), None));
        let client = Client::connect(&mesh, at).await;
        let answer = client.ask(Request::get("http://web/").header("x-set", "0").body(()).unwrap(), None).await;
        assert_eq!((answer.field("got-x-set"), answer.field("x-told")), (Some("1"), Some("by-rule")));
    }
}

#[tokio::test]
async fn rewritten_requests_have_one_canonical_form_and_the_new_host() {
    let mesh = Mesh::start();
    for (at, protocol, server) in
        [(vip(1), AppProtocol::Http1, Named::start("v1").await), (vip(2), AppProtocol::Http2, named2("v1").await)]
    {
        for (prefix, path, asked, expect) in [
            (Some("/foo"), PathChange::Prefix("/xyz".into()), "/foo/bar?q=1", Ok("/xyz/bar?q=1")),
            (Some("/foo"), PathChange::Prefix("/".into()), "/foo", Ok("/")),
            (Some("/foo"), PathChange::Prefix("/a/../b/%61".into()), "/./foo/c", Ok("/b/a/c")),
            (None, PathChange::Full("/fixed".into()), "/foo/bar?q=1", Ok("/fixed?q=1")),
            (None, PathChange::Full("/a%2fb".into()), "/foo", Err("rule_invalid")),
            (None, PathChange::Full("/a?b".into()), "/foo", Err("rule_invalid")),
        ] {
            let rewrite = Rewrite { host: Some("Elsewhere.example".into()), path: Some(path.clone()) };
            let filters = Filters { rewrite, ..Filters::default() };
            mesh.serve(
                at,
                ruled(protocol, &web(protocol, &[server.address]), prefix, Box::default(), |ir| {
                    ir.filters = Some(Box::new(filters));
                }),
            );
            let mut client = Wire::new(mesh.connect(at).await);
            let answer = client.get(asked).await;
            match expect {
                Ok(target) => {
                    let (host, target) = match protocol {
                        AppProtocol::Http2 => (None, format!("http://elsewhere.example{target}")),
                        _ => (Some("elsewhere.example"), target.to_owned()),
                    };
                    assert_eq!(answer.head.field("x-target"), Some(&*target), "{asked} {path:?}");
                    assert_eq!(answer.head.field("got-host"), host);
                }
                Err(reason) => assert_eq!((answer.head.status(), answer.head.reason()), (500, reason), "{path:?}"),
            }
        }
    }
}

#[tokio::test]
async fn destination_is_asked_about_the_request_that_it_gets() {
    let (mesh, server) = (Mesh::start(), Named::start("v1").await);
    let workload = WorkloadId::new("uid-web-1");
    let cell = captured(&mesh, &workload, AppProtocol::Http, server.address);
    let inbound = granting(vec![grant("reads", Some(&[("/open", &["GET"])]))]);
    mesh.publish(|snapshot| _ = snapshot.inbound.insert(workload, Arc::new(inbound)));
    let to = split("web", &[("web", 1, &cell)]);
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for (from, into, status) in [("/open", "/secret", 403), ("/secret", "/open", 200)] {
        let rewrite = Rewrite { host: None, path: Some(PathChange::Prefix(into.into())) };
        let filters = Filters { rewrite, ..Filters::default() };
        mesh.serve(
            vip(1),
            ruled(AppProtocol::Http, &to, Some(from), Box::default(), |ir| ir.filters = Some(Box::new(filters))),
        );
        assert_eq!(client.get(&format!("{from}/x")).await.head.status(), status, "{from} becomes {into}");
    }
}

#[tokio::test]
async fn clients_are_sent_elsewhere() {
    let mesh = Mesh::start();
    let to = |scheme: Option<&str>, host: Option<&str>, port, path, status| Redirect {
        scheme: scheme.map(Into::into),
        host: host.map(Into::into),
        port,
        path,
        status,
    };
    for (redirect, location) in [
        (to(Some("https"), None, None, None, 301), "https://web/foo/bar?q=1"),
        (to(None, Some("other.example"), None, None, 302), "http://other.example/foo/bar?q=1"),
        (to(None, None, Some(8080), None, 307), "http://web:8080/foo/bar?q=1"),
        (to(Some("https"), None, Some(443), None, 308), "https://web/foo/bar?q=1"),
        (to(None, None, None, Some(PathChange::Prefix("/new".into())), 303), "http://web/new/bar?q=1"),
        (to(None, None, None, Some(PathChange::Full("/all/../x".into())), 302), "http://web/x?q=1"),
    ] {
        let status = redirect.status;
        mesh.serve(
            vip(1),
            ruled(AppProtocol::Http, &web(AppProtocol::Http, &[]), Some("/foo"), Box::default(), |ir| {
                ir.action = ActionIr::Redirect(redirect);
            }),
        );
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let answer = client.ask("GET /foo/bar?q=1 HTTP/1.1\r\nHost: web:80\r\n\r\n").await;
        assert_eq!((answer.head.status(), answer.head.reason(), answer.text()), (status, "redirect", ""));
        assert_eq!(answer.head.field("location"), Some(location));
        // The connection goes on.
        assert_eq!(client.get("/foo").await.head.status(), status);
        let client = Client::connect(&mesh, vip(1)).await;
        let answer = client.get("/foo/bar?q=1").await;
        assert_eq!((answer.head.status.as_u16(), answer.field("location")), (status, Some(location)));
    }
}

#[tokio::test]
async fn scripts_of_other_origins_may_what_the_rule_says() {
    let (mesh, server) = (Mesh::start(), Named::start("v1").await);
    let cors = Cors {
        origins: vec!["https://*.shop.example".into()],
        credentials: true,
        methods: vec!["*".into()],
        headers: vec!["x-one".into(), "x-two".into()],
        expose: vec!["x-name".into()],
        max_age: Duration::from_secs(600),
    };
    let filters = Filters {
        cors: Some(Arc::new(cors)),
        // As if the Service had an opinion of its own.
        response: edits(&[("access-control-allow-origin", "*"), ("access-control-max-age", "1")], &[], &[]),
        ..Filters::default()
    };
    mesh.serve(vip(1), filtered(AppProtocol::Http, &web(AppProtocol::Http, &[server.address]), filters));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let preflight = |origin: &str| {
        format!(
            "OPTIONS / HTTP/1.1\r\nHost: web\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-one\r\n\r\n"
        )
    };
    let answer = client.ask(preflight("https://a.shop.example")).await;
    let of = |name: &str| answer.head.field(&format!("access-control-{name}"));
    assert_eq!((answer.head.status(), answer.head.reason()), (204, "cors_preflight"));
    assert_eq!((of("allow-origin"), of("allow-credentials")), (Some("https://a.shop.example"), Some("true")));
    assert_eq!(
        (of("allow-methods"), of("allow-headers"), of("max-age")),
        (Some("PUT"), Some("x-one, x-two"), Some("600"))
    );
    let answer = client.ask(preflight("https://evil.example")).await;
    assert_eq!(answer.head.status(), 204);
    assert!(!answer.head.fields.keys().any(|name| name.starts_with("access-control-")), "{:?}", answer.head);
    assert_eq!(server.requests.load(Ordering::SeqCst), 0, "the Service is not asked");
    for (origin, allowed) in [("https://a.shop.example", true), ("https://evil.example", false)] {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: web\r\nOrigin: {origin}\r\n\r\n")).await;
        assert_eq!(answer.text(), "v1");
        assert_eq!(answer.head.field("access-control-allow-origin"), allowed.then_some(origin));
        assert_eq!(answer.head.field("access-control-expose-headers"), allowed.then_some("x-name"));
        assert_eq!(answer.head.field("vary"), Some("origin"));
    }
    let answer = client.get("/").await;
    assert_eq!((answer.text(), answer.head.field("vary")), ("v1", None), "no script has asked");
}

/// Long enough for what is to come before its end, on a busy machine as well.
const SPAN: Duration = Duration::from_secs(2);

fn timeouts(request: Option<Duration>, backend_request: Option<Duration>) -> Filters {
    Filters { timeouts: Timeouts { request, backend_request }, ..Filters::default() }
}

async fn not_waited_for(
    mesh: &Mesh,
    at: SocketAddr,
    protocol: AppProtocol,
    (request, each): (Option<Duration>, Option<Duration>),
    reason: &str,
) -> Duration {
    let origin = Origin::bind().await;
    mesh.serve(at, filtered(protocol, &web(protocol, &[origin.address]), timeouts(request, each)));
    let mut client = Wire::new(mesh.connect(at).await);
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    let (answer, took) = if protocol == AppProtocol::Http2 {
        let mut server = Server::over(server, &h2::server::Builder::new()).await;
        let (_, mut respond) = server.call().await;
        let answer = server.during(client.answer()).await;
        let took = begun.elapsed();
        let reset = server.during(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
        assert_eq!(reset, h2::Reason::CANCEL);
        (answer, took)
    } else {
        server.head().await;
        let answer = client.answer().await;
        let took = begun.elapsed();
        // The endpoint hears that nobody waits any more.
        server.reset_or_end().await;
        (answer, took)
    };
    assert_eq!((answer.head.status(), answer.head.reason()), (504, reason));
    assert!(took >= SPAN, "{took:?} is less than {SPAN:?}");
    assert!(mesh.metric("weft_limit_reached_total", &[("limit", reason)]) >= 1.0);
    // The client's connection goes on.
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(client.answer().await.head.reason(), reason);
    took - SPAN
}

#[tokio::test]
async fn endpoint_that_does_not_answer_in_time_is_not_waited_for() {
    let mesh = &Mesh::start();
    let late = tokio::join!(
        not_waited_for(mesh, vip(1), AppProtocol::Http1, (Some(SPAN), None), "request_timeout"),
        not_waited_for(mesh, vip(2), AppProtocol::Http1, (None, Some(SPAN)), "backend_timeout"),
        not_waited_for(mesh, vip(3), AppProtocol::Http1, (Some(10 * SPAN), Some(SPAN)), "backend_timeout"),
        not_waited_for(mesh, vip(4), AppProtocol::Http2, (Some(SPAN), Some(10 * SPAN)), "request_timeout"),
    );
    println!("answered so long after their time: {late:?}");
}

async fn not_whole(mesh: &Mesh, at: SocketAddr, filters: Filters) {
    let origin = Origin::bind().await;
    mesh.serve(at, filtered(AppProtocol::Http1, &web(AppProtocol::Http1, &[origin.address]), filters));
    let mut client = Wire::new(mesh.connect(at).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.chunk().await, b"abc");
    client.reset().await;
    server.reset_or_end().await;
    // The same for one stream of many.
    let client = Client::connect(mesh, at).await;
    let (response, _) = client.begin(peers2::get("/"), true).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    let mut body = crate::mesh::soon(response).await.unwrap().into_body();
    assert_eq!(peers2::part(&mut body).await.unwrap().unwrap(), "abc");
    assert!(peers2::part(&mut body).await.unwrap().unwrap_err().is_reset());
}

#[tokio::test]
async fn response_that_is_not_over_in_time_does_not_look_whole() {
    let mesh = &Mesh::start();
    tokio::join!(
        not_whole(mesh, vip(1), timeouts(Some(SPAN), None)),
        not_whole(mesh, vip(2), timeouts(None, Some(SPAN))),
    );
}

#[tokio::test]
async fn calls_hear_that_their_time_is_over_in_their_own_way() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    let to = web(AppProtocol::Http2, &[origin.address]);
    mesh.serve(vip(1), filtered(AppProtocol::Http2, &to, timeouts(Some(SPAN), None)));
    let client = Client::connect(&mesh, vip(1)).await;
    let call =
        || Request::post("http://web/shop.Cart/Add").header("content-type", "application/grpc").body(()).unwrap();
    let (response, _) = client.begin(call(), true).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_request, _respond) = server.call().await;
    let answer = server.during(peers2::answer(response)).await;
    assert_eq!((answer.field("grpc-status"), answer.reason()), (Some("4"), "request_timeout"));
    let (response, _) = client.begin(call(), true).await;
    let (_request, mut respond) = server.call().await;
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\0\0\0\x02ok"), false).unwrap();
    let answer = server.during(peers2::answer(response)).await;
    assert_eq!(answer.body, b"\0\0\0\0\x02ok");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "4", "after a message, too");
    assert_eq!(server.during(std::future::poll_fn(|cx| stream.poll_reset(cx))).await.unwrap(), h2::Reason::CANCEL);
}

#[tokio::test]
async fn answer_in_time_is_not_touched() {
    let (mesh, server) = (Mesh::start(), Named::start("v1").await);
    let to = web(AppProtocol::Http, &[server.address]);
    mesh.serve(vip(1), filtered(AppProtocol::Http, &to, timeouts(Some(Duration::MAX), Some(crate::mesh::PATIENCE))));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..3 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    until("one connection is enough", || server.connections.load(Ordering::SeqCst) == 1).await;
}
