//! Whatever the API server answers for one kind of object, the kinds beside it are followed, what is known of this one stays in force, and
//! the agent asks neither too often nor never again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_integration::{
    Agent, AgentOptions, Cluster,
    agent::Source,
    kube::{
        Fault, Faults,
        shop::{self, Bystanders, NAMESPACE},
    },
    wait,
};

const IN_TIME: Duration = Duration::from_secs(60);
/// What a fault says of the pause that it wants.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// So often a kind may be asked for while it fails: pauses double from 0.1 s on, and there are a list and a watch to each try.
const REQUESTS_A_SECOND_MAX: f64 = 10.0;

/// What of a kind fails.
const LIST_AND_WATCH: &[&str] = &["trafficsplits"];
const WATCH: &[&str] = &["trafficsplits", "watch=true"];

struct Case {
    name: &'static str,
    words: &'static [&'static str],
    fault: Fault,
    reason: &'static str,
    /// The pause that it asks for.
    pause: Duration,
}

fn cases() -> Vec<Case> {
    let case = |name, words, fault, reason| Case { name, words, fault, reason, pause: Duration::ZERO };
    let answer = Fault::Answer;
    let status_410 = concat!(
        r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","code":410,"reason":"Expired","message":"too old"}}"#,
        "\n"
    );
    vec![
        case("401", LIST_AND_WATCH, answer(401, None, ""), "unauthorized"),
        case(
            "403",
            LIST_AND_WATCH,
            answer(403, None, r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"no"}"#),
            "forbidden",
        ),
        Case {
            pause: RETRY_AFTER,
            ..case("429", LIST_AND_WATCH, answer(429, Some(("retry-after", "3")), "slow down"), "throttled")
        },
        case("500", LIST_AND_WATCH, answer(500, None, "oops"), "refused"),
        case(
            "a page for people",
            LIST_AND_WATCH,
            answer(503, Some(("content-type", "text/html")), "<html>no</html>"),
            "refused",
        ),
        case("no JSON in a list and a watch", LIST_AND_WATCH, answer(200, None, "\u{1}{{{"), "unreadable"),
        case("a line that is no JSON", WATCH, answer(200, None, "{\"type\": \"ADD\n"), "unreadable"),
        case(
            "an event of another type",
            WATCH,
            answer(200, None, "{\"type\":\"RENAMED\",\"object\":{}}\n"),
            "unreadable",
        ),
        case("an event without an object", WATCH, answer(200, None, "{\"type\":\"ADDED\"}\n"), "unreadable"),
        case("gone", WATCH, answer(200, None, status_410), "expired"),
        case("an answer that is cut short", LIST_AND_WATCH, Fault::Cut(40), "unreachable"),
    ]
}

fn start(cluster: &mut Cluster, faults: &Faults) -> Result<()> {
    let options = AgentOptions { workers: Some(1), ..AgentOptions::default() };
    let kubeconfig = faults.kubeconfig(&cluster.server)?;
    cluster.set_agent(Agent::start_from(&cluster.node, Source::Kubeconfig(&kubeconfig), options)?);
    cluster.wait_captured(NAMESPACE)
}

fn of_split(agent: &Agent, metric: &str, label: &str) -> Result<f64> {
    agent.metric(metric, &["kind=\"TrafficSplit\"", label])
}

#[test]
fn a_kind_that_cannot_be_read_stays_as_it_was_and_leaves_the_others_alone() -> Result<()> {
    let mut cluster = shop::open()?;
    let faults = Faults::before(&cluster.node, &cluster.server)?;
    start(&mut cluster, &faults)?;
    let mut bystanders = Bystanders::start(&cluster)?;
    let mut weights = (1, 0);
    for case in cases() {
        let before = of_split(cluster.agent()?, "weft_source_errors_total", &format!("reason=\"{}\"", case.reason))?;
        let requests_before = faults.asked().len();
        let since = Instant::now();
        faults.set(case.words, case.fault);
        // Of an answer that is cut short, what is whole may be read: a watch of a kind that does not change has nothing to cut.
        cluster.apply(&shop::split(weights.1, weights.0)).context(case.name)?;
        weights = (weights.1, weights.0);
        let agent = cluster.agent()?;
        wait::until(&format!("{} to be told as {}", case.name, case.reason), IN_TIME, || {
            let now = of_split(agent, "weft_source_errors_total", &format!("reason=\"{}\"", case.reason))?;
            Ok((now >= before + 2.0).then_some(()))
        })
        .with_context(|| agent.log_tail())?;
        // Another kind is followed meanwhile.
        let name = format!("beside-{requests_before}");
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: 80}}]}}}}"
        ))?;
        let agent = cluster.agent()?;
        wait::until(&format!("{}: another kind to be followed", case.name), IN_TIME, || {
            Ok(agent.services()?.iter().any(|service| service.name == name).then_some(()))
        })?;
        let took = since.elapsed();
        let asked: Vec<_> = faults.asked().split_off(requests_before);
        let asked: Vec<_> = asked
            .iter()
            .filter(|asked| asked.line.starts_with("GET ") && asked.line.contains("/trafficsplits"))
            .collect();
        #[allow(clippy::cast_precision_loss, reason = "a few hundred requests")]
        let rate = asked.len() as f64 / took.as_secs_f64().max(1.0);
        ensure!(rate <= REQUESTS_A_SECOND_MAX, "{}: {} requests in {took:?}", case.name, asked.len());
        let refused: Vec<_> = asked.iter().filter(|asked| asked.code >= 400).collect();
        ensure!(
            refused.windows(2).all(|pair| pair[1].at - pair[0].at >= case.pause),
            "{}: asked again before {:?} had passed: {refused:?}",
            case.name,
            case.pause
        );
        bystanders.are_undisturbed(&cluster).context(case.name)?;

        faults.clear();
        let version = if weights.0 == 1 { "web-v1-1" } else { "web-v2-1" };
        wait::until(&format!("{}: the split to be followed again", case.name), IN_TIME, || {
            Ok((shop::ask(&cluster, "web")? == ("200".to_owned(), version.to_owned())).then_some(()))
        })
        .with_context(|| cluster.agent().map(Agent::log_tail).unwrap_or_default())?;
        let agent = cluster.agent()?;
        wait::until(&format!("{}: nothing to be stale", case.name), IN_TIME, || {
            Ok((agent.metric("weft_source_stale_seconds", &[])? == 0.0).then_some(()))
        })?;
    }
    bystanders.are_undisturbed(&cluster)
}
