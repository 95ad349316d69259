//! The endpoint cells that plans share, and who uses them.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    endpoints::{EndpointCell, EndpointSet},
    few::Few,
    names::ServiceKey,
};

pub(super) type CellKey = (ServiceKey, u16);

/// One cell for each Service port that a plan names or that has endpoints. It lives until neither is so any more.
#[derive(Debug, Default)]
pub(super) struct Cells {
    cells: BTreeMap<CellKey, Entry>,
    /// Which cells the plans of a Service name.
    uses: BTreeMap<ServiceKey, Few<CellKey>>,
}

#[derive(Debug)]
struct Entry {
    cell: Arc<EndpointCell>,
    has_endpoints: bool,
    users: Few<ServiceKey>,
}

impl Cells {
    /// The cell of a Service port; an empty one if nothing is known of its endpoints yet.
    pub(super) fn cell(&mut self, key: &CellKey) -> Arc<EndpointCell> {
        Arc::clone(&self.entry(key).cell)
    }

    /// Puts endpoints in place, and names the Services whose plans use them.
    pub(super) fn store(&mut self, service: &ServiceKey, port: u16, set: Option<Arc<EndpointSet>>) -> Few<ServiceKey> {
        let key = (service.clone(), port);
        let entry = self.entry(&key);
        entry.has_endpoints = set.is_some();
        entry.cell.replace(set.unwrap_or_default());
        let users = entry.users.clone();
        self.drop_unused(&key);
        users
    }

    /// Says which cells the plans of a Service name from now on.
    pub(super) fn set_uses(&mut self, service: &ServiceKey, keys: Few<CellKey>) {
        let old = self.uses.remove(service).unwrap_or_default();
        for key in &keys {
            self.entry(key).users.insert(service.clone());
        }
        for key in old.iter().filter(|key| !keys.contains(key)) {
            if let Some(entry) = self.cells.get_mut(key) {
                entry.users.remove(service);
            }
            self.drop_unused(key);
        }
        if !keys.is_empty() {
            self.uses.insert(service.clone(), keys);
        }
    }

    fn entry(&mut self, key: &CellKey) -> &mut Entry {
        self.cells.entry(key.clone()).or_insert_with(|| Entry {
            cell: Arc::new(EndpointCell::new(EndpointSet::default())),
            has_endpoints: false,
            users: Few::default(),
        })
    }

    fn drop_unused(&mut self, key: &CellKey) {
        if self.cells.get(key).is_some_and(|entry| !entry.has_endpoints && entry.users.is_empty()) {
            self.cells.remove(key);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }
}
