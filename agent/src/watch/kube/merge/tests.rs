use serde_json::json;
use weft_crds::parse::parse_as;

use super::*;

fn seen(object: Result<Object, ParseError>) -> Seen {
    Seen { object, note: None }
}

fn namespace(name: &str, label: &str) -> Seen {
    let labels = if label.is_empty() { json!({}) } else { json!({"weft.dev/mesh": label}) };
    let document = json!({"metadata": {"name": name, "labels": labels}});
    seen(parse_as(Kind::Namespace, "v1", &document))
}

fn broken(name: &str) -> Seen {
    seen(parse_as(Kind::Service, "v1", &json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 70_000}]}})))
}

fn service(name: &str) -> Seen {
    seen(parse_as(Kind::Service, "v1", &json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})))
}

fn merge(batches: Vec<Batch>) -> Merge {
    let (_, receiver) = mpsc::channel(1);
    let mut merge = Merge::new(receiver, Arc::default());
    for batch in batches {
        merge.take(batch);
    }
    merge
}

fn said(merge: &mut Merge) -> (Vec<String>, Vec<String>) {
    let change = merge.change();
    let event = |event: &ObjectEvent| match event {
        ObjectEvent::Apply(object) => format!("+{}", object.key()),
        ObjectEvent::Delete(key) => format!("-{key}"),
    };
    (change.events.iter().map(event).collect(), change.problems.iter().map(|problem| problem.message.clone()).collect())
}

#[test]
fn a_list_deletes_what_it_lacks_and_nothing_else() {
    let both = vec![namespace("a", ""), namespace("b", "")];
    let mut merge = merge(vec![Batch::Replace(Kind::Namespace, both)]);
    assert_eq!(said(&mut merge).0, ["+Namespace a", "+Namespace b"]);
    merge.take(Batch::Replace(Kind::Namespace, vec![namespace("b", "enabled"), namespace("c", "")]));
    assert_eq!(said(&mut merge).0, ["-Namespace a", "+Namespace b", "+Namespace c"]);
    merge.take(Batch::Replace(Kind::Service, Vec::new()));
    assert_eq!(said(&mut merge).0, Vec::<String>::new());
}

#[test]
fn an_object_that_breaks_keeps_its_last_good_version() {
    let mut merge = merge(vec![Batch::Replace(Kind::Service, vec![service("web"), broken("new")])]);
    let (events, problems) = said(&mut merge);
    assert_eq!(events, ["+Service default/web"]);
    assert!(problems[0].ends_with("nothing of it is in force"), "{problems:?}");

    merge.take(Batch::Replace(Kind::Service, vec![broken("web")]));
    let (events, problems) = said(&mut merge);
    assert_eq!(events, Vec::<String>::new(), "neither changed nor deleted");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].ends_with("the last good version stays in force"), "{problems:?}");

    merge.take(Batch::Apply(Kind::Service, Box::new(service("web"))));
    assert_eq!(said(&mut merge), (vec!["+Service default/web".to_owned()], vec![]));
    merge.take(Batch::Apply(Kind::Service, Box::new(broken("web"))));
    merge.take(Batch::Delete(ObjectKey::new(Kind::Service, "default", "web")));
    assert_eq!(said(&mut merge), (vec!["-Service default/web".to_owned()], vec![]));
}

#[tokio::test]
async fn nothing_is_said_before_every_kind_was_listed() {
    let (batches, receiver) = mpsc::channel(32);
    let mut merge = Merge::new(receiver, Arc::default());
    let (last, others) = Kind::ALL.split_last().unwrap();
    for kind in others {
        batches.send(Batch::Replace(*kind, Vec::new())).await.unwrap();
    }
    batches.send(Batch::Apply(Kind::Namespace, Box::new(namespace("a", "")))).await.unwrap();
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(50), merge.first()).await;
    assert!(waiting.is_err(), "{last:?} is not known yet");
    batches.send(Batch::Replace(*last, Vec::new())).await.unwrap();
    assert_eq!(merge.first().await.unwrap().events.len(), 1);
}

#[tokio::test]
async fn a_burst_is_one_change() {
    let (batches, receiver) = mpsc::channel(32);
    let mut merge = Merge::new(receiver, Arc::default());
    for name in ["a", "b", "c"] {
        batches.send(Batch::Apply(Kind::Namespace, Box::new(namespace(name, "")))).await.unwrap();
    }
    assert_eq!(merge.next().await.unwrap().events.len(), 3);
    drop(batches);
    assert!(merge.next().await.is_none());
}

#[test]
fn ten_thousand_unusable_objects_cost_the_next_changes_nothing() {
    let bad = (0..10_000).map(|number| broken(&format!("bad-{number}"))).collect();
    let mut merge = merge(vec![Batch::Replace(Kind::Service, bad)]);
    let first = merge.change();
    assert_eq!((first.events.len(), first.problems.len()), (0, 10_000));
    merge.take(Batch::Apply(Kind::Service, Box::new(service("web"))));
    let second = merge.change();
    assert_eq!(second.events.len(), 1);
    assert!(Arc::ptr_eq(&first.problems, &second.problems), "what is told is not made again");
    merge.take(Batch::Apply(Kind::Service, Box::new(service("bad-7"))));
    assert_eq!(merge.change().problems.len(), 9_999);
    merge.take(Batch::Apply(Kind::Service, Box::new(broken("bad-7"))));
    assert_eq!(merge.change().problems.len(), 10_000);
}
