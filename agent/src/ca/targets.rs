//! For whom: check 4. A pod by its UID, that runs on the caller's node, in the mesh, with the service account that is asked for.

use std::sync::Arc;

use tokio::sync::Semaphore;
use weft_crds::{core::pod::Pod, lower::is_meshed};
use weft_identity::{SpiffeId, TrustDomain, wire::SignItem};
use weft_policy::names::ServiceAccountKey;

use super::{api::Api, callers::Caller, limits, refusal::Refused};
use crate::watch::kube::inventory::{Inventory, read_pod};

/// Tells which identity a pod has.
pub(super) struct Targets {
    api: Api,
    inventory: Arc<Inventory>,
    trust_domain: TrustDomain,
    looking_up: Semaphore,
}

impl Targets {
    pub(super) fn new(api: Api, inventory: Arc<Inventory>, trust_domain: TrustDomain) -> Self {
        Self { api, inventory, trust_domain, looking_up: Semaphore::new(limits::LOOKUPS_MAX) }
    }

    /// The identity of the pod that an item is about, if this caller may ask for it. It comes from the pod; the item must agree.
    pub(super) async fn identity(&self, caller: &Caller, item: &SignItem) -> Result<SpiffeId, Refused> {
        let pod = self.pod(item).await?;
        if *pod.meta.namespace != *item.namespace || *pod.meta.name != *item.pod_name {
            return Err(Refused::OtherPod(format!("{}/{}", pod.meta.namespace, pod.meta.name)));
        }
        if *pod.service_account != *item.service_account {
            return Err(Refused::OtherAccount(format!("{}/{}", pod.meta.namespace, pod.service_account)));
        }
        if pod.node != caller.node {
            return Err(Refused::OtherNode(caller.node.to_string()));
        }
        if pod.ended {
            return Err(Refused::PodEnded);
        }
        if pod.host_network {
            return Err(Refused::HostNetwork);
        }
        if !is_meshed(self.inventory.namespace(&pod.meta.namespace).as_deref(), &pod) {
            return Err(Refused::NotMeshed);
        }
        let account = ServiceAccountKey::new(&pod.meta.namespace, &pod.service_account);
        self.trust_domain.account(&account).map_err(Refused::Name)
    }

    /// The pod with this UID. Where the watch does not know it, or not its node, the API server is asked once.
    async fn pod(&self, item: &SignItem) -> Result<Arc<Pod>, Refused> {
        let unknown = || Refused::UnknownPod(item.pod_uid.chars().take(100).collect());
        if item.pod_uid.is_empty() {
            return Err(unknown());
        }
        if let Some(pod) = self.inventory.pod(&item.pod_uid).filter(|pod| !pod.node.is_empty()) {
            return Ok(pod);
        }
        let path = pod_path(&item.namespace, &item.pod_name).ok_or_else(unknown)?;
        let answer = {
            let _slot = self.looking_up.acquire().await;
            self.api.get(&path).await.map_err(|failure| Refused::ApiServer(failure.message))?
        };
        let pod = answer.as_ref().and_then(read_pod).ok_or_else(unknown)?;
        if pod.meta.uid.as_deref() == Some(&*item.pod_uid) { Ok(pod) } else { Err(unknown()) }
    }
}

/// Where a pod is asked for by name; `None` for names that Kubernetes does not give: they would ask for something else.
pub(super) fn pod_path(namespace: &str, name: &str) -> Option<String> {
    let is_name = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        !name.is_empty() && name.len() <= 253 && name.bytes().all(plain) && !name.starts_with('.')
    };
    (is_name(namespace) && is_name(name)).then(|| format!("/api/v1/namespaces/{namespace}/pods/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_ask_for_something_else_are_none() {
        assert_eq!(pod_path("shop", "web-0").as_deref(), Some("/api/v1/namespaces/shop/pods/web-0"));
        for (namespace, name) in [
            ("", "web"),
            ("shop", ""),
            ("shop", ".."),
            ("..", "web"),
            ("a/b", "web"),
            ("shop", "web?x"),
            ("shop", "Web"),
        ] {
            assert_eq!(pod_path(namespace, name), None, "{namespace:?} {name:?}");
        }
        assert_eq!(pod_path("shop", &"a".repeat(254)), None);
    }
}
