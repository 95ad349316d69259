//! Reviews of bearer tokens. The project's API server has none; these are answered in the form that `authentication.k8s.io/v1`
//! documents, from a table that says what each token is.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

/// Where reviews are asked for.
pub(super) const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// What a token says, as a cluster's API server would have put it there.
#[derive(Clone, Debug)]
pub struct Token {
    /// `system:serviceaccount:<namespace>:<name>`, for those of service accounts.
    pub username: String,
    /// For whom it is meant.
    pub audiences: Vec<String>,
    /// Name and UID of the pod that it is bound to.
    pub pod: Option<(String, String)>,
    /// The node that this pod is on, as API servers from 1.32 on say.
    pub node: Option<String>,
    /// Whether whoever reviews it knows of audiences; one that does not confirms it for everybody, and names none.
    pub knows_audiences: bool,
}

impl Token {
    /// The token of a service account, bound to a pod.
    #[must_use]
    pub fn bound(account: (&str, &str), audience: &str, pod: (&str, &str), node: &str) -> Self {
        Self {
            username: format!("system:serviceaccount:{}:{}", account.0, account.1),
            audiences: vec![audience.to_owned()],
            pod: Some((pod.0.to_owned(), pod.1.to_owned())),
            node: Some(node.to_owned()),
            knows_audiences: true,
        }
    }
}

/// The tokens that there are.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    table: Mutex<HashMap<String, Token>>,
}

impl Tokens {
    pub(super) fn put(&self, token: &str, says: Token) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned(), says);
    }

    pub(super) fn remove(&self, token: &str) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Answers a review.
    pub(super) fn review(&self, question: &Value) -> Value {
        let token = question.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        let asked: Vec<&str> = question
            .pointer("/spec/audiences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let status = match table.get(token) {
            None => json!({"user": {}, "error": "invalid bearer token"}),
            Some(says) if says.knows_audiences && !says.audiences.iter().any(|one| asked.contains(&one.as_str())) => {
                let error = format!(
                    "[invalid bearer token, token audiences {:?} is invalid for the target audiences {asked:?}]",
                    says.audiences
                );
                json!({"user": {}, "error": error})
            }
            Some(says) => confirmed(says, &asked),
        };
        let mut answer = question.clone();
        answer["metadata"] = json!({"creationTimestamp": null});
        answer["status"] = status;
        answer
    }
}

fn confirmed(says: &Token, asked: &[&str]) -> Value {
    let mut extra = json!({"authentication.kubernetes.io/credential-id": ["JTI=7ee52be0-9045-4653-aa5e-0da57b8dccdc"]});
    if let Some((name, uid)) = &says.pod {
        extra["authentication.kubernetes.io/pod-name"] = json!([name]);
        extra["authentication.kubernetes.io/pod-uid"] = json!([uid]);
    }
    if let Some(node) = &says.node {
        extra["authentication.kubernetes.io/node-name"] = json!([node]);
        extra["authentication.kubernetes.io/node-uid"] = json!(["9ff80b1f-0a0c-4b6a-b3a5-2b0c4b2f8a11"]);
    }
    let groups = match says.username.split(':').collect::<Vec<_>>()[..] {
        ["system", "serviceaccount", namespace, _] => {
            json!(["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"])
        }
        _ => json!(["system:authenticated"]),
    };
    let user = json!({"username": says.username, "uid": "0f9d8c9e-2a35-4b1c-8ab5-7d1de5c8f3a2", "groups": groups, "extra": extra});
    let mut status = json!({"authenticated": true, "user": user});
    if says.knows_audiences {
        let both: Vec<_> = says.audiences.iter().filter(|one| asked.contains(&one.as_str())).collect();
        status["audiences"] = json!(both);
    }
    status
}
