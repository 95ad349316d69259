//! A small shop on a cluster: two versions behind one Service that a TrafficSplit divides, a Service that nothing is said about, and a
//! client.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::Cluster;
use crate::{Process, shop::ECHO, testpod::ServerStats, wait};

/// Namespace of everything.
pub const NAMESPACE: &str = "shop";

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-v1, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: web, version: v1}}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec:
      serviceAccountName: web
      containers: [{name: web, image: weft-testpod, args: [--http, '8080'], ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-v2, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: web, version: v2}}
  template:
    metadata: {labels: {app: web, version: v2}}
    spec:
      serviceAccountName: web
      containers: [{name: web, image: weft-testpod, args: [--http, '8080'], ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: stable, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: stable}}
  template:
    metadata: {labels: {app: stable}}
    spec:
      serviceAccountName: stable
      containers: [{name: stable, image: weft-testpod, args: [--http, '8080', --tcp, 'echo:9002']}]
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
 spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web-v1, namespace: shop},
 spec: {selector: {app: web, version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web-v2, namespace: shop},
 spec: {selector: {app: web, version: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: stable, namespace: shop},
 spec: {selector: {app: stable}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9002}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {serviceAccountName: client, containers: [{name: client, image: pause}]}
";

/// A TrafficSplit of the Service `web` with these weights of its versions.
#[must_use]
pub fn split(v1: u32, v2: u32) -> String {
    format!(
        "{{apiVersion: split.smi-spec.io/v1alpha4, kind: TrafficSplit, metadata: {{name: web, namespace: shop}}, \
         spec: {{service: web, backends: [{{service: web-v1, weight: {v1}}}, {{service: web-v2, weight: {v2}}}]}}}}\n"
    )
}

/// A TrafficTarget that lets only the service account `source` talk to the pods of the service account `destination`.
#[must_use]
pub fn target(name: &str, destination: &str, source: &str) -> String {
    format!(
        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {{name: all, namespace: shop}}\n\
         spec: {{matches: {{}}}}\n---\n\
         apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  destination: {{kind: ServiceAccount, name: {destination}, namespace: shop}}\n  \
         sources: [{{kind: ServiceAccount, name: {source}, namespace: shop}}]\n  \
         rules: [{{kind: TCPRoute, name: all}}]\n"
    )
}

/// A cluster with the shop in it, and no agent: the definitions are installed, and all of `web` goes to `v1`.
///
/// # Errors
/// When the cluster does not come up.
pub fn open() -> Result<Cluster> {
    let mut cluster = Cluster::new()?;
    cluster.install_crds()?;
    cluster.apply(PODS)?;
    cluster.apply(&split(1, 0))?;
    Ok(cluster)
}

/// What the client's request to a Service is answered: status and the first word of the body, which is the pod's name.
///
/// # Errors
/// When the Service has no address.
pub fn ask(cluster: &Cluster, service: &str) -> Result<(String, String)> {
    let url = format!("http://{}/", cluster.service_ip(NAMESPACE, service)?);
    ask_at(cluster, &url)
}

/// As [`ask`], for a URL: the API server need not be there to tell an address.
///
/// # Errors
/// When curl cannot be run.
pub fn ask_at(cluster: &Cluster, url: &str) -> Result<(String, String)> {
    let mut curl = cluster.pod(NAMESPACE, "client")?.pod.command("curl");
    let output =
        curl.args(["-s", "--max-time", "10", "-w", "\n%{http_code}", url]).output().context("cannot run curl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').with_context(|| format!("curl said {text:?}"))?;
    Ok((code.to_owned(), body.split_whitespace().next().unwrap_or_default().to_owned()))
}

/// What must not notice anything: clients that ask a Service again and again on connections that they keep, and one connection of bytes.
#[derive(Debug)]
pub struct Bystanders {
    asking: Process,
    talking: Process,
    service: String,
    before: ServerStats,
}

impl Bystanders {
    /// Starts them, towards the Service `stable`, and waits until they are answered.
    ///
    /// # Errors
    /// When they are not.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        const TALK_TIMEOUT_MS: &str = "600000";
        const REQUESTS_AT_FIRST: u64 = 200;
        const IN_TIME: std::time::Duration = std::time::Duration::from_secs(30);
        let ip = cluster.service_ip(NAMESPACE, "stable")?;
        let client = &cluster.pod(NAMESPACE, "client")?.pod;
        let mut asking = client.testpod()?;
        asking.args(["watch", "--connections", "2", "--to", &SocketAddr::from((ip, 80)).to_string()]);
        let asking = client.spawn(asking)?;
        let mut talking = client.testpod()?;
        talking.args(["talk", "--to", &SocketAddr::from((ip, ECHO)).to_string(), "--timeout-ms", TALK_TIMEOUT_MS]);
        talking.args(["--step", "send:hello", "--step", "until:hello", "--step", "end"]);
        let talking = client.spawn(talking)?;
        let stable = cluster.pod(NAMESPACE, "stable-1")?;
        let before = wait::until("requests and bytes to flow", IN_TIME, || {
            let stats = stable.stats()?;
            Ok((stats.requests() > REQUESTS_AT_FIRST && stats.connections_to(ECHO) == 1).then_some(stats))
        })?;
        Ok(Self { asking, talking, service: "stable-1".to_owned(), before })
    }

    /// Whether nothing happened to them: every request so far was answered with 200, no connection has ended, and none was added behind
    /// the agent.
    ///
    /// # Errors
    /// When something did.
    pub fn are_undisturbed(&mut self, cluster: &Cluster) -> Result<()> {
        for (what, process) in [("requests", &mut self.asking), ("the connection of bytes", &mut self.talking)] {
            if let Some(status) = process.has_ended()? {
                anyhow::bail!("{what} ended with {status}: {}", process.log_tail(crate::limits::LOG_TAIL_LINES));
            }
        }
        let now = cluster.pod(NAMESPACE, &self.service)?.stats()?;
        ensure!(now.requests() > self.before.requests(), "no request came meanwhile: {now:?}");
        ensure!(now.connections() == self.before.connections(), "{:?} became {now:?}", self.before);
        Ok(())
    }
}
