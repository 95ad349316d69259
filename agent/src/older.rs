//! Connections that weft does not carry, held against policy: those into a pod that are older than its capture, or were made
//! directly while the agent was gone. Each is judged like a connection that is made now, and reset if it were not let through.
//!
//! Only what came in is looked at: a connection that a pod made is looked at where it came in. What is said on one is not known, so a
//! grant of requests is none.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use weft_policy::{
    inbound::{Basis, ConnectionVerdict, InboundPlan, Source},
    ir::WorkloadIr,
    names::{ServiceAccountKey, WorkloadId},
};

use crate::{
    capture::{Capture, Cut, OlderConnection, PodError},
    limits::OLDER_LINES_MAX,
    pods::{PodState, Pods},
    state::Shared,
    telemetry::Chain,
};

/// What is known of the connections of every captured pod that weft does not carry.
#[derive(Debug, Default)]
pub struct Older {
    pods: HashMap<WorkloadId, Seen>,
    told_unsupported: bool,
}

/// Denied connections that could not be ended, for metrics.
#[derive(Debug, Default)]
pub struct NotCut(AtomicU64);

impl NotCut {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the last look at a pod showed.
#[derive(Debug)]
struct Seen {
    /// Which capture of the pod it was.
    capture: u64,
    /// The plan that its connections were held against; `None` if there was none yet.
    plan: Option<Arc<InboundPlan>>,
    /// Connections that weft does not carry and that may stay.
    left: usize,
    /// How many the pod had got directly by then.
    direct: u64,
    /// Connections that were being made when capture began: they may yet become some that weft does not carry.
    being_made: HashSet<(SocketAddr, SocketAddr)>,
    /// Whether to look again although nothing changes.
    again: bool,
    /// Why the last look failed, so that it is said once.
    error: Option<String>,
}

/// A client that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Client {
    id: WorkloadId,
    account: ServiceAccountKey,
    name: Arc<str>,
}

impl Older {
    /// Looks at every pod whose connections may have to end: one that was captured since the last call, and one whose plan is another
    /// one, if it has such connections or may have got some. To be called after each change, and every now and then.
    pub fn follow(&mut self, shared: &Shared) {
        let snapshot = shared.snapshots.load();
        let captured: Vec<(WorkloadId, Arc<WorkloadIr>)> = captured(&shared.pods());
        if self.pods.len() > captured.len() {
            let ids: HashSet<&WorkloadId> = captured.iter().map(|(id, _)| id).collect();
            self.pods.retain(|id, _| ids.contains(id));
        }
        let mut clients = None;
        for (id, workload) in &captured {
            let plan = snapshot.inbound.get(id);
            let due = {
                let capture = shared.capture();
                match capture.inbound_capture(id) {
                    None => false,
                    Some(cookie) => self.is_due(id, cookie, plan, || capture.direct_connections(id)),
                }
            };
            if due {
                let clients = clients.get_or_insert_with(|| clients_by_address(&captured));
                self.look(shared, (id, workload), plan, clients);
            }
        }
    }

    /// Whether a pod has to be looked at; one that need not be is noted as seen with this plan.
    fn is_due(
        &mut self,
        id: &WorkloadId,
        capture: u64,
        plan: Option<&Arc<InboundPlan>>,
        direct: impl FnOnce() -> u64,
    ) -> bool {
        let Some(seen) = self.pods.get_mut(id).filter(|seen| seen.capture == capture) else {
            let (being_made, error) = (HashSet::new(), None);
            let seen = Seen { capture, plan: None, left: 0, direct: 0, being_made, again: true, error };
            self.pods.insert(id.clone(), seen);
            return true;
        };
        if seen.again {
            return true;
        }
        let same = match (&seen.plan, plan) {
            (Some(seen), Some(plan)) => Arc::ptr_eq(seen, plan),
            (seen, plan) => seen.is_none() && plan.is_none(),
        };
        if same {
            return false;
        }
        if seen.left > 0 || direct() != seen.direct {
            return true;
        }
        seen.plan = plan.cloned();
        false
    }

    fn look(
        &mut self,
        shared: &Shared,
        (id, workload): (&WorkloadId, &WorkloadIr),
        plan: Option<&Arc<InboundPlan>>,
        clients: &HashMap<IpAddr, Client>,
    ) {
        let capture = shared.capture();
        // Before the look: what comes meanwhile is seen, or makes the pod due again.
        let direct = capture.direct_connections(id);
        let result = self.look_at(shared, &capture, (id, workload), plan, clients);
        let Some(seen) = self.pods.get_mut(id) else { return };
        let first = seen.plan.is_none() && seen.left == 0 && seen.being_made.is_empty() && seen.error.is_none();
        match result {
            Ok(look) => {
                seen.being_made = if first { look.being_made } else { &seen.being_made & &look.being_made };
                // Without a plan there is nothing to hold them against; it comes.
                seen.again = look.more || !seen.being_made.is_empty() || plan.is_none();
                (seen.plan, seen.left, seen.direct, seen.error) = (plan.cloned(), look.left, direct, None);
            }
            Err(error) => {
                let error = Chain(&error).to_string();
                if seen.error.as_ref() != Some(&error) {
                    tracing::error!(
                        namespace = %workload.namespace, pod = %workload.name, error,
                        "connections that are older than capture are not held against policy, and are looked for again"
                    );
                }
                (seen.again, seen.error) = (true, Some(error));
            }
        }
    }

    fn look_at(
        &mut self,
        shared: &Shared,
        capture: &Capture,
        (id, workload): (&WorkloadId, &WorkloadIr),
        plan: Option<&Arc<InboundPlan>>,
        clients: &HashMap<IpAddr, Client>,
    ) -> Result<Look, PodError> {
        let found = capture.older_connections(id)?;
        let mut look = Look { being_made: found.being_made, more: found.more, left: 0 };
        let Some(plan) = plan else {
            look.left = found.inbound.len();
            return Ok(look);
        };
        let mut cutter = None;
        let mut lines = Lines::default();
        for connection in &found.inbound {
            let client = clients.get(&connection.client.ip());
            let Some(basis) = denied(plan, id, client, connection.to.port()) else {
                look.left += 1;
                continue;
            };
            let cutter = match &mut cutter {
                Some(cutter) => cutter,
                None => cutter.insert(capture.cutter(id)?),
            };
            match cutter.cut(connection, client.map(|client| &client.id)) {
                Ok(Cut::Done) => {
                    shared.proxy.cut_older();
                    lines.say("cut", connection, client, workload, &basis);
                }
                Ok(Cut::Gone) => {}
                Ok(Cut::Carried) => look.left += 1,
                Ok(Cut::Unsupported) => {
                    look.left += 1;
                    shared.not_cut.0.fetch_add(1, Ordering::Relaxed);
                    lines.say("not cut", connection, client, workload, &basis);
                    if !std::mem::replace(&mut self.told_unsupported, true) {
                        tracing::error!(
                            "this kernel was built without CONFIG_INET_DIAG_DESTROY: connections that weft does not carry go on \
                             although policy denies them; restart the pods that hold them"
                        );
                    }
                }
                Err(error) => {
                    look.left += 1;
                    look.more = true;
                    shared.not_cut.0.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, client = %connection.client, to = %connection.to, "a denied connection is not ended, and is tried again");
                }
            }
        }
        lines.end(workload);
        Ok(look)
    }
}

/// What one look came to.
struct Look {
    being_made: HashSet<(SocketAddr, SocketAddr)>,
    more: bool,
    left: usize,
}

fn captured(pods: &Pods) -> Vec<(WorkloadId, Arc<WorkloadIr>)> {
    let captured = pods.iter().filter(|(_, entry)| matches!(entry.state, PodState::Captured { .. }));
    captured.map(|(id, entry)| (id.clone(), Arc::clone(&entry.workload))).collect()
}

/// Who has which address. The kernel vouches for the pods of this node alone, and host-network pods share an address with the node.
fn clients_by_address(captured: &[(WorkloadId, Arc<WorkloadIr>)]) -> HashMap<IpAddr, Client> {
    let own = captured.iter().filter(|(_, workload)| !workload.host_network);
    own.flat_map(|(id, workload)| {
        let account = ServiceAccountKey {
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.service_account),
        };
        let client = Client { id: id.clone(), account, name: Arc::clone(&workload.name) };
        workload.ips.iter().map(move |ip| (ip.to_canonical(), client.clone()))
    })
    .collect()
}

/// Why a connection may not be, if it may not.
fn denied(plan: &InboundPlan, id: &WorkloadId, client: Option<&Client>, port: u16) -> Option<Basis> {
    // Nobody needs a grant to talk to itself.
    if client.is_some_and(|client| client.id == *id) {
        return None;
    }
    let source = client.map(|client| Source { account: &client.account, workload: Some(&client.id) });
    match plan.connection(source, port) {
        ConnectionVerdict::Allow(_) => None,
        ConnectionVerdict::Requests(basis) | ConnectionVerdict::Deny(basis) => Some(basis),
    }
}

/// Lines of the access log about one pod, a bounded number of them at a time.
#[derive(Debug, Default)]
struct Lines {
    said: usize,
    unsaid: usize,
}

impl Lines {
    fn say(
        &mut self,
        verdict: &str,
        connection: &OlderConnection,
        client: Option<&Client>,
        destination: &WorkloadIr,
        basis: &Basis,
    ) {
        if self.said == OLDER_LINES_MAX {
            self.unsaid += 1;
            return;
        }
        self.said += 1;
        tracing::warn!(
            target: "weft::access",
            verdict,
            source = client.map(|client| tracing::field::display(&client.account)),
            source_pod = client.map(|client| tracing::field::display(&client.name)),
            client = %connection.client,
            destination_namespace = %destination.namespace,
            destination_workload = %destination.owner,
            destination_pod = %destination.name,
            to = %connection.to,
            because = %basis,
            "not let through: weft does not carry this connection"
        );
    }

    fn end(&self, destination: &WorkloadIr) {
        if self.unsaid > 0 {
            tracing::warn!(
                target: "weft::access",
                destination_namespace = %destination.namespace, destination_pod = %destination.name, unsaid = self.unsaid,
                "more connections that weft does not carry were not let through"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_policy::{
        inbound::{Grant, Stance},
        names::ObjectRef,
    };

    use super::*;

    fn client(uid: &str) -> Client {
        Client { id: WorkloadId::new(uid), account: ServiceAccountKey::new("shop", uid), name: uid.into() }
    }

    fn selected(grant_to: &str, ports: &[u16]) -> InboundPlan {
        let target = ObjectRef { kind: "TrafficTarget".into(), namespace: "shop".into(), name: "t".into() };
        let grant = Grant {
            origin: Arc::new(target.clone()),
            accounts: Box::new([ServiceAccountKey::new("shop", grant_to)]),
            workloads: Box::default(),
            ports: Some(ports.into()),
            udp_ports: Some(Box::default()),
            requests: None,
        };
        InboundPlan { selected_by: Arc::new([target]), grants: Box::new([grant]), ..InboundPlan::default() }
    }

    #[test]
    fn a_connection_may_stay_only_if_it_could_be_made_now() {
        let me = WorkloadId::new("web");
        let plan = selected("client", &[80]);
        for (from, port, stays) in [
            (Some("client"), 80, true),
            (Some("client"), 81, false),
            (Some("other"), 80, false),
            (Some("web"), 81, true),
            (None, 80, false),
        ] {
            let from = from.map(client);
            assert_eq!(denied(&plan, &me, from.as_ref(), port).is_none(), stays, "{from:?} {port}");
        }
        assert_eq!(denied(&InboundPlan::default(), &me, None, 80), None, "nothing selects it, and the stance is allow");
        let deny = InboundPlan { stance: Stance { deny: true, origin: None }, ..InboundPlan::default() };
        assert!(matches!(denied(&deny, &me, Some(&client("client")), 80), Some(Basis::StanceDeny(None))));
    }

    #[test]
    fn a_pod_is_due_when_it_is_new_or_when_policy_changes_while_it_may_have_such_connections() {
        let (id, first, second) =
            (WorkloadId::new("web"), Arc::new(selected("a", &[80])), Arc::new(selected("b", &[80])));
        let mut older = Older::default();
        assert!(older.is_due(&id, 1, Some(&first), || 0), "captured just now");
        let settle = |older: &mut Older, plan: &Arc<InboundPlan>, left, direct| {
            let seen = older.pods.get_mut(&id).unwrap();
            (seen.plan, seen.left, seen.direct, seen.again) = (Some(Arc::clone(plan)), left, direct, false);
        };
        settle(&mut older, &first, 0, 3);
        assert!(!older.is_due(&id, 1, Some(&first), || 9), "the same plan");
        assert!(!older.is_due(&id, 1, Some(&second), || 3), "another plan, and nothing to hold against it");
        assert!(older.is_due(&id, 1, Some(&first), || 4), "another plan, and it got one directly");
        settle(&mut older, &first, 1, 4);
        assert!(older.is_due(&id, 1, Some(&second), || 4), "another plan, and one that was left");
        assert!(older.is_due(&id, 1, None, || 4), "no plan any more");
        settle(&mut older, &first, 0, 4);
        assert!(older.is_due(&id, 2, Some(&first), || 4), "captured anew elsewhere");
    }
}
