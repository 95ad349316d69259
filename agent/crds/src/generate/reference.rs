//! What weft makes of every field of every version of SMI's kinds, found by asking the code that the agent runs.
//!
//! A field of a schema has an example here. The example is parsed, lowered and compiled beside a small world, and so is the same object
//! without the field, or with another value: a field is supported if the plans differ. What is refused is shown with the very
//! message. `cargo xtask gen` writes the answers to `docs/smi.md`; a field without an example fails a test.

use serde_json::{Map, Value, json};
use weft_policy::{compile::Compiler, diagnostic::Severity, view::SnapshotView};

use super::Definition;
use crate::{
    lower::lower,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};

mod access;
mod page;
mod specs;
mod split;

pub use page::page;

/// Namespace of everything in the examples.
const NAMESPACE: &str = "shop";
/// Name of the object that an example is about.
const NAME: &str = "example";

/// One kind: its fields, and a world in which they can have an effect.
pub struct KindReference {
    /// The kind.
    pub definition: &'static Definition,
    /// The objects beside it.
    pub world: Vec<Value>,
    /// Fields, in the order of the page.
    pub fields: Vec<Field>,
}

/// One field. Paths leave `spec` out, because most kinds are read with and without it; `[]` stands for an entry of a list.
pub struct Field {
    /// `sources[].name`.
    pub path: &'static str,
    /// The versions of the specification that have it; empty for none.
    pub published: &'static str,
    /// A whole object around it, without `spec`.
    pub body: Value,
    /// A value of it.
    pub example: Value,
    /// A value that must make a difference; `None` for the field left out.
    other: Option<Value>,
    /// Other ways to write what is accepted.
    also: Vec<Value>,
    /// What is refused, in which body.
    pub refused: Vec<(Value, Value)>,
}

/// What weft makes of a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Plans differ with it.
    Supported,
    /// It may be given, and has one good value.
    Checked,
    /// It may be given, and says nothing.
    Ignored,
    /// It must be given, and has one good value; without it the message.
    Demanded(String),
    /// It is refused, with the message.
    Refused(String),
}

/// What came of a document.
struct Accepted {
    plans: SnapshotView,
    warnings: Vec<String>,
}

/// Every kind of SMI that is read.
#[must_use]
pub fn kinds() -> Vec<KindReference> {
    vec![
        access::traffic_target(),
        access::identity_binding(),
        specs::http_route_group(),
        specs::tcp_route(),
        specs::udp_route(),
        split::traffic_split(),
    ]
}

impl KindReference {
    /// What stands before the fields: `spec.`, and nothing where the kind is read without `spec` too.
    #[must_use]
    pub fn shapes(&self) -> Vec<&'static str> {
        let properties = self.schema_paths();
        let bare = properties.iter().any(|path| !path.starts_with("spec"));
        if bare { vec!["spec.", ""] } else { vec!["spec."] }
    }

    /// Every field of the schema, as it is written there: `spec.sources[].name`. Without what every kind has.
    #[must_use]
    pub fn schema_paths(&self) -> Vec<String> {
        let schema = (self.definition.schema)();
        let mut paths = Vec::new();
        walk(&schema, "", &mut paths);
        paths.retain(|path| path != "spec");
        paths
    }

    /// A document of this kind.
    #[must_use]
    pub fn document(&self, version: &str, shape: &str, body: &Value) -> Value {
        let mut document = json!({
            "apiVersion": format!("{}/{version}", self.definition.group), "kind": self.definition.kind,
            "metadata": {"namespace": NAMESPACE, "name": NAME},
        });
        if shape.is_empty() {
            for (key, value) in body.as_object().into_iter().flatten() {
                document[key] = value.clone();
            }
        } else {
            document["spec"] = body.clone();
        }
        document
    }

    /// What is made of a field in one version and shape.
    fn outcome(&self, field: &Field, version: &str, shape: &str) -> (Outcome, Vec<String>) {
        let ask = |value: Option<&Value>| self.ask(&self.document(version, shape, &field.with(value)));
        let with = match ask(Some(&field.example)) {
            Ok(accepted) => accepted,
            Err(message) => return (Outcome::Refused(message), Vec::new()),
        };
        let outcome = match ask(field.other.as_ref()) {
            Ok(other) if other.plans != with.plans => Outcome::Supported,
            Ok(_) if field.refused.is_empty() => Outcome::Ignored,
            Ok(_) => Outcome::Checked,
            Err(message) => Outcome::Demanded(message),
        };
        (outcome, with.warnings)
    }

    /// What is said where the field is left out, if that is refused.
    fn without(&self, field: &Field, version: &str, shape: &str) -> Option<String> {
        self.ask(&self.document(version, shape, &field.with(None))).err()
    }

    /// Parses, lowers and compiles a document beside the world; else what is said of it.
    fn ask(&self, document: &Value) -> Result<Accepted, String> {
        let mut store = ObjectStore::default();
        let mut name = String::new();
        for one in self.world.iter().chain([document]) {
            let parsed = parse(one);
            if let Some(error) = parsed.errors.first() {
                return Err(error.message.clone());
            }
            for (object, _) in parsed.objects {
                name = object.key().to_string();
                store.apply([ObjectEvent::Apply(object)]);
            }
        }
        let mut compiler = Compiler::default();
        compiler.apply(lower(&store, &store.all()));
        let mut warnings = Vec::new();
        for finding in compiler.diagnostics() {
            if finding.severity == Severity::Warning {
                warnings.push(finding.message);
            } else if finding.object.to_string() == name {
                return Err(finding.message);
            }
        }
        Ok(Accepted { plans: compiler.snapshot().describe(), warnings })
    }
}

impl Field {
    fn new(path: &'static str, published: &'static str, body: &Value, example: Value) -> Self {
        let (body, also, refused) = (body.clone(), Vec::new(), Vec::new());
        Self { path, published, body, example, other: None, also, refused }
    }

    /// Another value, from which the example must differ in effect.
    fn against(mut self, other: Value) -> Self {
        self.other = Some(other);
        self
    }

    /// Another way to write it.
    fn also(mut self, value: Value) -> Self {
        self.also.push(value);
        self
    }

    /// A value that is refused in some version.
    fn refuse(mut self, value: Value) -> Self {
        self.refused.push((self.body.clone(), value));
        self
    }

    /// The same in another body.
    fn refuse_in(mut self, body: &Value, value: Value) -> Self {
        self.refused.push((body.clone(), value));
        self
    }

    /// The body with a value in the field's place; `None` takes the field away.
    #[must_use]
    pub fn with(&self, value: Option<&Value>) -> Value {
        set(&self.body, self.path, value)
    }
}

/// A body with a value at a path; `None` takes the field away.
#[must_use]
pub fn set(body: &Value, path: &str, value: Option<&Value>) -> Value {
    let mut body = body.clone();
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let parent: String = parent
        .split('.')
        .filter(|part| !part.is_empty())
        .map(|part| format!("/{}", part.replace("[]", "/0")))
        .collect();
    if let Some(Value::Object(parent)) = body.pointer_mut(&parent) {
        match value {
            Some(value) => parent.insert(key.to_owned(), value.clone()),
            None => parent.remove(key),
        };
    }
    body
}

/// The paths of a schema's properties. Entries of lists of scalars, and of maps, are no fields of their own.
fn walk(schema: &Value, at: &str, paths: &mut Vec<String>) {
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{at}{name}");
        walk(property, &format!("{path}."), paths);
        if let Some(items) = property.get("items") {
            walk(items, &format!("{path}[]."), paths);
        }
        paths.push(path);
    }
}

/// An object of the world.
fn beside(api_version: &str, kind: &str, name: &str, spec: &Value) -> Value {
    let namespace = if kind == "Namespace" { Value::Null } else { NAMESPACE.into() };
    let mut object = Map::from_iter([("apiVersion".to_owned(), api_version.into()), ("kind".to_owned(), kind.into())]);
    object.insert("metadata".to_owned(), json!({"name": name, "namespace": namespace, "labels": {"app": name}}));
    object.insert("spec".to_owned(), spec.clone());
    object.into()
}

/// A pod whose service account and label `app` are called like itself.
fn pod(name: &str) -> Value {
    beside("v1", "Pod", name, &json!({"serviceAccountName": name, "containers": []}))
}

#[cfg(test)]
mod tests;
