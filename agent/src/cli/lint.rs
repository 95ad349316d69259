//! `weft lint`: what the agent would say of manifests, without an agent, with lines and what to do about it.
//!
//! Documents are parsed, lowered and compiled by the code that the agent runs, so there is no second opinion here about what is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::Serialize;
use serde_json::Value;
use weft_crds::{
    lower::lower,
    parse::{self, ParseError, Parsed},
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    diagnostic::{Diagnostic, Severity},
};

use super::files::{self, FilesError, Source};
use crate::{config::OutputFormat, limits, report};

mod advice;
mod strict;

/// `weft lint`.
#[derive(Clone, Debug, clap::Args)]
pub struct LintArgs {
    /// Files, directories (*.yaml, *.yml, *.json directly in them), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub paths: Vec<PathBuf>,
    /// The files hold everything there is: an object that they refer to and do not have is an error, not a note.
    #[arg(long)]
    pub complete: bool,
    /// Warnings count as errors.
    #[arg(long)]
    pub strict: bool,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The object, or a part of it, would have no effect.
    Error,
    /// Works, but probably not as meant.
    Warning,
    /// Cannot be told from these files.
    Note,
}

/// Something about one field of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file as it was named; `-` for standard input.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// Document inside the file, from 1.
    pub document: usize,
    /// `TrafficSplit shop/canary`, as far as it could be read.
    pub object: String,
    /// Path of the field, as far as known.
    pub field: String,
    /// How bad it is.
    pub level: Level,
    /// A word for the rule that it breaks: `UnknownField`, `BackendNotFound`.
    pub rule: String,
    /// What is wrong, and what comes of it.
    pub message: String,
    /// What to do about it; empty where nothing better than the message can be said.
    pub fix: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LintReport {
    /// Documents that were read; each item of a List is one.
    pub documents: usize,
    /// Objects that weft would use.
    pub objects: usize,
    /// Objects that weft has no use for, and that are fine so.
    pub ignored: usize,
    /// Findings by file and line.
    pub findings: Vec<Finding>,
}

impl LintReport {
    /// Whether anything counts as an error.
    #[must_use]
    pub fn failed(&self, strict: bool) -> bool {
        self.findings.iter().any(|finding| finding.level == Level::Error || (strict && finding.level == Level::Warning))
    }

    /// For people or programs.
    #[must_use]
    pub fn show(&self, format: OutputFormat) -> String {
        if format == OutputFormat::Json {
            return report::json(self);
        }
        let mut out = String::new();
        for one in &self.findings {
            let level = match one.level {
                Level::Error => "error",
                Level::Warning => "warning",
                Level::Note => "note",
            };
            let field = if one.field.is_empty() { String::new() } else { format!(", {}", one.field) };
            out.push_str(&format!(
                "{}:{}: {level}: {}{field}: {} [{}]\n",
                one.file, one.line, one.object, one.message, one.rule
            ));
            if !one.fix.is_empty() {
                out.push_str(&format!("    fix: {}\n", one.fix));
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        out.push_str(&format!(
            "{} documents, {} objects used, {} of no concern to weft: {} errors, {} warnings, {} notes",
            self.documents,
            self.objects,
            self.ignored,
            count(Level::Error),
            count(Level::Warning),
            count(Level::Note)
        ));
        out
    }
}

/// Runs it.
///
/// # Errors
/// When a file cannot be read.
pub fn run(args: &LintArgs) -> Result<LintReport, FilesError> {
    Ok(check(&files::read(&args.paths)?, args.complete))
}

/// Checks documents together: an object may refer to one of another file.
#[must_use]
pub fn check(sources: &[Source], complete: bool) -> LintReport {
    let mut report = LintReport { documents: sources.len(), ..LintReport::default() };
    let mut store = ObjectStore::default();
    let mut places: BTreeMap<String, &Source> = BTreeMap::new();
    let mut broken = BTreeSet::new();
    let mut events = Vec::new();
    for source in sources {
        let value = match &source.value {
            Ok(value) => value,
            Err(error) => {
                report.findings.push(Finding {
                    file: source.file.clone(),
                    line: error.line,
                    document: source.document,
                    object: "document".into(),
                    field: String::new(),
                    level: Level::Error,
                    rule: "NotYaml".into(),
                    message: error.message.clone(),
                    fix: String::new(),
                });
                continue;
            }
        };
        let Parsed { objects, errors, ignored } = parse::parse(value);
        report.ignored += ignored.len();
        for (object, _) in objects {
            let name = object.key().to_string();
            if let Some(error) = strict::of_target(&object) {
                refused(&mut report, source, value, &error, "it selects its destination and grants nothing");
            }
            if let Some(first) = places.get(name.as_str()) {
                let message = format!("the same object is at {}:{} too", first.file, first.line_of("metadata.name"));
                let fix = "keep one of them, or give this one another name".to_owned();
                push(&mut report, source, (&name, "metadata.name"), (Level::Error, "DuplicateObject"), (message, fix));
                continue;
            }
            report.objects += 1;
            places.insert(name, source);
            events.push(ObjectEvent::Apply(object));
        }
        for error in errors {
            broken.insert(error.object.clone());
            refused(&mut report, source, value, &error, "nothing of this object would be in force");
        }
    }
    let dirty = store.apply(events);
    let mut compiler = Compiler::default();
    compiler.apply(lower(&store, &dirty));
    for diagnostic in compiler.diagnostics() {
        // Told by field already.
        if diagnostic.code == strict::TARGET_INVALID {
            continue;
        }
        if let Some(source) = places.get(&diagnostic.object.to_string()) {
            found(&mut report, source, &diagnostic, complete, &broken);
        }
    }
    report.findings.sort();
    report.findings.dedup();
    report
}

fn push(
    report: &mut LintReport,
    source: &Source,
    (object, field): (&str, &str),
    (level, rule): (Level, &str),
    (message, fix): (String, String),
) {
    report.findings.push(Finding {
        file: source.file.clone(),
        line: source.line_of(field),
        document: source.document,
        object: object.to_owned(),
        field: field.to_owned(),
        level,
        rule: rule.to_owned(),
        message,
        fix,
    });
}

/// What parsing says of one object, and what comes of that.
fn refused(report: &mut LintReport, source: &Source, value: &Value, error: &ParseError, fate: &str) {
    for problem in strict::problems(value, error) {
        let (rule, fix) = advice::of_field(value, &problem);
        push(
            report,
            source,
            (&error.object, &problem.field),
            (Level::Error, rule),
            (format!("{}; {fate}", problem.message), fix),
        );
    }
}

/// What lowering and compilation say of one object.
fn found(report: &mut LintReport, source: &Source, diagnostic: &Diagnostic, complete: bool, broken: &BTreeSet<String>) {
    let level = match diagnostic.severity {
        // Most people lint the policy and not the Services that it is about.
        _ if !complete && advice::is_reference(diagnostic.code) && !names_one_of(broken, &diagnostic.message) => {
            Level::Note
        }
        Severity::Error => Level::Error,
        Severity::Warning => Level::Warning,
    };
    let message = if level == Level::Note {
        format!("not among these files, so this cannot be checked: {}", diagnostic.message)
    } else {
        diagnostic.message.clone()
    };
    push(
        report,
        source,
        (&diagnostic.object.to_string(), &diagnostic.field),
        (level, diagnostic.code),
        (message, advice::of_diagnostic(diagnostic.code).to_owned()),
    );
}

/// Whether what is missing is among the files, but refused.
fn names_one_of(broken: &BTreeSet<String>, message: &str) -> bool {
    broken.iter().any(|object| message.contains(object.as_str()))
}

/// As many problems of one object as are told at most; more would only follow from these.
const PROBLEMS_MAX: usize = limits::LINT_PROBLEMS_PER_OBJECT_MAX;

#[cfg(test)]
mod tests;
