use std::fs::File;

use weft_policy::ir::{FailMode, WorkloadState};

use super::*;

fn workload(uid: &str, ips: &[&str]) -> Arc<WorkloadIr> {
    Arc::new(WorkloadIr {
        id: WorkloadId::new(uid),
        namespace: "shop".into(),
        name: "web".into(),
        owner: "web".into(),
        service_account: "default".into(),
        node: "n1".into(),
        ips: addresses(ips),
        host_network: false,
        meshed: true,
        fail_mode: FailMode::Open,
        fail_open_by: None,
        netns: None,
        cgroup: None,
        state: WorkloadState::NotReady,
        serves: Vec::new(),
        udp_ports: Vec::new(),
    })
}

fn addresses(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn announcement(uid: Option<&str>, ips: &[&str]) -> (Announcement, oneshot::Receiver<Answer>) {
    let (answer, answered) = oneshot::channel();
    let question =
        Question { namespace: "shop".into(), name: "web".into(), uid: uid.map(Into::into), ips: addresses(ips) };
    (Announcement { question, netns: File::open("/proc/self/ns/net").unwrap().into(), answer }, answered)
}

/// A change of one pod, and the addresses with which it is to be captured.
fn change(sandboxes: &mut Sandboxes, pod: &Arc<WorkloadIr>) -> Vec<IpAddr> {
    let placed = sandboxes.place([(&pod.id, &Some(Arc::clone(pod)))]);
    placed[0].1.as_ref().unwrap().ips.clone()
}

#[test]
fn a_pod_without_an_address_has_those_of_its_sandbox_until_its_status_says_more() {
    for (uid, seen_first) in [(Some("u"), true), (Some("u"), false), (None, true), (None, false)] {
        let mut sandboxes = Sandboxes::new("n1");
        let id = WorkloadId::new("u");
        if seen_first {
            assert!(change(&mut sandboxes, &workload("u", &[])).is_empty());
        }
        let (announced, mut answered) = announcement(uid, &["10.0.0.1", "fd00::1"]);
        let expected = if seen_first { Announced::Pod(id.clone()) } else { Announced::Unseen };
        assert_eq!(sandboxes.announce(announced, None), expected);
        assert_eq!(change(&mut sandboxes, &workload("u", &[])), addresses(&["10.0.0.1", "fd00::1"]));
        assert!(sandboxes.netns(&id).is_some());
        sandboxes.answer(|_| None);
        assert!(answered.try_recv().is_err(), "not yet");
        sandboxes.captured(&id);
        sandboxes.answer(|_| Some(Answer::Captured));
        assert_eq!(answered.try_recv(), Ok(Answer::Captured));
        assert!(sandboxes.netns(&id).is_none());
        // A status without an address takes none away.
        assert_eq!(change(&mut sandboxes, &workload("u", &[])), addresses(&["10.0.0.1", "fd00::1"]));
        assert_eq!(change(&mut sandboxes, &workload("u", &["10.0.0.1"])), addresses(&["10.0.0.1"]));
        assert!(change(&mut sandboxes, &workload("u", &[])).is_empty(), "what the status says holds from then on");
    }
}

#[test]
fn a_sandbox_that_is_made_anew_counts_before_the_status_of_the_old_one() {
    let mut sandboxes = Sandboxes::new("n1");
    let id = WorkloadId::new("u");
    change(&mut sandboxes, &workload("u", &["10.0.0.1"]));
    let (announced, _answered) = announcement(Some("u"), &["10.0.0.2"]);
    assert_eq!(sandboxes.announce(announced, None), Announced::Pod(id.clone()));
    assert_eq!(sandboxes.pod(&id).unwrap().ips, addresses(&["10.0.0.2"]));
    assert_eq!(change(&mut sandboxes, &workload("u", &["10.0.0.1"])), addresses(&["10.0.0.2"]));
    let (announced, _answered) = announcement(Some("u"), &["10.0.0.3"]);
    sandboxes.announce(announced, None);
    assert_eq!(change(&mut sandboxes, &workload("u", &["10.0.0.1"])), addresses(&["10.0.0.3"]), "the last one counts");
    // Without a UID it cannot be told from an earlier pod of its name.
    let (announced, _answered) = announcement(None, &["10.0.0.4"]);
    assert_eq!(sandboxes.announce(announced, None), Announced::Unseen);
}

#[test]
fn who_is_not_in_the_mesh_waits_for_nothing() {
    let left_out = |change: fn(&mut WorkloadIr)| {
        let mut pod = (*workload("u", &[])).clone();
        change(&mut pod);
        Some(Arc::new(pod))
    };
    for (known, namespace_is_meshed) in [
        (left_out(|pod| pod.meshed = false), Some(true)),
        (left_out(|pod| pod.host_network = true), Some(true)),
        (None, Some(false)),
    ] {
        let mut sandboxes = Sandboxes::new("n1");
        if let Some(pod) = &known {
            change(&mut sandboxes, pod);
        }
        let (announced, mut answered) = announcement(Some("u"), &["10.0.0.1"]);
        assert_eq!(sandboxes.announce(announced, namespace_is_meshed), Announced::Answered);
        assert_eq!(answered.try_recv(), Ok(Answer::NotMeshed));
    }
    // Seen later.
    let mut sandboxes = Sandboxes::new("n1");
    let (announced, mut answered) = announcement(Some("u"), &["10.0.0.1"]);
    assert_eq!(sandboxes.announce(announced, Some(true)), Announced::Unseen);
    change(&mut sandboxes, &left_out(|pod| pod.meshed = false).unwrap());
    sandboxes.answer(|_| None);
    assert_eq!(answered.try_recv(), Ok(Answer::NotMeshed));
}

#[test]
fn a_pod_that_is_gone_takes_its_sandbox_along() {
    let mut sandboxes = Sandboxes::new("n1");
    let pod = workload("u", &[]);
    change(&mut sandboxes, &pod);
    let (announced, mut answered) = announcement(Some("u"), &["10.0.0.1"]);
    sandboxes.announce(announced, None);
    sandboxes.place([(&pod.id, &None)]);
    assert!(sandboxes.netns(&pod.id).is_none() && sandboxes.announced.is_empty());
    assert!(matches!(answered.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
}

#[test]
fn more_sandboxes_than_there_may_be_are_refused_and_say_so() {
    let mut sandboxes = Sandboxes::new("n1");
    for index in 0..limits::CNI_SANDBOXES_MAX {
        let (mut announced, _) = announcement(None, &[]);
        announced.question.name = format!("web-{index}");
        assert_eq!(sandboxes.announce(announced, None), Announced::Unseen);
    }
    let (announced, mut answered) = announcement(None, &[]);
    assert_eq!(sandboxes.announce(announced, None), Announced::Answered);
    assert!(matches!(answered.try_recv(), Ok(Answer::NotCaptured { .. })));
}
