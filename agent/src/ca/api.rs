//! What the authority asks of the API server besides its watches: single objects, by name.

use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::watch::kube::{
    health::Reason,
    wire::{self, Failure},
};

/// The API server, from one namespace.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    namespace: String,
}

impl Api {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The path of a core object of the own namespace, or of all of them.
    pub(super) fn core(&self, plural: &str, name: Option<&str>) -> String {
        let all = format!("/api/v1/namespaces/{}/{plural}", self.namespace);
        name.map_or(all.clone(), |name| format!("{all}/{name}"))
    }

    /// An object, if there is one.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        match self.send(Method::GET, path, None, "").await {
            Ok(body) => read(&body).map(Some),
            Err(failure) if failure.reason == Reason::NotServed => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Creates an object; `None` if somebody else was faster.
    pub(super) async fn create<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        object: &T,
    ) -> Result<Option<T>, Failure> {
        let body = write(object)?;
        unless_conflict(self.send(Method::POST, path, Some(body), "application/json").await)
    }

    /// Replaces an object, with the version that it has; `None` if it has changed since.
    pub(super) async fn replace<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        object: &T,
    ) -> Result<Option<T>, Failure> {
        let body = write(object)?;
        unless_conflict(self.send(Method::PUT, path, Some(body), "application/json").await)
    }

    /// Changes some fields of an object, whatever its version.
    pub(super) async fn merge(&self, path: &str, patch: &Value) -> Result<(), Failure> {
        self.send(Method::PATCH, path, Some(write(patch)?), "application/merge-patch+json").await.map(drop)
    }

    /// Sends an object where nothing is stored, and reads the answer.
    pub(super) async fn ask<T: Serialize + DeserializeOwned>(&self, path: &str, question: &T) -> Result<T, Failure> {
        read(&self.send(Method::POST, path, Some(write(question)?), "application/json").await?)
    }

    /// Deletes an object; one that is not there is no failure.
    pub(super) async fn delete(&self, path: &str) -> Result<(), Failure> {
        match self.send(Method::DELETE, path, None, "").await {
            Err(failure) if failure.reason != Reason::NotServed => Err(failure),
            _ => Ok(()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        content: &str,
    ) -> Result<bytes::Bytes, Failure> {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, content);
        }
        let request = request
            .body(body.unwrap_or_default())
            .map_err(|error| Failure::new(Reason::Refused, format!("{path} is no path: {error}")))?;
        wire::ask(&self.client, request).await
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::unreadable(&error))
}

fn write(object: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(object).map_err(|error| Failure::unreadable(&error))
}

fn unless_conflict<T: DeserializeOwned>(answer: Result<bytes::Bytes, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(body) => read(&body).map(Some),
        Err(failure) if failure.code == 409 => Ok(None),
        Err(failure) => Err(failure),
    }
}
