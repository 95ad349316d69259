//! `weft convert`: Istio's objects as SMI's.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use weft_crds::convert::{self, Conversion, Refused};

use super::files::{self, FilesError, Source};
use crate::{config::OutputFormat, report};

/// `weft convert`.
#[derive(Clone, Debug, clap::Args)]
pub struct ConvertArgs {
    /// Files, directories (*.yaml, *.yml, *.json directly in them), or - for standard input. Give the Services that Istio's objects refer
    /// to among them: subsets become Services of their own.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub paths: Vec<PathBuf>,
    /// Give what can be carried of routing even where a part of an object cannot. Access is never converted in part.
    #[arg(long)]
    pub partial: bool,
}

/// What was converted, and what was not.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertReport {
    /// Manifests to apply.
    pub objects: Vec<Value>,
    /// What cannot be carried. Nothing comes of an object with such a field, unless the conversion is partial.
    pub refused: Vec<Remark>,
    /// What is carried, but not quite as it was.
    pub notes: Vec<Remark>,
    /// Objects that are none of Istio's.
    pub ignored: usize,
    /// The object that each manifest came from.
    #[serde(skip)]
    from: Vec<String>,
}

/// Something about a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The file as it was named; `-` for standard input.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// `VirtualService shop/web`.
    pub object: String,
    /// Path of the field; empty for the object as a whole.
    pub field: String,
    /// Why, and what to do instead.
    pub why: String,
}

impl ConvertReport {
    /// Whether everything was carried.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.refused.is_empty()
    }

    /// What belongs on standard output: the manifests, or everything as JSON.
    #[must_use]
    pub fn show(&self, format: OutputFormat) -> String {
        if format == OutputFormat::Json {
            return report::json(self);
        }
        let documents = self.objects.iter().zip(&self.from).map(|(object, from)| {
            let yaml = serde_saphyr::to_string(object).unwrap_or_else(|error| format!("# cannot be written: {error}"));
            format!("---\n# from {from}\n{}", yaml.trim_end())
        });
        documents.collect::<Vec<_>>().join("\n")
    }

    /// What belongs on standard error, a line each.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let line = |word: &str, one: &Remark| {
            let field = if one.field.is_empty() { String::new() } else { format!(", {}", one.field) };
            format!("{}:{}: {word}: {}{field}: {}", one.file, one.line, one.object, one.why)
        };
        let refused = self.refused.iter().map(|one| line("refused", one));
        refused.chain(self.notes.iter().map(|one| line("note", one))).collect()
    }
}

/// Runs it.
///
/// # Errors
/// When a file cannot be read.
pub fn run(args: &ConvertArgs) -> Result<ConvertReport, FilesError> {
    Ok(convert(&files::read(&args.paths)?, args.partial))
}

/// Converts documents together.
#[must_use]
pub fn convert(sources: &[Source], partial: bool) -> ConvertReport {
    let (good, broken): (Vec<&Source>, Vec<&Source>) = sources.iter().partition(|source| source.value.is_ok());
    let values: Vec<Value> = good.iter().filter_map(|source| source.value.clone().ok()).collect();
    let Conversion { objects, refused, notes, ignored } = convert::convert(&values, partial);
    let remark = |one: Refused| {
        let source = good[one.document];
        Remark {
            file: source.file.clone(),
            line: source.line_of(&one.field),
            object: one.object,
            field: one.field,
            why: one.why,
        }
    };
    let broken = broken.into_iter().filter_map(|source| {
        let error = source.value.as_ref().err()?;
        Some(Remark {
            file: source.file.clone(),
            line: error.line,
            object: "document".to_owned(),
            field: String::new(),
            why: format!("not valid YAML: {}", error.message),
        })
    });
    ConvertReport {
        refused: broken.chain(refused.into_iter().map(remark)).collect(),
        notes: notes.into_iter().map(remark).collect(),
        from: objects.iter().map(|one| one.from.clone()).collect(),
        objects: objects.into_iter().map(|one| one.manifest).collect(),
        ignored,
    }
}

#[cfg(test)]
mod tests;
