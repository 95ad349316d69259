//! A manifest file as a list of documents, each parsed on its own, so that one broken document leaves the others usable.

use serde_json::Value;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    /// From 1, counting empty ones.
    pub number: usize,
    /// Line of the file at which it starts, from 1.
    pub line: usize,
    /// As it is in the file, without its markers.
    pub text: String,
    /// The parsed document.
    pub value: Result<Value, YamlError>,
}

/// Why a document is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Line of the file, from 1.
    pub line: usize,
    /// What the parser said.
    pub message: String,
}

/// Splits a file at its document markers (YAML 1.2.2 section 9.1.1: `---` at the start of a line) and parses each document. Empty
/// documents and documents of comments alone are left out. JSON is YAML.
#[must_use]
pub fn documents(text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut number, mut first_line, mut chunk) = (1, 1, String::new());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end_matches(['\n', '\r']);
        let marker = content == "---" || content.starts_with("--- ") || content.starts_with("---\t");
        if marker || content == "..." {
            // The text before the first marker counts as a document only if there is any.
            let counts = number > 1 || !is_empty(&chunk) || !documents.is_empty();
            push(&mut documents, number, first_line, std::mem::take(&mut chunk));
            if counts {
                number += 1;
            }
            first_line = index + 2;
            if let Some(rest) = content.strip_prefix("---").filter(|rest| !rest.trim().is_empty()) {
                first_line = index + 1;
                chunk.push_str(rest);
                chunk.push('\n');
            }
        } else {
            chunk.push_str(line);
        }
    }
    push(&mut documents, number, first_line, chunk);
    documents
}

fn is_empty(chunk: &str) -> bool {
    chunk.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

fn push(documents: &mut Vec<Document>, number: usize, line: usize, chunk: String) {
    if is_empty(&chunk) {
        return;
    }
    let value = serde_saphyr::from_str::<Value>(&chunk).map_err(|error| {
        let error = error.without_snippet();
        let offset = error.location().map_or(1, |location| usize::try_from(location.line()).unwrap_or(1));
        YamlError { line: line + offset.saturating_sub(1), message: error.to_string() }
    });
    documents.push(Document { number, line, text: chunk, value });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Vec<(usize, usize, bool)> {
        documents(text).iter().map(|d| (d.number, d.line, d.value.is_ok())).collect()
    }

    #[test]
    fn documents_are_numbered_with_their_lines() {
        for (text, expected) in [
            ("a: 1\n", vec![(1, 1, true)]),
            ("a: 1\n---\nb: 2\n", vec![(1, 1, true), (2, 3, true)]),
            ("---\na: 1\n---\nb: 2", vec![(1, 2, true), (2, 4, true)]),
            ("# only words\n---\na: 1\n", vec![(1, 3, true)]),
            ("--- {a: 1}\n", vec![(1, 1, true)]),
            ("a: |\n  --- not a marker\n", vec![(1, 1, true)]),
            ("", vec![]),
            ("\n\n---\n---\n", vec![]),
            ("{\"a\": [1, 2]}", vec![(1, 1, true)]),
            ("a: 1\r\n---\r\nb: 2\r\n", vec![(1, 1, true), (2, 3, true)]),
        ] {
            assert_eq!(shape(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_broken_document_names_its_line_and_leaves_the_others() {
        let documents = documents("a: 1\n---\nb: [1,\nc: 2\n---\nd: 3\n");
        assert_eq!(documents.len(), 3);
        assert!(documents[0].value.is_ok() && documents[2].value.is_ok());
        let error = documents[1].value.as_ref().unwrap_err();
        assert!((3..=5).contains(&error.line), "{error:?}");
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        for text in [
            "\u{0}",
            "- - - -",
            "&a *a",
            "? ",
            "!!binary x",
            "a: b: c",
            "\t",
            "%YAML 9.9\n---\n",
            "---\n---\n...\n...",
            "*x",
        ] {
            let _ = documents(text);
        }
    }
}
