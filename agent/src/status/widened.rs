//! Destinations that nothing guards any more: the last TrafficTarget that selected them is gone, and pods that none selects take
//! everything. Whoever deletes a target may not have meant that.

use weft_policy::{
    compile::Compiler,
    ir::{IrDelta, MeshIr},
    names::ObjectRef,
};

/// A destination that takes everything, and took only what was granted before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Widened {
    /// A ServiceAccount, or an IdentityBinding that means pods by their labels.
    pub destination: ObjectRef,
    /// The TrafficTargets that selected it last.
    pub targets: Vec<ObjectRef>,
}

/// The destinations that a change leaves without a TrafficTarget. `ir` is the model before that change.
#[must_use]
pub fn deselected(ir: &MeshIr, delta: &IrDelta) -> Vec<Widened> {
    let accounts = delta.access.iter().filter_map(|(account, new)| {
        let targets = &ir.access.get(account)?.selected_by;
        let destination = ObjectRef::new("ServiceAccount", &account.namespace, &account.name);
        left(destination, targets, new.as_ref().map(|new| &*new.selected_by))
    });
    let bindings = delta.bindings.iter().filter_map(|(binding, new)| {
        let targets = &ir.bindings.get(binding)?.selected_by;
        left(binding.clone(), targets, new.as_ref().map(|new| &*new.selected_by))
    });
    accounts.chain(bindings).collect()
}

fn left(destination: ObjectRef, before: &[ObjectRef], now: Option<&[ObjectRef]>) -> Option<Widened> {
    let widened = !before.is_empty() && now.is_none_or(<[_]>::is_empty);
    widened.then(|| Widened { destination, targets: before.to_vec() })
}

/// Those of them that take everything now; `compiler` has the change. Where the stance denies, nothing got wider.
#[must_use]
pub fn open(mut deselected: Vec<Widened>, compiler: &Compiler) -> Vec<Widened> {
    deselected.retain(|one| !compiler.denies_by_default(&one.destination.namespace));
    deselected
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_policy::{inbound::Stance, ir::AccessIr, names::ServiceAccountKey};

    use super::*;

    fn account() -> ServiceAccountKey {
        ServiceAccountKey { namespace: "shop".into(), name: "web".into() }
    }

    fn selected(by: &[&str]) -> Option<Arc<AccessIr>> {
        let selected_by = by.iter().map(|name| ObjectRef::new("TrafficTarget", "shop", name)).collect();
        Some(Arc::new(AccessIr { account: account(), selected_by, grants: Vec::new() }))
    }

    fn delta(new: Option<Arc<AccessIr>>) -> IrDelta {
        let mut delta = IrDelta::default();
        delta.access.insert(account(), new);
        delta
    }

    #[test]
    fn only_the_last_target_that_goes_widens_and_only_where_the_stance_allows() {
        let mut compiler = Compiler::default();
        assert_eq!(deselected(compiler.ir(), &delta(selected(&["a", "b"]))), [], "it is the first");
        compiler.apply(delta(selected(&["a", "b"])));
        assert_eq!(deselected(compiler.ir(), &delta(selected(&["b"]))), [], "one is left");
        compiler.apply(delta(selected(&["b"])));
        let found = deselected(compiler.ir(), &delta(None));
        let wanted = Widened {
            destination: ObjectRef::new("ServiceAccount", "shop", "web"),
            targets: vec![ObjectRef::new("TrafficTarget", "shop", "b")],
        };
        assert_eq!(found, [wanted]);
        assert_eq!(deselected(compiler.ir(), &delta(selected(&[]))), found, "another way to say it");
        assert_eq!(open(found.clone(), &compiler), found);
        compiler.set_default_stance(Stance { deny: true, origin: None });
        assert_eq!(open(found, &compiler), [], "denied before and after");
    }
}
