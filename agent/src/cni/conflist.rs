//! The plugin's entry in a network configuration list (CNI specification 1.1.0, section 1 "Network configuration format").
//!
//! The list is another plugin's file. Only the one entry is put in and taken out of its text; everything else stays as it is, to the byte.

use std::{borrow::Cow, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Type of the entry, and name of the program.
pub const TYPE: &str = "weft-cni";

/// Why an entry cannot be put in.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// No list.
    #[error("it is no network configuration list")]
    Unreadable(#[source] serde_json::Error),
    /// Nothing to be chained to.
    #[error("plugins: there is none that makes the network")]
    NoPlugin,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Plugin<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

/// The entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    socket: Cow<'a, str>,
}

/// The list with the entry at its end; `None` if it is there already. `socket` is the agent's.
///
/// # Errors
/// When it is no list, or has no plugin that makes a network.
pub fn chained(text: &str, socket: &Path) -> Result<Option<String>, ConflistError> {
    let entry = Entry { kind: TYPE.into(), socket: socket.to_string_lossy() };
    let spans = spans(text)?;
    let is_right =
        |span: &Span| serde_json::from_str::<Entry<'_>>(&text[span.start..span.end]).is_ok_and(|found| found == entry);
    let ours = spans.iter().filter(|span| span.is_ours).count();
    if ours == 1 && spans.len() > 1 && spans.last().is_some_and(is_right) {
        return Ok(None);
    }
    let bare = without(text, &spans);
    let last = self::spans(&bare)?.pop().ok_or(ConflistError::NoPlugin)?;
    let entry = serde_json::to_string(&entry).map_err(ConflistError::Unreadable)?;
    // Indented as the plugin before it.
    let line = bare[..last.start].rfind('\n').map(|newline| &bare[newline..last.start]);
    let space = line.filter(|line| line.chars().all(char::is_whitespace)).unwrap_or(" ");
    Ok(Some(format!("{},{space}{entry}{}", &bare[..last.end], &bare[last.end..])))
}

/// The list without the entry; `None` if it is not there.
///
/// # Errors
/// When it is no list.
pub fn unchained(text: &str) -> Result<Option<String>, ConflistError> {
    let spans = spans(text)?;
    Ok(spans.iter().any(|span| span.is_ours).then(|| without(text, &spans)))
}

/// Where a plugin of the list is in its text.
struct Span {
    start: usize,
    end: usize,
    is_ours: bool,
}

fn spans(text: &str) -> Result<Vec<Span>, ConflistError> {
    if !text.trim_start().starts_with('{') {
        // Fields by their order are read, too.
        return Err(ConflistError::Unreadable(serde::de::Error::custom("it is no object")));
    }
    let list: List<'_> = serde_json::from_str(text).map_err(ConflistError::Unreadable)?;
    let span = |plugin: &&RawValue| {
        let part = plugin.get();
        // A raw value is borrowed: a part of the text.
        let start = part.as_ptr().addr() - text.as_ptr().addr();
        let is_ours = serde_json::from_str::<Plugin<'_>>(part).is_ok_and(|plugin| plugin.kind == TYPE);
        Span { start, end: start + part.len(), is_ours }
    };
    Ok(list.plugins.iter().map(span).collect())
}

fn without(text: &str, spans: &[Span]) -> String {
    let mut rest = String::with_capacity(text.len());
    let mut at = 0;
    for (index, span) in spans.iter().enumerate().filter(|(_, span)| span.is_ours) {
        // With the comma before it; the first has one after it, if it is not the only one.
        let first_kept = spans[..index].iter().all(|before| before.is_ours);
        let start = if first_kept { span.start } else { spans[index - 1].end };
        let next = spans.get(index + 1);
        let end = next.filter(|_| first_kept).map_or(span.end, |next| next.start);
        rest.push_str(&text[at.min(start)..start]);
        at = end;
    }
    rest.push_str(&text[at..]);
    rest
}

#[cfg(test)]
mod tests;
