//! End-to-end cases of Open Service Mesh, the fullest implementer of SMI, on a real API server: traffic targets by route and their deletion,
//! the permissive switch, headless Services, several ports and Services of one pod, TCP whoever speaks first, probes, splits under access
//! control, and a controller that restarts.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use weft_integration::{
    AgentOptions, Cluster, command, limits,
    shop::{self, ASK, GREET},
    wait,
};

const NAMESPACE: &str = "osm";
/// Ports of the server that speak HTTP.
const HTTP: [u16; 2] = [8080, 8081];

const PODS: &str = "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: server, namespace: osm}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: one, namespace: osm}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: two, namespace: osm}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: osm}
spec:
  replicas: 1
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      serviceAccountName: server
      containers:
      - name: server
        image: weft-testpod
        args: [--http, '8080', --http, '8081', --tcp, 'ask:9000', --tcp, 'greet:9001']
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: osm}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http-second, port: 81, targetPort: 8081}
  - {name: tcp-ask, port: 9000}
  - {name: tcp-greet, port: 9001}
---
apiVersion: v1
kind: Service
metadata: {name: server-again, namespace: osm}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: osm}
spec: {clusterIP: None, selector: {app: server}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: osm}
spec: {serviceAccountName: one, containers: [{name: client, image: pause}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: osm}
spec: {serviceAccountName: two, containers: [{name: client, image: pause}]}
";

const ROUTES: &str = "
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: routes, namespace: osm}
spec:
  matches:
  - {name: anything, pathRegex: /anything, methods: [GET]}
  - {name: foo, pathRegex: /foo, methods: [GET]}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: one, namespace: osm}
spec:
  destination: {kind: ServiceAccount, name: server, namespace: osm}
  sources: [{kind: ServiceAccount, name: one, namespace: osm}]
  rules: [{kind: HTTPRouteGroup, name: routes, matches: [anything]}]
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: two, namespace: osm}
spec:
  destination: {kind: ServiceAccount, name: server, namespace: osm}
  sources: [{kind: ServiceAccount, name: two, namespace: osm}]
  rules: [{kind: HTTPRouteGroup, name: routes, matches: [foo]}]
";

const TCP: &str = "
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {name: tcp, namespace: osm}
spec: {matches: {ports: [9000, 9001]}}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: tcp, namespace: osm}
spec:
  destination: {kind: ServiceAccount, name: server, namespace: osm}
  sources: [{kind: ServiceAccount, name: one, namespace: osm}]
  rules: [{kind: TCPRoute, name: tcp}]
";

/// A root that is its own only backend.
const SPLIT: &str = "
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: recursive, namespace: osm}
spec: {service: server, backends: [{service: server, weight: 100}]}
";

fn namespace(stance: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, \
         labels: {{weft.dev/mesh: enabled, weft.dev/default: {stance}}}}}}}"
    )
}

/// The status of an answer to a client; none if there is no answer.
fn code(cluster: &Cluster, client: &str, to: &str, path: &str) -> Result<Option<u16>> {
    let mut curl = cluster.pod(NAMESPACE, client)?.pod.command("curl");
    curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", &format!("http://{to}{path}")]);
    Ok(command::output(&mut curl).ok().and_then(|code| code.parse().ok()))
}

/// Everywhere where the server can be reached by HTTP.
fn ways(cluster: &Cluster) -> Result<Vec<String>> {
    let server = &cluster.pod(NAMESPACE, "server-1")?.pod;
    let vip = cluster.service_ip(NAMESPACE, "server")?;
    let again = cluster.service_ip(NAMESPACE, "server-again")?;
    let hosts = std::fs::read_to_string(cluster.hosts_file())?;
    let headless = hosts.lines().find_map(|line| line.strip_suffix(" headless.osm.svc.cluster.local"));
    let headless = headless.context("DNS knows the headless Service")?;
    ensure!(headless == server.ipv4().to_string(), "the pod itself: {headless}");
    Ok(vec![
        format!("{vip}:80"),
        format!("{vip}:81"),
        format!("{again}:80"),
        format!("{headless}:{}", HTTP[0]),
        format!("{}:{}", server.ipv4(), HTTP[1]),
    ])
}

/// Waits until the first way answers so, and then wants it of every way.
fn expect(cluster: &Cluster, wanted: &[(&str, &str, u16)]) -> Result<()> {
    let ways = ways(cluster)?;
    let mut last = BTreeMap::new();
    wait::until(&format!("answers {wanted:?}"), limits::APPLY_TIMEOUT, || {
        for (client, path, _) in wanted {
            last.insert((*client, *path), code(cluster, client, &ways[0], path)?);
        }
        Ok(wanted.iter().all(|(client, path, wanted)| last[&(*client, *path)] == Some(*wanted)).then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))?;
    for way in &ways {
        for (client, path, wanted) in wanted {
            let found = code(cluster, client, way, path)?;
            ensure!(found == Some(*wanted), "{client} to {way}{path}: {found:?}, not {wanted}");
        }
    }
    Ok(())
}

/// How many of five connections were served.
fn served(cluster: &Cluster, client: &str, speech: &str, port: u16) -> Result<u64> {
    let to = format!("{}:{port}", cluster.service_ip(NAMESPACE, "server")?);
    let args = ["--to", &to, "--connections", "5", "--speech", speech];
    Ok(shop::load(&cluster.pod(NAMESPACE, client)?.pod, &args)?.served)
}

#[test]
fn the_cases_of_osm_hold() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.install_crds()?;
    cluster.apply(&namespace("deny"))?;
    cluster.apply(PODS)?;
    cluster.start_agent(AgentOptions::default())?;
    cluster.wait_captured(NAMESPACE)?;
    expect(&cluster, &[("one", "/anything", 403), ("two", "/foo", 403)]).context("no policy")?;

    cluster.apply(ROUTES)?;
    let by_route = [("one", "/anything", 200), ("one", "/foo", 403), ("two", "/foo", 200), ("two", "/anything", 403)];
    expect(&cluster, &by_route).context("traffic target by route")?;

    let probe = format!("http://{}:{}/", cluster.pod(NAMESPACE, "server-1")?.pod.ipv4(), HTTP[0]);
    command::output(cluster.node.command("curl").args(["-sSf", "--max-time", "10", &probe])).context("health probe")?;

    cluster.apply(SPLIT)?;
    cluster.agent()?.wait_shares(NAMESPACE, "server", &[("recursive", &[("server", 100.0)])])?;
    expect(&cluster, &by_route).context("recursive split under access control")?;
    cluster.delete(SPLIT)?;

    cluster.take_agent()?.kill()?;
    let gone = code(&cluster, "one", &ways(&cluster)?[0], "/anything")?;
    ensure!(gone.is_none_or(|code| code == 0), "without the agent nothing that policy guards is reached: {gone:?}");
    cluster.start_agent(AgentOptions::default())?;
    expect(&cluster, &by_route).context("controller restart")?;

    cluster.delete(ROUTES)?;
    expect(&cluster, &[("one", "/anything", 403), ("two", "/foo", 403)]).context("policy deletion")?;

    for (stance, code) in [("allow", 200), ("deny", 403), ("allow", 200), ("deny", 403)] {
        cluster.apply(&namespace(stance))?;
        expect(&cluster, &[("one", "/anything", code), ("two", "/foo", code)]).context("permissive switch")?;
    }

    for (speech, port) in [("ask", ASK), ("listen", GREET)] {
        ensure!(served(&cluster, "one", speech, port)? == 0, "{speech}: no policy");
    }
    cluster.apply(TCP)?;
    for (speech, port) in [("ask", ASK), ("listen", GREET)] {
        wait::until(&format!("{speech} to be served"), limits::APPLY_TIMEOUT, || {
            Ok((served(&cluster, "one", speech, port)? == 5).then_some(()))
        })?;
        ensure!(served(&cluster, "two", speech, port)? == 0, "{speech}: not a source");
    }
    ensure!(code(&cluster, "one", &ways(&cluster)?[0], "/anything")? == Some(403), "a port that no route names");
    Ok(())
}
