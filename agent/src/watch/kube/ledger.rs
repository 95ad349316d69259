//! What the API server says of objects beside what they mean: their UID, their generation, and the status that they have now. The
//! writer of status compares this with what should be there.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_crds::{
    object::{Kind, ObjectKey},
    parse::ParseError,
};
use weft_policy::names::ObjectRef;

use crate::{limits, status::widened::Widened};

/// A condition of an object (Kubernetes API conventions, "Typical status properties").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Accepted`.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
    /// The generation of the object that this was said of.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status became what it is, RFC 3339.
    #[serde(default)]
    pub last_transition_time: String,
    /// One word.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// One object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Note {
    /// `split.smi-spec.io/v1alpha4`.
    pub api_version: String,
    /// `/apis/split.smi-spec.io/v1alpha4/namespaces/shop/trafficsplits/canary`.
    pub path: String,
    /// UID.
    pub uid: String,
    /// Generation: counts changes of the spec.
    pub generation: i64,
    /// Version of the object as a whole.
    pub resource_version: String,
    /// The conditions that it has, as they are.
    pub conditions: Vec<Value>,
    /// Why it cannot be used.
    pub unusable: Option<ParseError>,
    /// The Services that a route of Gateway API is for; `None` for other kinds.
    pub parents: Option<Parents>,
}

/// The Services that a route is for, and what is said of it there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parents {
    /// Those of `spec.parentRefs` that name Services, each with its place.
    pub references: Vec<(usize, Value)>,
    /// How many rules it has.
    pub rules: usize,
    /// `status.parents`, as it is.
    pub status: Vec<Value>,
}

impl Parents {
    fn of(object: &Value) -> Self {
        let list = |path: &str| object.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        let is_service = |reference: &Value| {
            reference.get("kind").and_then(Value::as_str) == Some("Service")
                && matches!(reference.get("group").and_then(Value::as_str), Some("" | "core"))
        };
        let references = list("/spec/parentRefs").into_iter().enumerate().filter(|(_, one)| is_service(one)).collect();
        Self { references, rules: list("/spec/rules").len(), status: list("/status/parents") }
    }
}

/// Every object of the kinds that get a status.
#[derive(Debug, Default)]
pub struct Ledger {
    state: Mutex<State>,
}

/// A destination that nothing guards any more, to be told once by an Event.
#[derive(Clone, Debug)]
pub struct Widening {
    /// The destination, and what guarded it.
    pub widened: Widened,
    /// Tells this time from every other one, the same on all nodes: UID and generation of the TrafficTarget.
    pub id: String,
    /// When it was noticed.
    pub at: Instant,
}

/// The objects, and how far the agent is with them.
#[derive(Debug, Default)]
pub struct State {
    /// By object.
    pub notes: BTreeMap<ObjectKey, Note>,
    /// Counts what was noted.
    pub noted: u64,
    /// What has to be told of destinations, oldest first.
    pub widenings: VecDeque<Widening>,
    /// TrafficTargets that have gone, until plans without them are in force.
    gone: BTreeMap<ObjectKey, Note>,
    /// Changes that the watches handed over.
    handed: u64,
    /// Changes that are in force.
    applied: u64,
}

impl State {
    /// Whether plans in force are those of the objects that are noted here.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.applied >= self.handed
    }
}

impl Ledger {
    /// What is noted.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change is handed over, and with it these objects (`None`: gone).
    pub(super) fn hand_over(&self, notes: BTreeMap<ObjectKey, Option<Note>>) {
        let mut state = self.state();
        state.handed += 1;
        state.noted += u64::from(!notes.is_empty());
        for (key, note) in notes {
            match note {
                Some(note) => drop(state.notes.insert(key, note)),
                None => {
                    if let Some(note) = state.notes.remove(&key)
                        && key.kind == Kind::TrafficTarget
                    {
                        state.gone.insert(key, note);
                    }
                }
            }
        }
    }

    /// A change is in force.
    pub fn applied(&self) {
        let mut state = self.state();
        state.applied += 1;
        if state.is_in_force() {
            state.gone.clear();
        }
    }

    /// These destinations are guarded by nothing any more. Returns how many are forgotten untold, because nobody tells.
    pub fn widened(&self, found: Vec<Widened>) -> usize {
        let mut state = self.state();
        if state.handed == 0 {
            // Objects come from somewhere else, where there is nobody to tell.
            return 0;
        }
        for widened in found {
            let key = |target: &ObjectRef| ObjectKey::new(Kind::TrafficTarget, &target.namespace, &target.name);
            let note = widened.targets.iter().rev().find_map(|target| {
                let key = key(target);
                state.gone.get(&key).or_else(|| state.notes.get(&key))
            });
            let id = note.map(|note| format!("{}.{}", note.uid, note.generation)).unwrap_or_default();
            state.widenings.push_back(Widening { widened, id, at: Instant::now() });
        }
        let excess = state.widenings.len().saturating_sub(limits::WIDENINGS_MAX);
        state.widenings.drain(..excess);
        excess
    }
}

impl Note {
    /// What is to be noted of an object at `path`, the path of its kind; `None` for one that has no name.
    pub(super) fn of(kind: Kind, api_version: &str, path: &str, object: &Value) -> Option<Self> {
        let text = |field: &str| object.pointer(field).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let (group, plural) = path.rsplit_once('/')?;
        let path = match (name, kind.namespaced()) {
            ("", _) => return None,
            (name, true) => format!("{group}/namespaces/{namespace}/{plural}/{name}"),
            (name, false) => format!("{path}/{name}"),
        };
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        Some(Self {
            api_version: api_version.to_owned(),
            path,
            uid: text("/metadata/uid").to_owned(),
            generation: object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
            resource_version: text("/metadata/resourceVersion").to_owned(),
            conditions,
            unusable: None,
            parents: kind.has_parents().then(|| Parents::of(object)),
        })
    }
}
