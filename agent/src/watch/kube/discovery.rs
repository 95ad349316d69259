//! Which kinds the API server serves, and in which versions. Kinds that it does not serve are asked for again and again: a CRD that
//! appears later is no different from one that was there.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList};
use kube::Client;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use weft_crds::object::Kind;

use super::{
    Batch,
    backoff::Backoff,
    health::{Reason, Sources},
    reflect::{End, Reflector, Resource},
    wire::{self, Failure},
};
use crate::limits;

/// Follows every kind that is served.
pub(super) struct Discovery {
    client: Client,
    sources: Arc<Sources>,
    batches: mpsc::Sender<Batch>,
    recovered: Arc<Notify>,
    /// Told when a kind is no longer served.
    lost: Arc<Notify>,
    /// Kinds that every API server has.
    builtin: Vec<Resource>,
    /// Kinds that a CRD brings.
    custom: BTreeMap<Kind, Custom>,
}

/// A kind that a CRD brings.
#[derive(Default)]
struct Custom {
    following: Option<(Resource, JoinHandle<End>)>,
    /// Whether its objects, if only that there are none, were told once.
    told: bool,
    /// Since when it is missing though it was served.
    missing_since: Option<Instant>,
}

/// What the API server serves of the kinds that CRDs bring.
type Served = BTreeMap<Kind, Resource>;

impl Discovery {
    pub(super) fn new(client: Client, node: &str, sources: Arc<Sources>, batches: mpsc::Sender<Batch>) -> Self {
        let builtin = |kind: Kind, path: &str, field_selector: Option<String>| Resource {
            kind,
            version: "v1".to_owned(),
            path: path.to_owned(),
            field_selector,
        };
        Self {
            client,
            sources,
            batches,
            recovered: Arc::default(),
            lost: Arc::default(),
            builtin: vec![
                builtin(Kind::Namespace, "/api/v1/namespaces", None),
                builtin(Kind::Pod, "/api/v1/pods", Some(format!("spec.nodeName={node}"))),
                builtin(Kind::Service, "/api/v1/services", None),
                builtin(Kind::EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices", None),
            ],
            custom: Kind::ALL
                .into_iter()
                .filter(|kind| is_custom(*kind))
                .map(|kind| (kind, Custom::default()))
                .collect(),
        }
    }

    pub(super) async fn run(mut self) {
        for resource in std::mem::take(&mut self.builtin) {
            drop(follow(&self.client, &resource, &self.sources, &self.batches, (&self.recovered, &self.lost)));
        }
        for kind in self.custom.keys() {
            self.sources.begin(*kind, "");
        }
        let mut backoff = Backoff::default();
        while !self.batches.is_closed() {
            let pause = match self.look().await {
                Ok(pause) => {
                    backoff.reset();
                    pause
                }
                Err(failure) => {
                    let waiting = self.custom.iter().filter(|(_, custom)| custom.following.is_none());
                    for (kind, _) in waiting {
                        if self.sources.failed(*kind, failure.reason, &failure.message) {
                            tracing::warn!(kind = kind.as_str(), reason = %failure.reason, error = failure.message, "it cannot be told whether the API server serves this kind");
                        }
                    }
                    backoff.next(failure.retry_after)
                }
            };
            let recovered = self.recovered.notified();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = recovered => tokio::time::sleep(pause.min(limits::KUBE_BACKOFF_FIRST)).await,
                () = self.lost.notified() => tokio::time::sleep(pause.min(limits::KUBE_DISCOVER_ABSENT)).await,
            }
        }
    }

    /// Looks once, and says when to look again.
    async fn look(&mut self) -> Result<Duration, Failure> {
        let served = self.served().await?;
        let missing = self.custom.iter().any(|(kind, custom)| !served.contains_key(kind) && !custom.told);
        if missing {
            // An API server that starts does not know of its kinds yet, and would seem to have no policy at all.
            self.is_ready().await?;
        }
        for (kind, custom) in &mut self.custom {
            let ended = custom.following.as_ref().is_some_and(|(_, task)| task.is_finished());
            match served.get(kind) {
                Some(resource) => {
                    custom.missing_since = None;
                    custom.told = true;
                    let same = custom.following.as_ref().is_some_and(|(followed, _)| followed == resource);
                    if same && !ended {
                        continue;
                    }
                    // Another version is listed anew; until that list has come, what was read in the old one stays.
                    if let Some((_, task)) = custom.following.take() {
                        task.abort();
                    }
                    let task =
                        follow(&self.client, resource, &self.sources, &self.batches, (&self.recovered, &self.lost));
                    custom.following = Some((resource.clone(), task));
                }
                None if custom.following.is_none() => {
                    // Also when that could not be told for a while.
                    self.sources.absent(*kind);
                    if !custom.told {
                        custom.told = true;
                        // Nobody listens any more: the next round ends.
                        let _ = self.batches.send(Batch::Replace(*kind, Vec::new())).await;
                    }
                }
                None => {
                    let since = *custom.missing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= limits::KUBE_KIND_GONE {
                        if let Some((_, task)) = custom.following.take() {
                            task.abort();
                        }
                        tracing::warn!(
                            kind = kind.as_str(),
                            "the API server no longer serves this kind; its objects are gone"
                        );
                        self.sources.absent(*kind);
                        let _ = self.batches.send(Batch::Replace(*kind, Vec::new())).await;
                    }
                }
            }
        }
        let absent = self.custom.keys().any(|kind| !served.contains_key(kind));
        Ok(if absent { limits::KUBE_DISCOVER_ABSENT } else { limits::KUBE_DISCOVER_SERVED })
    }

    /// Which kinds are served, each in the newest version that is understood. An older one could leave out fields that its schema lacks.
    async fn served(&self) -> Result<Served, Failure> {
        let groups: APIGroupList = self.get("/apis").await?;
        let mut served = Served::new();
        let mut lists: BTreeMap<String, APIResourceList> = BTreeMap::new();
        for kind in self.custom.keys() {
            let Some(group) = groups.groups.iter().find(|group| group.name == kind.group()) else { continue };
            for version in kind.versions().iter().rev() {
                if !group.versions.iter().any(|one| one.version == *version) {
                    continue;
                }
                let path = format!("/apis/{}/{version}", kind.group());
                if !lists.contains_key(&path) {
                    lists.insert(path.clone(), self.get(&path).await?);
                }
                let found =
                    lists[&path].resources.iter().find(|one| one.kind == kind.as_str() && !one.name.contains('/'));
                if let Some(found) = found {
                    let path = format!("{path}/{}", found.name);
                    let resource = Resource { kind: *kind, version: (*version).to_owned(), path, field_selector: None };
                    served.insert(*kind, resource);
                    break;
                }
            }
        }
        Ok(served)
    }

    /// Whether the API server has read its CRDs. One that does not tell is taken at its word.
    async fn is_ready(&self) -> Result<(), Failure> {
        match wire::ask(&self.client, request("/readyz")?).await {
            Err(failure) if matches!(failure.reason, Reason::Forbidden | Reason::Unauthorized | Reason::NotServed) => {
                Ok(())
            }
            answer => answer.map(drop),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let body = wire::ask(&self.client, request(path)?).await?;
        serde_json::from_slice(&body).map_err(|error| Failure::unreadable(&error))
    }
}

fn request(path: &str) -> Result<http::Request<Vec<u8>>, Failure> {
    http::Request::get(path)
        .body(Vec::new())
        .map_err(|error| Failure::new(Reason::Refused, format!("{path} is no path: {error}")))
}

/// Follows one kind, in a task of its own.
pub(super) fn follow(
    client: &Client,
    resource: &Resource,
    sources: &Arc<Sources>,
    batches: &mpsc::Sender<Batch>,
    (recovered, lost): (&Arc<Notify>, &Arc<Notify>),
) -> JoinHandle<End> {
    sources.begin(resource.kind, &resource.version);
    let reflector = Reflector {
        client: client.clone(),
        resource: resource.clone(),
        optional: is_custom(resource.kind),
        sources: Arc::clone(sources),
        batches: batches.clone(),
        recovered: Arc::clone(recovered),
        page: limits::KUBE_PAGE_OBJECTS,
    };
    let lost = Arc::clone(lost);
    tokio::spawn(async move {
        let end = reflector.run().await;
        lost.notify_one();
        end
    })
}

fn is_custom(kind: Kind) -> bool {
    kind.group().contains('.') && kind != Kind::EndpointSlice
}
