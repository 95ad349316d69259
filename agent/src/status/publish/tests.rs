use std::{convert::Infallible, sync::Mutex};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use prometheus::Registry;
use tokio::task::JoinHandle;
use weft_crds::weft::node_workloads::PublishedPod;
use weft_policy::names::ServiceAccountKey;

use super::*;
use crate::readiness::Withdrawn;

/// An API server that keeps NodeWorkloads by name, and knows one Node.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    /// Verb and name of each request that changed something.
    writes: Vec<String>,
    /// How often it was asked what there is.
    looks: usize,
    /// How often it refused.
    refused: usize,
    refuse_with: Option<StatusCode>,
}

type SharedServer = Arc<Mutex<Server>>;

fn client(server: &SharedServer) -> Client {
    let server = Arc::clone(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let (code, answer) = server.lock().unwrap().answer(&head.method, &head.uri, &body);
            let body = Full::new(Bytes::from(answer.to_string()));
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, "default")
}

impl Server {
    fn answer(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> (StatusCode, Value) {
        if let Some(code) = self.refuse_with {
            self.refused += 1;
            return (code, json!({"message": "not now"}));
        }
        if uri.path() == "/api/v1/nodes/n1" {
            return (StatusCode::OK, json!({"metadata": {"name": "n1", "uid": "node-uid"}}));
        }
        let Some(name) = uri.path().strip_prefix(PATH).map(|rest| rest.trim_start_matches('/').to_owned()) else {
            return (StatusCode::NOT_FOUND, json!({}));
        };
        match *method {
            Method::GET => {
                self.looks += 1;
                let query = uri.query().unwrap_or_default();
                let node = query.strip_prefix("labelSelector=weft.dev/node%3D").expect("only its own are asked for");
                let of = |object: &&Value| object["metadata"]["labels"]["weft.dev/node"] == node;
                let items: Vec<Value> = self.objects.values().filter(of).cloned().collect();
                (StatusCode::OK, json!({"items": items}))
            }
            Method::PATCH => {
                assert_eq!(uri.query(), Some("fieldManager=weft-publisher&force=true"));
                self.writes.push(format!("apply {name}"));
                self.objects.insert(name, serde_json::from_slice(body).unwrap());
                (StatusCode::OK, json!({}))
            }
            Method::DELETE => {
                self.writes.push(format!("delete {name}"));
                let found = self.objects.remove(&name).is_some();
                (if found { StatusCode::OK } else { StatusCode::NOT_FOUND }, json!({}))
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({})),
        }
    }
}

fn pod(id: &str) -> PublishedPod {
    PublishedPod {
        id: WorkloadId::new(id),
        name: format!("pod-{id}").into(),
        account: ServiceAccountKey::new("shop", "web"),
        ips: ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
    }
}

struct World {
    server: SharedServer,
    readiness: Arc<Readiness>,
    metrics: PublishMetrics,
    task: JoinHandle<()>,
    times: Times,
}

impl World {
    fn new(objects: impl IntoIterator<Item = Value>, with_certificates: bool) -> Self {
        Self::with_times(objects, with_certificates, TIMES)
    }

    fn with_times(objects: impl IntoIterator<Item = Value>, with_certificates: bool, times: Times) -> Self {
        let named = |object: Value| (object["metadata"]["name"].as_str().unwrap().to_owned(), object);
        let server = Server { objects: objects.into_iter().map(named).collect(), ..Server::default() };
        let server = Arc::new(Mutex::new(server));
        let readiness = Arc::<Readiness>::default();
        if with_certificates {
            readiness.set_certificates(Box::new(|_| true));
        }
        let metrics = PublishMetrics::register(&Registry::new()).unwrap();
        Self { task: tokio::spawn(async {}), server, readiness, metrics, times }.restarted()
    }

    /// Another agent, which knows what the one before knew of its pods.
    fn restarted(mut self) -> Self {
        self.task.abort();
        let told = (Arc::clone(&self.readiness), self.metrics.clone());
        let publisher = Publisher::with_times(&client(&self.server), "n1", told, self.times);
        self.task = tokio::spawn(publisher.run());
        self
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }

    /// Rounds enough to see what does not happen.
    async fn looked(&self, times: usize) {
        let from = self.server().looks;
        until("another look", || self.server().looks >= from + times).await;
    }

    async fn published_is(&self, name: &str, ids: &[&str]) {
        until(&format!("{ids:?} in {name}"), || self.published(name) == ids).await;
    }

    fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.server().writes)
    }

    fn published(&self, name: &str) -> Vec<String> {
        let server = self.server();
        let pods = server.objects.get(name).and_then(|object| object["spec"]["pods"].as_array());
        pods.into_iter().flatten().map(|pod| pod["uid"].as_str().unwrap().to_owned()).collect()
    }
}

const TIMES: Times = Times {
    round: Duration::from_millis(5),
    look: Duration::from_millis(50),
    certificates_by: Duration::from_secs(3600),
    pause_max: Duration::from_millis(400),
};
/// Whatever has to come comes by then, also on a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < IN_TIME, "{what} did not come in time");
        sleep(Duration::from_millis(2)).await;
    }
}

fn object(name: &str, node: &str, pods: &Value) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads",
           "metadata": {"name": name, "labels": {"weft.dev/node": node}}, "spec": {"node": node, "pods": pods}})
}

fn entry(id: &str) -> Value {
    json!({"uid": id, "namespace": "shop", "name": format!("pod-{id}"), "serviceAccount": "web", "ips": ["10.0.0.1", "fd00::1"]})
}

#[tokio::test]
async fn pods_are_published_in_objects_of_sixteen_and_nothing_is_written_without_a_change() {
    let world = World::new([], true);
    for index in 0..17 {
        world.readiness.captured(pod(&format!("u{index:02}")));
    }
    until("17 pods", || world.readiness.published().len() == 17).await;
    assert_eq!((world.published("n1-0").len(), world.published("n1-1")), (16, vec!["u16".to_owned()]));
    let metadata = world.server().objects["n1-0"]["metadata"].clone();
    assert_eq!(metadata["ownerReferences"][0]["uid"], "node-uid");
    assert_eq!(world.server().objects["n1-1"]["spec"]["pods"][0], entry("u16"));
    assert_eq!(world.metrics.published.get(), 17);
    world.writes();
    world.looked(4).await;
    assert_eq!(world.writes(), [""; 0], "dozens of rounds without a change");
    world.readiness.gone(&WorkloadId::new("u16"));
    until("the second object to go", || world.published("n1-1").is_empty()).await;
    assert_eq!(world.writes(), ["delete n1-1"]);
    // One goes, one comes: in the same object.
    world.readiness.gone(&WorkloadId::new("u03"));
    world.readiness.captured(pod("u99"));
    until("u99", || world.published("n1-0").contains(&"u99".to_owned())).await;
    assert!(world.writes().iter().all(|write| write == "apply n1-0"));
    let bytes = world.metrics.bytes.get();
    assert!((2_000..20_000).contains(&bytes), "{bytes} bytes for a few writes");
}

#[tokio::test]
async fn what_an_earlier_agent_left_is_taken_over_put_right_or_deleted_and_other_nodes_are_left_alone() {
    let mut unreadable = object("n1-4", "n1", &json!([entry("u1")]));
    unreadable["spec"]["pods"][0]["ips"] = json!(["nonsense"]);
    let before = [
        object("n1-2", "n1", &json!([entry("u1"), entry("stale")])),
        object("n1-3", "n1", &json!([entry("stale")])),
        unreadable,
        // Bears this node's label, but is another's by its name.
        object("n1-x-0", "n1", &json!([entry("u5")])),
        object("n2-0", "n2", &json!([entry("u6")])),
    ];
    let world = World::new(before, true);
    world.readiness.captured(pod("u1"));
    until("three writes", || world.server().writes.len() == 3).await;
    assert_eq!(world.writes(), ["apply n1-2", "delete n1-3", "delete n1-4"]);
    assert_eq!(world.published("n1-2"), ["u1"], "it stays where it was");
    assert_eq!(world.server().objects.keys().collect::<Vec<_>>(), ["n1-2", "n1-x-0", "n2-0"]);
    // Somebody deletes it, and nobody tells: it is seen to be missing.
    world.server().objects.remove("n1-2");
    world.published_is("n1-0", &["u1"]).await;
}

#[tokio::test]
async fn an_agent_that_starts_leaves_pods_published_whose_certificates_it_awaits_but_not_for_ever() {
    for (certificates_by, left) in [(TIMES.certificates_by, &["u1"][..]), (Duration::ZERO, &[])] {
        let before = object("n1-0", "n1", &json!([entry("u1"), entry("gone")]));
        let world = World::with_times([before], false, Times { certificates_by, ..TIMES });
        world.readiness.set_certificates(Box::new(|_| false));
        world.readiness.captured(pod("u1"));
        world.readiness.captured(pod("new"));
        // One that is not captured is taken back at once, and a new one waits.
        world.published_is("n1-0", left).await;
        world.looked(2).await;
        assert_eq!(world.published("n1-0"), left);
    }
}

#[tokio::test]
async fn an_agent_without_identities_takes_everything_back() {
    let world = World::new([object("n1-0", "n1", &json!([entry("u1")]))], false);
    world.readiness.captured(pod("u1"));
    until("a write", || !world.server().writes.is_empty()).await;
    assert_eq!(world.writes(), ["delete n1-0"]);
}

#[tokio::test]
async fn a_pod_that_is_let_go_of_is_taken_back_at_once_and_late_only_if_nobody_answers() {
    // No round comes by itself.
    let world = World::with_times([], true, Times { round: Duration::from_secs(3600), ..TIMES });
    for id in ["u1", "u2"] {
        world.readiness.captured(pod(id));
    }
    until("both", || world.readiness.published().len() == 2).await;
    world.writes();
    assert_eq!(world.readiness.withdraw(&[WorkloadId::new("u1")], IN_TIME).await, Withdrawn::Written);
    assert_eq!((world.writes(), world.published("n1-0")), (vec!["apply n1-0".to_owned()], vec!["u2".to_owned()]));
    world.server().refuse_with = Some(StatusCode::SERVICE_UNAVAILABLE);
    let withdrawn = world.readiness.withdraw(&[WorkloadId::new("u2")], Duration::from_millis(100)).await;
    assert_eq!(withdrawn, Withdrawn::Late);
    assert_eq!((world.published("n1-0"), world.readiness.late()), (vec!["u2".to_owned()], 1));
    // The API server is back: what could not be written is, by an agent that has rounds.
    world.server().refuse_with = None;
    let world = World { times: TIMES, ..world }.restarted();
    until("it is taken back", || world.readiness.published().is_empty() && world.published("n1-0").is_empty()).await;
}

#[tokio::test]
async fn an_api_server_that_refuses_is_asked_less_often_and_told_in_the_end() {
    let world = World::new([], true);
    world.server().refuse_with = Some(StatusCode::FORBIDDEN);
    world.readiness.captured(pod("u1"));
    let started = Instant::now();
    until("four refusals", || world.server().refused >= 4).await;
    // After 200 ms and twice 400 ms, where a round is 5 ms.
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    world.server().refuse_with = None;
    world.published_is("n1-0", &["u1"]).await;
    let failures = prometheus::core::Collector::collect(&world.metrics.failures);
    let forbidden = |metric: &prometheus::proto::Metric| metric.get_label()[0].value() == "forbidden";
    let metric = failures[0].get_metric().iter().find(|metric| forbidden(metric)).unwrap();
    assert!(metric.get_counter().get_value() >= 4.0);
}

#[tokio::test]
async fn another_agent_on_the_node_goes_on_where_the_one_before_was() {
    let world = World::new([], true);
    world.readiness.captured(pod("u1"));
    world.published_is("n1-0", &["u1"]).await;
    world.writes();
    let world = world.restarted();
    world.looked(3).await;
    assert_eq!(world.writes(), [""; 0], "the second one had nothing to write");
}

#[tokio::test]
async fn a_node_that_weft_is_taken_off_takes_back_all_that_is_its_own() {
    let world = World::new([object("n1-0", "n1", &json!([entry("u1")])), object("n2-0", "n2", &json!([]))], true);
    world.task.abort();
    withdraw_all(&client(&world.server), "n1", limits::PUBLISH_WITHDRAW_MAX).await;
    assert_eq!(world.server().objects.keys().collect::<Vec<_>>(), ["n2-0"]);
}
