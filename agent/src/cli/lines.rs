//! On which line of a document a field is.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// The lines of one document's fields. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    root: Arc<Tree>,
}

#[derive(Debug)]
enum Tree {
    /// Key, its line, and the value.
    Map(Vec<(String, usize, Tree)>),
    /// Line at which each entry begins.
    Seq(Vec<(usize, Tree)>),
    /// The text of a scalar that is a string.
    Leaf(Option<String>),
}

impl Default for Tree {
    fn default() -> Self {
        Self::Leaf(None)
    }
}

impl Lines {
    /// Reads a document. One that is no YAML has no lines.
    #[must_use]
    pub fn new(document: &str) -> Self {
        Self { root: Arc::new(serde_saphyr::from_str(document).unwrap_or_default()) }
    }

    /// The line, from 1 inside the document, of a field given as `spec.backends[1].weight`; of its nearest parent that is there if it
    /// is not. An entry of a list may be given by its `name`: `spec.matches[metrics].pathRegex`.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<usize> {
        // What compilation finds is told without the `spec` that some versions have.
        self.root.find(path).or_else(|| self.root.field("spec")?.find(path))
    }
}

impl Tree {
    fn field(&self, name: &str) -> Option<&Self> {
        let Self::Map(fields) = self else { return None };
        fields.iter().find(|(key, ..)| key == name).map(|(_, _, value)| value)
    }

    fn find(&self, path: &str) -> Option<usize> {
        match self {
            Self::Map(fields) => {
                // Keys may have dots: the longest that fits is meant.
                let fits = |key: &str| {
                    let rest = path.strip_prefix(key)?;
                    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
                };
                let (_, line, value, rest) = fields
                    .iter()
                    .filter_map(|(key, line, value)| Some((key.len(), *line, value, fits(key)?)))
                    .max_by_key(|(bytes, ..)| *bytes)?;
                Some(value.find(rest.strip_prefix('.').unwrap_or(rest)).unwrap_or(line))
            }
            Self::Seq(entries) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let entry = match index.parse::<usize>() {
                    Ok(index) => entries.get(index),
                    Err(_) => entries.iter().find(|(_, entry)| entry.is_named(index)),
                };
                let (line, value) = entry?;
                Some(value.find(rest.strip_prefix('.').unwrap_or(rest)).unwrap_or(*line))
            }
            Self::Leaf(_) => None,
        }
    }

    fn is_named(&self, name: &str) -> bool {
        matches!(self.field("name"), Some(Self::Leaf(Some(text))) if text == name)
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = usize::try_from(key.referenced.line()).unwrap_or(usize::MAX);
            fields.push((key.value, line, map.next_value()?));
        }
        Ok(Tree::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = seq.next_element::<Spanned<Tree>>()? {
            entries.push((usize::try_from(entry.referenced.line()).unwrap_or(usize::MAX), entry.value));
        }
        Ok(Tree::Seq(entries))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf(Some(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_i128<E>(self, _: i128) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_u128<E>(self, _: u128) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_on_their_lines_and_absent_ones_on_their_parents() {
        let lines = Lines::new(
            "# a comment\napiVersion: v1\nmetadata:\n  name: web\n  labels:\n    weft.dev/fail-mode: 'x'\n    weft: y\nspec:\n  backends:\n  - service: a\n    weight: 1\n  -\n    name: two\n    weight: 2\n  flow: {a: 1,\n    b: [1,\n 2]}\n",
        );
        for (path, expected) in [
            ("apiVersion", Some(2)),
            ("metadata", Some(3)),
            ("metadata.name", Some(4)),
            ("metadata.labels.weft.dev/fail-mode", Some(6)),
            ("metadata.labels.weft", Some(7)),
            ("metadata.absent.deep", Some(3)),
            ("spec.backends", Some(9)),
            ("spec.backends[0].weight", Some(11)),
            ("spec.backends[0].absent", Some(10)),
            ("spec.backends[1].weight", Some(14)),
            ("spec.backends[two].weight", Some(14)),
            ("backends[two].weight", Some(14)),
            ("spec.backends[7].weight", Some(9)),
            ("spec.flow.b[1]", Some(17)),
            ("status", None),
            ("", None),
            ("[", None),
        ] {
            assert_eq!(lines.find(path), expected, "{path:?}");
        }
    }

    #[test]
    fn whatever_is_no_yaml_has_no_lines() {
        for text in ["", "- [", "\u{0}", "*a", "a: b: c"] {
            assert_eq!(Lines::new(text).find("a.b[0]"), None, "{text:?}");
        }
    }
}
