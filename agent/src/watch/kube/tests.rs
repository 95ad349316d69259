use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::Mutex,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use weft_crds::store::ObjectEvent;

use super::*;

/// What a path answers with: the first answers in order, and the last one from then on.
type Answers = BTreeMap<&'static str, Vec<Answer>>;

#[derive(Clone)]
enum Answer {
    Json(Value),
    Refused(StatusCode),
    /// Events, and then the end of the stream.
    Events(Vec<Value>),
}

type AnyBody = BoxBody<bytes::Bytes, Infallible>;

/// An API server of scripted answers. A watch that nothing is scripted for stays open and says nothing; a list is empty.
fn api_server(answers: Answers) -> Client {
    let answers = Arc::new(Mutex::new(answers));
    let service = tower::service_fn(move |request: Request<Body>| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answer(&answers, &request)) }
    });
    Client::new(service, "default")
}

fn answer(answers: &Mutex<Answers>, request: &Request<Body>) -> Response<AnyBody> {
    let query = request.uri().query().unwrap_or_default();
    let is_watch = query.contains("watch=true");
    let path = format!("{} {}", if is_watch { "watch" } else { "get" }, request.uri().path());
    let mut answers = answers.lock().unwrap();
    let scripted = answers.get_mut(&*path).map(|list| if list.len() > 1 { list.remove(0) } else { list[0].clone() });
    let full = |text: String| Full::new(bytes::Bytes::from(text)).boxed();
    match scripted {
        Some(Answer::Json(value)) => Response::new(full(value.to_string())),
        Some(Answer::Events(events)) => Response::new(full(events.iter().map(|event| format!("{event}\n")).collect())),
        Some(Answer::Refused(code)) => Response::builder().status(code).body(full(String::new())).unwrap(),
        None if is_watch => {
            let pending = futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, Infallible>>();
            Response::new(http_body_util::StreamBody::new(pending).boxed())
        }
        None if request.uri().path() == "/apis" => Response::new(full(json!({"groups": []}).to_string())),
        None => Response::new(full(list(1, &[]).to_string())),
    }
}

fn list(version: u64, names: &[&str]) -> Value {
    let items: Vec<Value> = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
    json!({"metadata": {"resourceVersion": version.to_string()}, "items": items})
}

fn events(change: &Change) -> Vec<String> {
    let event = |event: &ObjectEvent| match event {
        ObjectEvent::Apply(object) => format!("+{}", object.key()),
        ObjectEvent::Delete(key) => format!("-{key}"),
    };
    change.events.iter().map(event).collect()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("within 20 s")
}

#[tokio::test]
async fn a_watch_that_cannot_go_on_is_listed_anew_as_one_change() {
    let gone =
        json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}});
    let client = api_server(BTreeMap::from([
        ("get /api/v1/namespaces", vec![Answer::Json(list(5, &["a", "b"])), Answer::Json(list(9, &["b", "c"]))]),
        ("watch /api/v1/namespaces", vec![Answer::Events(vec![gone]), Answer::Events(vec![])]),
    ]));
    let sources = Arc::default();
    let mut cluster = Cluster::watch(&client, "n1", &sources);
    let first = within(cluster.first()).await.unwrap();
    let mut said = events(&first);
    if !said.contains(&"+Namespace c".to_owned()) {
        said = events(&within(cluster.merge.next()).await.unwrap());
        assert_eq!(said, ["-Namespace a", "+Namespace b", "+Namespace c"]);
    }
    let row = |name: &str| sources.view().into_iter().find(|row| row.kind == name).unwrap();
    assert_eq!(row("Namespace").errors["expired"], 1);
    assert_eq!(row("Namespace").relists, 2);
}

#[tokio::test]
async fn an_api_server_that_is_not_there_yet_is_waited_for() {
    let refused = Answer::Refused(StatusCode::SERVICE_UNAVAILABLE);
    let client = api_server(BTreeMap::from([
        ("get /api/v1/namespaces", vec![refused.clone(), refused.clone(), Answer::Json(list(5, &["a"]))]),
        ("get /apis", vec![refused.clone(), Answer::Json(json!({"groups": []}))]),
        ("get /readyz", vec![refused, Answer::Json(json!("ok"))]),
    ]));
    let sources = Arc::default();
    let first = within(Cluster::watch(&client, "n1", &sources).first()).await.unwrap();
    assert_eq!(events(&first), ["+Namespace a"]);
    let row = sources.view().into_iter().find(|row| row.kind == "Namespace").unwrap();
    assert_eq!(row.errors["refused"], 2);
    let split = sources.view().into_iter().find(|row| row.kind == "TrafficSplit").unwrap();
    assert_eq!(split.state, "absent", "{split:?}");
}

#[tokio::test]
async fn pages_are_put_together() {
    let mut first_page = list(5, &["a"]);
    first_page["metadata"]["continue"] = "more".into();
    let client = api_server(BTreeMap::from([(
        "get /api/v1/namespaces",
        vec![Answer::Json(first_page), Answer::Json(list(5, &["b"]))],
    )]));
    let first = within(Cluster::watch(&client, "n1", &Arc::default()).first()).await.unwrap();
    assert_eq!(events(&first), ["+Namespace a", "+Namespace b"]);
}

#[tokio::test]
async fn a_custom_kind_is_read_in_its_newest_version_and_noted() {
    let group = json!({"groups": [{"name": "split.smi-spec.io", "versions": [
        {"groupVersion": "split.smi-spec.io/v1alpha2", "version": "v1alpha2"},
        {"groupVersion": "split.smi-spec.io/v1alpha4", "version": "v1alpha4"},
        {"groupVersion": "split.smi-spec.io/v9", "version": "v9"},
    ]}]});
    let resources = json!({"groupVersion": "split.smi-spec.io/v1alpha4", "resources": [
        {"name": "trafficsplits/status", "kind": "TrafficSplit", "namespaced": true, "singularName": "", "verbs": []},
        {"name": "trafficsplits", "kind": "TrafficSplit", "namespaced": true, "singularName": "", "verbs": []},
    ]});
    let split = json!({
        "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
        "metadata": {"namespace": "shop", "name": "web", "uid": "u", "generation": 3, "resourceVersion": "7"},
        "spec": {"service": 7},
    });
    let client = api_server(BTreeMap::from([
        ("get /apis", vec![Answer::Json(group)]),
        ("get /apis/split.smi-spec.io/v1alpha4", vec![Answer::Json(resources)]),
        (
            "get /apis/split.smi-spec.io/v1alpha4/trafficsplits",
            vec![Answer::Json(json!({"metadata": {"resourceVersion": "8"}, "items": [split]}))],
        ),
    ]));
    let sources = Arc::<Sources>::default();
    let first = within(Cluster::watch(&client, "n1", &sources).first()).await.unwrap();
    assert_eq!(first.problems.len(), 1);
    assert!(first.problems[0].object == "TrafficSplit shop/web", "{:?}", first.problems);
    let state = sources.ledger.state();
    let note = state.notes.values().next().unwrap();
    assert_eq!(note.path, "/apis/split.smi-spec.io/v1alpha4/namespaces/shop/trafficsplits/web");
    assert_eq!((note.generation, &*note.uid), (3, "u"));
    assert!(note.unusable.is_some());
    assert!(!state.is_in_force(), "nobody has applied it yet");
}

#[tokio::test]
async fn a_pod_cannot_say_where_it_is() {
    let pod = json!({
        "metadata": {"namespace": "shop", "name": "web", "annotations": {"weft.dev/netns": "/proc/1/ns/net", "weft.dev/cgroup": "/sys", "weft.dev/x": "y"}},
        "spec": {"nodeName": "n1"},
    });
    let items = json!({"metadata": {"resourceVersion": "8"}, "items": [pod]});
    let client = api_server(BTreeMap::from([("get /api/v1/pods", vec![Answer::Json(items)])]));
    let first = within(Cluster::watch(&client, "n1", &Arc::default()).first()).await.unwrap();
    let ObjectEvent::Apply(object) = &first.events[0] else { panic!("{:?}", first.events) };
    assert_eq!(object.meta().annotations.keys().collect::<Vec<_>>(), ["weft.dev/x"]);
}

#[tokio::test]
async fn failures_do_not_become_a_flood() {
    let refused = || vec![Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR)];
    let client = api_server(BTreeMap::from([
        ("get /api/v1/namespaces", refused()),
        ("get /api/v1/services", refused()),
        ("get /apis", refused()),
    ]));
    let sources = Arc::<Sources>::default();
    let mut cluster = Cluster::watch(&client, "n1", &sources);
    let until = Instant::now() + Duration::from_secs(2);
    let waiting = tokio::time::timeout_at(until.into(), cluster.first()).await;
    assert!(waiting.is_err(), "namespaces were never listed");
    for row in sources.view().iter().filter(|row| row.state == "stale") {
        let errors: u64 = row.errors.values().sum();
        assert!((1..=10).contains(&errors), "{} was asked for {errors} times in 2 s", row.kind);
    }
}
