//! Pods that leave the mesh while they are asked from another node: what is published of them is taken back before they are let go of, and
//! nobody who asks notices.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_integration::{
    kube::{
        Mesh, MeshOptions,
        authority::NAMESPACE as SYSTEM,
        mixed::{CLIENT, GREET, HTTP, NAMESPACE, SERVER},
    },
    shop::load,
    testpod::LoadReport,
    wait,
};

/// Whatever has to come comes by then, also on a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

/// What became of the connections that were made all the while.
#[derive(Debug, Default)]
struct Asked {
    served: u64,
    failed: Vec<LoadReport>,
}

/// Does something while the client makes one connection after the other to the server: for a request, and to hear what it says first.
fn while_asking(mesh: &Mesh, does: impl FnOnce(&dyn Fn(&str) -> Result<()>) -> Result<()>) -> Result<Vec<Asked>> {
    let client = &mesh.cluster.pod(NAMESPACE, CLIENT)?.pod;
    let (stop, asked) = (AtomicBool::new(false), [HTTP, GREET].map(|port| (port, Mutex::new(Asked::default()))));
    std::thread::scope(|scope| {
        for (port, asked) in &asked {
            let (to, stop) = (SocketAddr::new(mesh.service, *port).to_string(), &stop);
            let speech = if *port == HTTP { "http" } else { "listen" };
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let report = load(client, &["--to", &to, "--speech", speech, "--connections", "20"]);
                    let report = report.unwrap_or_else(|error| LoadReport {
                        connections: 1,
                        failed: [(format!("{error:#}"), 1)].into(),
                        ..LoadReport::default()
                    });
                    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked.served += report.served;
                    if report.served < report.connections || report.statuses.keys().any(|status| *status != 200) {
                        asked.failed.push(report);
                    }
                }
            });
        }
        let goes_on = |when: &str| {
            let served =
                || asked.each_ref().map(|(_, asked)| asked.lock().unwrap_or_else(PoisonError::into_inner).served);
            let before = served();
            wait::until(&format!("connections {when}"), IN_TIME, || {
                Ok(served().iter().zip(before).all(|(now, before)| *now >= before + 40).then_some(()))
            })
        };
        let done = does(&goes_on);
        stop.store(true, Ordering::Relaxed);
        done
    })?;
    Ok(asked.into_iter().map(|(_, asked)| asked.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

/// Waits until the server is let go of, and sees on the way that it never is while it is published.
fn is_let_go(mesh: &Mesh) -> Result<()> {
    wait::until("the server to be let go of", IN_TIME, || {
        let status = mesh.cluster.agent_on("node-b")?.status()?;
        let is_captured = status.pod(NAMESPACE, SERVER).is_some_and(|pod| pod.captured);
        // In this order: what is published now was published when the status was made, or has been added since.
        let is_published = mesh.published()?.iter().any(|name| name == SERVER);
        Ok((!is_captured).then_some(is_published))
    })
    .and_then(|is_published| {
        ensure!(!is_published, "the server was let go of while it was published");
        Ok(())
    })
}

fn all_served(mesh: &Mesh, asked: &[Asked]) -> Result<()> {
    ensure!(asked.iter().all(|asked| asked.failed.is_empty()), "{asked:#?}");
    let seen = mesh.cluster.pod(NAMESPACE, SERVER)?.stats()?;
    ensure!(seen.client_hellos() == 0, "{seen:?}");
    Ok(())
}

#[test]
fn a_pod_is_taken_out_of_the_mesh_and_put_in_again_and_nobody_who_asks_it_notices() -> Result<()> {
    let mesh = Mesh::start(MeshOptions::default())?;
    let mut watching = mesh.watch(2)?;
    let label = |object: &str, value: &str| {
        let patch = json!({"metadata": {"labels": {"weft.dev/mesh": value}}});
        mesh.cluster.server.call("PATCH", &format!("/api/v1/namespaces/{object}"), Some(&patch)).map(drop)
    };
    let pod = format!("{NAMESPACE}/pods/{SERVER}");
    let asked = while_asking(&mesh, |goes_on| {
        goes_on("before the pod leaves")?;
        label(&pod, "disabled")?;
        is_let_go(&mesh)?;
        goes_on("after the pod has left")?;
        mesh.goes_on(&mut watching)?;
        label(&pod, "enabled")?;
        mesh.wait_mutual()?;
        goes_on("after the pod has come back")?;
        mesh.goes_on(&mut watching)
    })?;
    all_served(&mesh, &asked)?;
    // Its whole namespace, and with it the pod that asks: connections that are kept are told to end, new ones go on.
    drop(watching);
    let asked = while_asking(&mesh, |goes_on| {
        label(NAMESPACE, "disabled")?;
        is_let_go(&mesh)?;
        wait::until("nothing to be published", IN_TIME, || Ok(mesh.published()?.is_empty().then_some(())))?;
        goes_on("after the namespace has left")
    })?;
    all_served(&mesh, &asked)
}

#[test]
fn weft_is_removed_from_a_node_and_nobody_who_asks_its_pods_notices() -> Result<()> {
    let agents = ["--daemonset", "weft", "--pod-namespace", SYSTEM].map(str::to_owned).to_vec();
    let mut mesh = Mesh::start(MeshOptions { agents, ..MeshOptions::default() })?;
    // There is no such DaemonSet (any more): an agent that is told to stop takes all of weft along.
    let agent = mesh.cluster.take_agent_on("node-b")?;
    let mut watching = mesh.watch(2)?;
    let asked = while_asking(&mesh, |goes_on| {
        goes_on("before weft is removed")?;
        let ended = agent.stop()?;
        ensure!(ended.success(), "the agent ended with {ended}");
        let published = mesh.published()?;
        ensure!(published == [CLIENT], "{published:?}");
        goes_on("after weft has been removed")?;
        mesh.goes_on(&mut watching)
    })?;
    all_served(&mesh, &asked).context(mesh.cluster.agent_on("node-a")?.log_tail())
}
