//! Pods that leave the mesh and live on: in steps, so that nobody who is being served through the agent loses a connection.

use weft_abi::pod_flags;
use weft_policy::names::WorkloadId;

use super::{
    Capture,
    error::PodError,
    pod::{Attached, detach, restore},
    released,
};

impl Capture {
    /// A pod is about to be let go of: from now on only what other agents dial for mutual TLS comes to the agent, for as long as they may
    /// not know; everybody else is connected directly, so that nothing has to be moved later. Host-network pods are left as they are.
    ///
    /// # Errors
    /// When the pod is not captured, or the kernel refuses.
    pub fn start_leaving(&mut self, id: &WorkloadId) -> Result<(), PodError> {
        let attached = self.attached.get_mut(id).ok_or_else(|| PodError::NotAttached(id.clone()))?;
        if !attached.is_host() {
            attached.config.flags |= pod_flags::LEAVING;
            self.tables.set_pod(attached.config.netns_cookie, &attached.config)?;
        }
        Ok(())
    }

    /// As [`start_leaving`](Self::start_leaving), for every pod.
    ///
    /// # Errors
    /// The first of them.
    pub fn start_all_leaving(&mut self) -> Result<(), PodError> {
        let ids: Vec<WorkloadId> = self.attached.keys().cloned().collect();
        ids.iter().map(|id| self.start_leaving(id)).fold(Ok(()), Result::and)
    }

    /// Lets a pod go of which somebody may still be served through the agent: its connections go direct from now on, and what runs
    /// through the agent goes on until [`finish_leaving`](Self::finish_leaving).
    ///
    /// # Errors
    /// As [`release_pod`](Self::release_pod).
    pub fn let_go(&mut self, id: &WorkloadId) -> Result<(), PodError> {
        let attached = self.attached.remove(id).ok_or_else(|| PodError::NotAttached(id.clone()))?;
        if attached.is_host() {
            self.sockets.remove(id);
            return self.release_host(&attached);
        }
        self.sockets.let_go(id);
        let netns = &attached.sockets.netns;
        let refused = released::refuse_tls(&mut self.programs, &self.pins, netns, self.refuse_tls_for);
        let detached = detach(&self.tables, &self.pins, attached.config.netns_cookie, &attached.config);
        self.leaving.insert(id.clone(), attached);
        detached?;
        Ok(refused?)
    }

    /// As [`let_go`](Self::let_go), for every pod.
    ///
    /// # Errors
    /// The first of them; all pods are let go of, even then.
    pub fn let_all_go(&mut self) -> Result<(), PodError> {
        let ids: Vec<WorkloadId> = self.attached.keys().cloned().collect();
        ids.iter().map(|id| self.let_go(id)).fold(Ok(()), Result::and)
    }

    /// Makes the namespace of a pod that was let go of as it was. Does nothing for one that is captured again.
    ///
    /// # Errors
    /// When something could not be undone; the rest is, even then.
    pub fn finish_leaving(&mut self, id: &WorkloadId) -> Result<(), PodError> {
        let Some(Attached { sockets, config, .. }) = self.leaving.remove(id) else { return Ok(()) };
        self.sockets.forget(id);
        Ok(restore(&self.tables, config.netns_cookie, Some(&sockets.netns), &config)?)
    }

    /// As [`finish_leaving`](Self::finish_leaving), for every pod that was let go of.
    ///
    /// # Errors
    /// The first of them.
    pub fn finish_all_leaving(&mut self) -> Result<(), PodError> {
        let ids: Vec<WorkloadId> = self.leaving.keys().cloned().collect();
        ids.iter().map(|id| self.finish_leaving(id)).fold(Ok(()), Result::and)
    }
}
