//! The pods of every node, and their namespaces: whom the authority gives certificates. Read by the same watches as everything else; a
//! list replaces what was known, so nobody is remembered who has gone.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use kube::Client;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use weft_crds::{
    core::{namespace::Namespace, pod::Pod},
    object::{Kind, Object},
    parse::parse_as,
};
use weft_policy::names::ServiceAccountKey;

use super::{Batch, Seen, discovery::follow, health::Sources, reflect::Resource};
use crate::limits;

/// What is known of the cluster's pods.
#[derive(Debug, Default)]
pub struct Inventory {
    state: Mutex<State>,
    /// Whether both kinds were listed once.
    listed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<Arc<str>, Arc<Pod>>,
    /// UIDs by namespace and name: what a deletion tells.
    names: HashMap<(Arc<str>, Arc<str>), Arc<str>>,
    namespaces: HashMap<Arc<str>, Arc<Namespace>>,
    listed: (bool, bool),
}

impl Inventory {
    /// Begins to watch.
    #[must_use]
    pub fn watch(client: &Client, sources: &Arc<Sources>) -> Arc<Self> {
        let (batches, mut receiver) = mpsc::channel(limits::KUBE_QUEUE_MAX);
        let (recovered, lost) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        for (kind, path) in [(Kind::Namespace, "/api/v1/namespaces"), (Kind::Pod, "/api/v1/pods")] {
            let resource = Resource { kind, version: "v1".to_owned(), path: path.to_owned(), field_selector: None };
            drop(follow(client, &resource, sources, &batches, (&recovered, &lost)));
        }
        let inventory = Arc::<Self>::default();
        let of_task = Arc::clone(&inventory);
        tokio::spawn(async move {
            while let Some(batch) = receiver.recv().await {
                of_task.apply(batch);
            }
        });
        inventory
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, batch: Batch) {
        let mut state = self.state();
        match batch {
            Batch::Replace(Kind::Pod, seen) => {
                state.pods.clear();
                state.names.clear();
                seen.into_iter().for_each(|seen| state.insert(seen));
                state.listed.0 = true;
            }
            Batch::Replace(_, seen) => {
                state.namespaces.clear();
                seen.into_iter().for_each(|seen| state.insert(seen));
                state.listed.1 = true;
            }
            Batch::Apply(_, seen) => state.insert(*seen),
            Batch::Delete(key) if key.kind == Kind::Pod => state.forget(&(key.namespace, key.name)),
            Batch::Delete(key) => drop(state.namespaces.remove(&key.name)),
        }
        self.listed.store(state.listed == (true, true), Ordering::Relaxed);
    }

    /// Whether all there is was listed once.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// How many pods are known.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.state().pods.len()
    }

    /// A pod by its UID.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.state().pods.get(uid).cloned()
    }

    /// A namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.state().namespaces.get(name).cloned()
    }

    /// All pods with a service account, and their UIDs.
    #[must_use]
    pub fn pods_of(&self, account: &ServiceAccountKey) -> Vec<(Arc<str>, Arc<Pod>)> {
        let state = self.state();
        let is_of = |pod: &Pod| pod.meta.namespace == account.namespace && pod.service_account == account.name;
        state.pods.iter().filter(|(_, pod)| is_of(pod)).map(|(uid, pod)| (uid.clone(), pod.clone())).collect()
    }
}

/// A pod as the API server answers for it.
#[must_use]
pub(crate) fn read_pod(object: &Value) -> Option<Arc<Pod>> {
    match parse_as(Kind::Pod, "v1", object) {
        Ok(Object::Pod(pod)) => Some(pod),
        _ => None,
    }
}

impl State {
    fn forget(&mut self, name: &(Arc<str>, Arc<str>)) {
        if let Some(uid) = self.names.remove(name) {
            self.pods.remove(&uid);
        }
    }

    fn insert(&mut self, seen: Seen) {
        match seen.object {
            Ok(Object::Pod(pod)) => {
                let name = (pod.meta.namespace.clone(), pod.meta.name.clone());
                self.forget(&name);
                if let Some(uid) = pod.meta.uid.clone() {
                    self.names.insert(name, uid.clone());
                    self.pods.insert(uid, pod);
                }
            }
            Ok(Object::Namespace(namespace)) => {
                drop(self.namespaces.insert(namespace.meta.name.clone(), namespace));
            }
            Ok(_) => {}
            // What cannot be read is nobody that a certificate is for; and it is not what it was before.
            Err(error) => match error.key {
                Some(key) if key.kind == Kind::Pod => self.forget(&(key.namespace, key.name)),
                Some(key) => drop(self.namespaces.remove(&key.name)),
                None => {}
            },
        }
    }
}
