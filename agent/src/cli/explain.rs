//! `weft explain`: asks the running agent, or the engine itself on a directory of manifests.

use std::path::PathBuf;

use weft_crds::{
    lower::lower,
    parse::{self, Parsed},
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    explain::{Answer, BackendAnswer, EndpointAnswer, Outcome, Question, QuestionError, RequestQuestion, explain},
    inbound::Stance,
    names::ObjectRef,
};

use super::files::{self, FilesError};
use crate::{
    config::{DefaultMtls, DefaultStance, OutputFormat},
    report,
};

/// `weft explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// Who asks: NAMESPACE/POD, sa:NAMESPACE/ACCOUNT, or "outside" for somebody without an identity.
    #[arg(value_name = "SRC")]
    pub source: String,
    /// What for: NAMESPACE/SERVICE, SERVICE.NAMESPACE[.svc...], NAMESPACE/POD, IP; a port (number or name) behind a colon. "svc:" or
    /// "pod:" in front says which is meant.
    #[arg(value_name = "DST[:PORT]")]
    pub destination: String,
    /// Method of the request. Without one the connection alone is asked for.
    #[arg(requires = "path")]
    pub method: Option<String>,
    /// Path of the request.
    pub path: Option<String>,
    /// A header of the request: "name: value". May be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Namespace of names that have none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Datagrams (UDP) to a pod's port, instead of a connection.
    #[arg(long, conflicts_with = "method")]
    pub udp: bool,
    /// What holds in these manifests where no TrafficTarget selects a pod and its namespace does not say: as the agent's option of
    /// this name.
    #[arg(long, value_enum, requires = "manifests", default_value_t)]
    pub default_stance: DefaultStance,
    /// Whether pods of these manifests take plaintext from elsewhere where their namespace does not say: as the agent's option of this
    /// name.
    #[arg(long, value_enum, requires = "manifests", default_value_t)]
    pub mtls: DefaultMtls,
    /// Ask these manifests instead of the agent. What is not used of them is told by `weft lint`.
    #[arg(long, value_name = "FILE|DIR|-")]
    pub manifests: Vec<PathBuf>,
}

impl ExplainArgs {
    /// The question.
    #[must_use]
    pub fn question(&self) -> Question {
        let request = self.method.as_ref().zip(self.path.as_ref());
        Question {
            source: self.source.clone(),
            destination: self.destination.clone(),
            namespace: self.namespace.clone(),
            udp: self.udp,
            request: request.map(|(method, path)| RequestQuestion {
                method: method.clone(),
                path: path.clone(),
                headers: self.headers.clone(),
            }),
        }
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| "expected \"name: value\"".to_owned())?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// A file cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The question is none.
    #[error(transparent)]
    Question(#[from] QuestionError),
}

/// Answers from manifests, with the agent's own engine.
///
/// # Errors
/// When a file cannot be read, or the question names what is not there.
pub fn offline(args: &ExplainArgs) -> Result<Answer, ExplainError> {
    let mut events = Vec::new();
    for source in files::read(&args.manifests)? {
        let Ok(value) = source.value else { continue };
        let Parsed { objects, .. } = parse::parse(&value);
        events.extend(objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)));
    }
    let mut store = ObjectStore::new(args.mtls.is_strict());
    let dirty = store.apply(events);
    let mut compiler = Compiler::default();
    compiler.set_default_stance(Stance { deny: args.default_stance == DefaultStance::Deny, origin: None });
    compiler.apply(lower(&store, &dirty));
    Ok(explain(&compiler, &args.question())?)
}

/// Whether the answer is a plain yes.
#[must_use]
pub fn is_yes(answer: &Answer) -> bool {
    answer.outcome == Outcome::Allowed
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Allowed => "ALLOWED",
        Outcome::Denied => "DENIED",
        Outcome::SomeRequests => "SOME REQUESTS ONLY",
        Outcome::SomeEndpoints => "BY SOME ENDPOINTS ONLY",
        Outcome::Unavailable => "UNAVAILABLE",
        Outcome::Unknown => "NOT KNOWN HERE",
    }
}

/// For people or programs.
#[must_use]
pub fn show(answer: &Answer, format: OutputFormat) -> String {
    if format == OutputFormat::Json {
        return report::json(answer);
    }
    let mut out = format!("{}: {}\n\n", word(answer.outcome), answer.summary);
    out.push_str(&format!("from   {}", answer.source.text));
    if let Some(node) = &answer.source.node {
        out.push_str(&format!(", node {node}"));
    }
    let destination = &answer.destination;
    out.push_str(&format!(
        "\nto     {}, port {} ({})\n",
        destination.object,
        destination.port,
        if destination.udp { "udp" } else { destination.protocol.as_str() }
    ));
    match &answer.route {
        None => out.push_str("route  none: a pod's own address is not routed\n"),
        Some(route) => {
            let named = |origin: &ObjectRef, rule: &str| match rule {
                "" => origin.to_string(),
                rule => format!("{origin}, {rule}"),
            };
            out.push_str(&format!("route  {}: {}\n", named(&route.origin, &route.rule), route.matches));
            for does in &route.does {
                out.push_str(&format!("       {does}\n"));
            }
            for passed in &route.passed_over {
                out.push_str(&format!(
                    "       does not match {}: {}\n",
                    named(&passed.origin, &passed.rule),
                    passed.matches
                ));
            }
        }
    }
    for backend in &answer.backends {
        out.push_str(&self::backend(backend));
    }
    for note in &answer.notes {
        out.push_str(&format!("note   {note}\n"));
    }
    for finding in &answer.findings {
        let field = if finding.field.is_empty() { String::new() } else { format!(", {}", finding.field) };
        out.push_str(&format!("found  {}{field}: {} [{}]\n", finding.object, finding.message, finding.code));
    }
    out.trim_end().to_owned()
}

fn backend(backend: &BackendAnswer) -> String {
    let mut out = match &backend.service {
        Some(service) => format!(
            "share  Service {service}, port {}: weight {}, {:.1} % now, {} ready\n",
            backend.port,
            backend.weight,
            backend.share_percent,
            backend.endpoints.len()
        ),
        None => String::new(),
    };
    // Pods of one account mostly get one answer.
    let mut rest: Vec<&EndpointAnswer> = backend.endpoints.iter().collect();
    while let Some(first) = rest.first().copied() {
        let same = |one: &EndpointAnswer| {
            one.outcome == first.outcome
                && one.basis == first.basis
                && one.targets == first.targets
                && one.account == first.account
        };
        let (alike, others): (Vec<&EndpointAnswer>, Vec<&EndpointAnswer>) = rest.iter().partition(|one| same(one));
        rest = others;
        let name = |one: &EndpointAnswer| {
            one.pod.as_ref().map_or_else(|| one.address.clone(), |pod| format!("{pod} ({})", one.address))
        };
        let mut names: Vec<String> = alike.iter().take(ENDPOINTS_SHOWN).map(|one| name(one)).collect();
        if alike.len() > ENDPOINTS_SHOWN {
            names.push(format!("{} more", alike.len() - ENDPOINTS_SHOWN));
        }
        let account = first.account.as_ref().map_or_else(String::new, |account| format!(", service account {account}"));
        out.push_str(&format!("       {}{account}\n", names.join(", ")));
        out.push_str(&format!("         {}: {}\n", word(first.outcome).to_lowercase(), first.basis));
        for target in &first.targets {
            let verb = if target.grants { "grants" } else { "does not grant" };
            out.push_str(&format!("         {} {verb}: {}\n", target.origin, target.why));
        }
    }
    out
}

/// Endpoints with the same answer that are named before the rest is counted.
const ENDPOINTS_SHOWN: usize = 5;

#[cfg(test)]
mod tests;
