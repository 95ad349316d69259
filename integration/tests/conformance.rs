//! The SMI conformance suite, case by case, on a real API server with manifests that kubectl applies; see `conformance/README.md`.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{
    AgentOptions, Cluster, command, limits,
    testpod::conformance::{Call, Called, Metrics},
    wait,
};

/// Port of the suite's applications.
const PORT: u16 = 9091;
/// Requests of one step of traffic-split.
const SPLIT_REQUESTS: usize = 50;

/// What has to be true of the requests that app-b and app-c received.
type Holds = fn(usize, usize) -> bool;

/// One suite, deployed in a namespace of its own.
struct Suite {
    cluster: Cluster,
    name: &'static str,
}

impl Suite {
    /// Step 02: the applications are ready, and captured.
    fn start(name: &'static str, stance: &str) -> Result<Self> {
        let mut cluster = Cluster::new()?;
        cluster.install_crds()?;
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, \
             labels: {{weft.dev/mesh: enabled, weft.dev/default: {stance}}}}}}}"
        ))?;
        let mut suite = Self { cluster, name };
        suite.apply("02-install")?;
        for app in ["app-a", "app-b", "app-c"] {
            let path = format!("/apis/apps/v1/namespaces/{name}/deployments/{app}-deployment");
            let deployment = suite.cluster.server.call("GET", &path, None)?;
            ensure!(deployment["status"]["readyReplicas"] == 1, "{deployment}");
        }
        suite.cluster.start_agent(AgentOptions::default())?;
        suite.cluster.wait_captured(name)?;
        Ok(suite)
    }

    fn text(&self, step: &str) -> Result<String> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance").join(self.name).join(step);
        let file = file.with_extension("yaml");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.replace("<NAMESPACE>", self.name))
    }

    fn apply(&mut self, step: &str) -> Result<()> {
        let text = self.text(step)?;
        self.cluster.apply(&text)
    }

    /// Step 01: the definition has these names.
    fn assert_definition(&self) -> Result<()> {
        let wanted: Value = serde_saphyr::from_str(&self.text("01-assert")?)?;
        let name = wanted["metadata"]["name"].as_str().context("a name")?;
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let found = self.cluster.server.call("GET", &path, None)?;
        ensure!(found["spec"]["group"] == wanted["spec"]["group"], "{found}");
        let (found, wanted) = (&found["status"]["acceptedNames"], &wanted["status"]["acceptedNames"]);
        for field in ["kind", "plural", "singular"] {
            ensure!(found[field] == wanted[field], "{field}: {found}");
        }
        let short = found["shortNames"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(
            wanted["shortNames"].as_array().is_some_and(|names| names.iter().all(|name| short.contains(name))),
            "{found}"
        );
        Ok(())
    }

    /// curl inside a pod, to its own application.
    fn exec(&self, app: &str, path: &str, args: &[&str]) -> Result<String> {
        let pod = &self.cluster.pod(self.name, &format!("{app}-deployment-1"))?.pod;
        let url = format!("http://127.0.0.1:{PORT}{path}");
        command::output(pod.command("curl").args(["-sS", "--max-time", "10"]).args(args).arg(url))
    }

    fn metrics(&self, app: &str) -> Result<Metrics> {
        serde_json::from_str(&self.exec(app, "/metrics", &[])?).context("cannot read the metrics")
    }

    fn clear(&self) -> Result<()> {
        ["app-a", "app-b", "app-c"].iter().try_for_each(|app| self.exec(app, "/metrics", &["-X", "DELETE"]).map(drop))
    }

    /// Lets app-a call.
    fn call(&self, url: &str, method: &str) -> Result<()> {
        let call = Call { url: url.to_owned(), method: method.to_owned(), body: String::new(), headers: [].into() };
        self.exec("app-a", "/call", &["-d", &serde_json::to_string(&call)?]).map(drop)
    }

    fn url(&self, service: &str, path: &str) -> String {
        // With the root's dot, as the suite writes it.
        format!("http://{service}.{}.svc.cluster.local.:{PORT}{path}", self.name)
    }

    /// Calls until calls end as they should: the suite waits five seconds for what was applied; here the effect itself is waited for. Then
    /// the case is played once, from a clean start.
    fn settle(&self, calls: &[(&str, &str, bool)]) -> Result<Metrics> {
        let play = || -> Result<Metrics> {
            self.clear()?;
            for (path, method, _) in calls {
                self.call(&self.url("app-b", path), method)?;
            }
            self.metrics("app-a")
        };
        let mut last = Metrics::default();
        wait::until(&format!("calls to end so: {calls:?}"), limits::APPLY_TIMEOUT, || {
            last = play()?;
            Ok(self.ended(&last, calls).then_some(()))
        })
        .with_context(|| format!("last: {last:?}"))?;
        let metrics = play()?;
        ensure!(self.ended(&metrics, calls), "settled, and then not: {metrics:?}");
        Ok(metrics)
    }

    fn ended(&self, metrics: &Metrics, calls: &[(&str, &str, bool)]) -> bool {
        let those = |allowed: bool| -> Vec<Called> {
            let wanted = calls.iter().filter(|(.., succeeds)| *succeeds == allowed);
            wanted
                .map(|(path, method, _)| Called { url: self.url("app-b", path), method: (*method).to_owned() })
                .collect()
        };
        metrics.resp_succeeded == those(true) && metrics.resp_failed == those(false)
    }
}

#[test]
fn traffic_access() -> Result<()> {
    let mut suite = Suite::start("traffic-access", "deny")?;
    suite.assert_definition().context("01")?;
    suite.settle(&[("/echo", "GET", false)]).context("03-trafficDefault")?;
    ensure!(suite.metrics("app-b")?.req_received.is_empty(), "03: nothing arrives");

    suite.apply("04-install")?;
    suite.settle(&[("/echo", "GET", true)]).context("05-trafficAllowed")?;
    ensure!(suite.metrics("app-b")?.req_received == ["app-a"], "05: {:?}", suite.metrics("app-b")?);

    let text = suite.text("04-install")?;
    suite.cluster.delete(&text).context("06")?;
    suite.settle(&[("/echo", "GET", false)]).context("07-trafficBlocked")?;
    ensure!(suite.metrics("app-b")?.req_received.is_empty(), "07: nothing arrives");
    Ok(())
}

#[test]
fn traffic_spec() -> Result<()> {
    let mut suite = Suite::start("traffic-spec", "deny")?;
    suite.assert_definition().context("01")?;
    suite.apply("03-install")?;
    suite.settle(&[("/metrics", "GET", true), ("/echo", "GET", false)]).context("04-trafficPath")?;
    suite.apply("05-install")?;
    suite.settle(&[("/echo", "GET", true), ("/echo", "POST", false)]).context("06-trafficMethod")?;
    Ok(())
}

#[test]
fn traffic_split() -> Result<()> {
    let mut suite = Suite::start("traffic-split", "allow")?;
    suite.assert_definition().context("01")?;
    let received = |suite: &Suite| -> Result<(usize, usize)> {
        suite.clear()?;
        let url = suite.url("app-svc", "/echo");
        for _ in 0..SPLIT_REQUESTS {
            suite.call(&url, "GET")?;
        }
        let (b, c) = (suite.metrics("app-b")?.req_received.len(), suite.metrics("app-c")?.req_received.len());
        ensure!(b + c == SPLIT_REQUESTS, "{b} and {c} of {SPLIT_REQUESTS} arrived");
        Ok((b, c))
    };
    let (b, c) = received(&suite)?;
    ensure!(b > 0 && c > 0, "03-trafficDefault: {b} and {c}");
    let steps: [(&str, f64, &str, Holds); 4] = [
        ("04-install", 100.0, "05-trafficOnlyB", |_, c| c == 0),
        ("06-install", 0.0, "07-trafficOnlyC", |b, _| b == 0),
        ("08-install", 75.0, "09-trafficBGrtC", |b, c| b > c),
        ("10-install", 25.0, "11-trafficCGrtB", |b, c| c > b),
    ];
    for (install, share_b, case, holds) in steps {
        suite.apply(install)?;
        let shares = [("app-b", share_b), ("app-c", 100.0 - share_b)];
        suite.cluster.agent()?.wait_shares(suite.name, "app-svc", &[("server-split", &shares)])?;
        let (b, c) = received(&suite)?;
        ensure!(holds(b, c), "{case}: {b} and {c}");
    }
    Ok(())
}
