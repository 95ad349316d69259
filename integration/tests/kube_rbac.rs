//! The chart's rules for agents and for the authority are what those ask for, seen by the requests that both make: nothing that they ask is
//! missing, and nothing is given that they never ask.

use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{
    AgentOptions, Cluster, command,
    kube::{
        Authority, AuthorityOptions, Fault,
        authority::NAMESPACE,
        server::{AGENT, Request},
    },
    limits, wait,
};

/// Every status of what is published has been written by then, ten in half a second; and a root has been rotated.
const IN_TIME: Duration = Duration::from_secs(120);
/// What an earlier agent of this node left, for which there is no pod.
const LEFT: &str = "node-a-3";
/// A pod for which there is a certificate, so that it is published.
const POD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: node-a, serviceAccountName: web, containers: [{name: web, image: pause}]}
";

/// Objects beside SMI's whose status an agent writes.
const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: weft.dev/v1alpha1
kind: BackendPolicy
metadata: {name: web, namespace: shop}
spec: {targetRefs: [{kind: Service, name: web}], loadBalancing: {type: Random}}
---
apiVersion: weft.dev/v1alpha1
kind: FaultInjection
metadata: {name: web, namespace: shop}
spec: {targetRefs: [{kind: Service, name: web}], abort: {httpStatus: 503, percent: 1}}
";

fn workspace(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Something that may be done.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    /// With its subresource.
    resource: String,
    verb: String,
    /// Only in the namespace of weft itself.
    at_home: bool,
    /// Only to the object of this name.
    name: Option<String>,
}

impl fmt::Debug for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resource, verb, at_home, name } = self;
        let place = if *at_home { "at home" } else { "everywhere" };
        write!(f, "{verb} {resource}.{group} {} {place}", name.as_deref().unwrap_or("*"))
    }
}

impl Right {
    /// As RBAC decides: a rule with names is no rule for what makes an object, or asks for many.
    fn allows(&self, request: &Request) -> bool {
        let resource = match &*request.subresource {
            "" => request.resource.clone(),
            subresource => format!("{}/{subresource}", request.resource),
        };
        self.group == request.group
            && self.resource == resource
            && self.verb == request.verb
            && (!self.at_home || request.namespace == NAMESPACE)
            && self.name.as_ref().is_none_or(|name| *name == request.name && request.verb != "create")
    }
}

/// What the roles of this name allow.
fn rights(cluster: &Cluster, template: &str, name: &str) -> Result<BTreeSet<Right>> {
    let mut helm = cluster.server.helm();
    helm.args(["template", "weft"]).arg(workspace("manifests/weft")).args(["--namespace", NAMESPACE]);
    let text = command::output(helm.args(["--show-only", &format!("templates/{template}.yaml")]))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let mut rights = BTreeSet::new();
    for kind in ["ClusterRole", "Role"] {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        let role = documents.iter().find(is_it).with_context(|| format!("there is no {kind} {name}"))?;
        for rule in role["rules"].as_array().into_iter().flatten() {
            let words = |field: &str| -> Vec<String> {
                let words = rule[field].as_array().into_iter().flatten();
                words.filter_map(|word| Some(word.as_str()?.to_owned())).collect()
            };
            let names = words("resourceNames");
            let names = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    for verb in words("verbs") {
                        for name in &names {
                            let (group, resource, verb) = (group.clone(), resource.clone(), verb.clone());
                            rights.insert(Right { group, resource, verb, at_home: kind == "Role", name: name.clone() });
                        }
                    }
                }
            }
        }
    }
    ensure!(rights.len() > 10, "{rights:?}");
    Ok(rights)
}

/// The rights that nothing of this makes use of, where every request is allowed.
fn unused<'a>(rights: &'a BTreeSet<Right>, requests: &BTreeSet<Request>) -> Result<BTreeSet<&'a Right>> {
    for request in requests {
        ensure!(rights.iter().any(|right| right.allows(request)), "the chart's rules do not allow {request:?}");
    }
    Ok(rights.iter().filter(|right| !requests.iter().any(|request| right.allows(request))).collect())
}

/// What the agent has asked for, as it has to be allowed.
fn of_agent(cluster: &Cluster) -> Result<BTreeSet<Request>> {
    let requests = cluster.server.requests()?.into_iter();
    let mut asked: BTreeSet<Request> =
        requests.filter(|request| request.user == AGENT && !request.resource.is_empty()).collect();
    // To apply an object that is not there yet takes leave to create it, too. It has no verb of its own in what was seen.
    let is_made =
        |request: &&Request| request.resource == "nodeworkloads" && request.verb == "patch" && request.name != LEFT;
    let made: Vec<Request> = asked.iter().filter(is_made).cloned().collect();
    asked.extend(made.into_iter().map(|request| Request { verb: "create".to_owned(), ..request }));
    Ok(asked)
}

/// A request line, `GET /api/v1/pods?watch=true`, in the words of RBAC; `None` for what is no resource.
fn of_line(line: &str) -> Option<Request> {
    let (method, target) = line.split_once(' ')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut words: Vec<&str> = path.split('/').skip(1).collect();
    let group = match *words.first()? {
        "api" => {
            words.drain(..2.min(words.len()));
            ""
        }
        "apis" => {
            let group = *words.get(1)?;
            words.drain(..3.min(words.len()));
            group
        }
        _ => return None,
    };
    // A namespace is an object itself, and what is in one comes behind its name.
    let namespace = match *words {
        ["namespaces", namespace, _, ..] => {
            words.drain(..2);
            namespace
        }
        _ => "",
    };
    let (resource, name) = (*words.first()?, words.get(1).copied().unwrap_or_default());
    let verb = match method {
        "GET" if query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")) => "watch",
        "GET" if name.is_empty() => "list",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if name.is_empty() => "deletecollection",
        "DELETE" => "delete",
        _ => method,
    };
    Some(Request {
        user: String::new(),
        verb: verb.to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        subresource: words.get(2).copied().unwrap_or_default().to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        path: String::new(),
    })
}

/// A cluster with a pod in the mesh, and an authority.
fn cluster(options: AuthorityOptions) -> Result<(Cluster, Authority)> {
    let mut cluster = Cluster::new()?;
    cluster.install_crds()?;
    cluster.install_gateway_crds()?;
    cluster.apply(POD)?;
    cluster.apply(OBJECTS)?;
    let authority = Authority::start_with(&mut cluster, options)?;
    Ok((cluster, authority))
}

/// An agent that has a certificate, and has published its pod.
fn start_agent(cluster: &mut Cluster, authority: &Authority, more: &[&str]) -> Result<()> {
    let mut arguments = authority.agent_arguments("node-a")?;
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    cluster.start_agent(AgentOptions { arguments, ..AgentOptions::default() })?;
    wait::until("the pod to be published", limits::APPLY_TIMEOUT, || {
        let objects = cluster.server.list("/apis/weft.dev/v1alpha1/nodeworkloads")?;
        Ok(objects.iter().any(|object| object["spec"]["pods"][0]["name"] == "web").then_some(()))
    })
}

#[test]
fn what_the_chart_allows_agents_is_what_they_ask_for() -> Result<()> {
    let (mut cluster, authority) = cluster(AuthorityOptions::default())?;
    let rights = rights(&cluster, "rbac", "weft-agent")?;
    let left = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: NodeWorkloads\nmetadata: {{name: {LEFT}, labels: {{weft.dev/node: node-a}}}}\n\
         spec: {{node: node-a, pods: []}}\n"
    );
    cluster.apply(&left)?;
    cluster.apply(&std::fs::read_to_string(workspace("integration/published/smi.yaml"))?)?;
    start_agent(&mut cluster, &authority, &["--daemonset", "weft-agent", "--pod-namespace", NAMESPACE])?;
    let mut last = String::new();
    wait::until("every right but one to be used", IN_TIME, || {
        let asked = of_agent(&cluster)?;
        let unused = unused(&rights, &asked)?;
        last = format!("{unused:?}");
        Ok(unused.iter().all(|right| right.resource == "daemonsets").then_some(()))
    })
    .with_context(|| format!("never used: {last}"))?;
    // That one it uses when it is told to stop. The DaemonSet is not there: weft is being removed.
    cluster.take_agent()?.stop()?;
    let (asked, objects) = (of_agent(&cluster)?, cluster.server.list("/apis/weft.dev/v1alpha1/nodeworkloads")?);
    let unused = unused(&rights, &asked)?;
    ensure!(unused.is_empty() && objects.is_empty(), "never used: {unused:?}; left: {objects:?}");
    Ok(())
}

#[test]
fn what_the_chart_allows_the_authority_is_what_it_asks_for() -> Result<()> {
    let arguments = ["--propagation-s", "1", "--takeover-s", "2"].map(str::to_owned).to_vec();
    let (mut cluster, authority) = cluster(AuthorityOptions { replicas: 2, arguments })?;
    let rights = rights(&cluster, "authority", "weft-ca")?;
    start_agent(&mut cluster, &authority, &[])?;
    // Agents' reports are written down only while they are waited for.
    authority.rotate_root(&cluster)?;
    let asked = || {
        let lines = authority.faults.asked();
        let mut asked: BTreeSet<Request> = lines.iter().filter_map(|asked| of_line(&asked.line)).collect();
        // Whoever writes a bundle in a signer's name has to be allowed that, too; the API server asks for it by itself.
        let is_written = |request: &Request| request.resource == "clustertrustbundles" && request.verb != "get";
        if let Some(request) = asked.iter().find(|request| is_written(request)).cloned() {
            let (resource, verb, name) = ("signers".to_owned(), "attest".to_owned(), "weft.dev/identity".to_owned());
            asked.insert(Request { resource, verb, name, ..request });
        }
        asked
    };
    // A pod that the watch has told of need not be asked for.
    let is_asked_for_by_name = |right: &Right| right.resource == "pods" && right.verb == "get";
    let mut last = String::new();
    wait::until("every right but one to be used, and the root to be another one", IN_TIME, || {
        let (unused, phase) = (unused(&rights, &asked())?, authority.phase(&cluster)?);
        last = format!("in phase {phase}, never used: {unused:?}");
        Ok((unused.iter().all(|right| is_asked_for_by_name(right)) && phase == "steady").then_some(()))
    })
    .with_context(|| last.clone())?;
    authority.faults.set(&["GET /api/v1/pods?"], Fault::Answer(503, None, "{}"));
    cluster.apply(&POD.replace("web", "late"))?;
    wait::until("the last one to be used", IN_TIME, || Ok(unused(&rights, &asked())?.is_empty().then_some(())))
}

#[test]
fn a_request_line_is_read_in_the_words_of_rbac() {
    let words = |line: &str| {
        let Request { verb, group, resource, subresource, namespace, name, .. } = of_line(line)?;
        Some([verb, group, resource, subresource, namespace, name].join(" "))
    };
    for (line, expected) in [
        ("GET /api/v1/pods?limit=500", Some("list  pods   ")),
        ("GET /api/v1/pods?allowWatchBookmarks=true&watch=true", Some("watch  pods   ")),
        ("GET /api/v1/namespaces", Some("list  namespaces   ")),
        ("GET /api/v1/namespaces/shop", Some("get  namespaces   shop")),
        ("GET /api/v1/namespaces/shop/pods/web", Some("get  pods  shop web")),
        ("PATCH /api/v1/namespaces/shop/pods/web/status", Some("patch  pods status shop web")),
        ("POST /apis/authentication.k8s.io/v1/tokenreviews", Some("create authentication.k8s.io tokenreviews   ")),
        ("DELETE /api/v1/namespaces/a/configmaps/b", Some("delete  configmaps  a b")),
        ("PUT /apis/coordination.k8s.io/v1/namespaces/a/leases/b", Some("update coordination.k8s.io leases  a b")),
        ("GET /version", None),
        ("GET /apis", None),
    ] {
        assert_eq!(words(line).as_deref(), expected, "{line}");
    }
}
