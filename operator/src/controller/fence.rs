//! Whether the API server itself keeps Kubernetes from deleting workers that aren't drained: the ValidatingAdmissionPolicy of the chart.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::plan::metadata::SCALE_IN_POLICY;
use crate::plan::status::Protection;

/// Wait before asking again what was forbidden.
const FORBIDDEN: Duration = Duration::from_secs(300);

enum Seen {
    Policy(bool),
    Binding(bool),
}

/// Keeps `protection` true for ever.
pub(super) async fn watch(client: &Client, protection: &watch::Sender<Protection>) {
    let mut told = false;
    loop {
        // Asked for first: a watch that is refused is a warning in the log each time, and in single-namespace mode that is how it should be.
        let forbidden = is_refused(client).await || is_forbidden(&follow(client, protection).await);
        if !forbidden {
            told = false;
            continue;
        }
        set(protection, Protection::Unknown);
        if !std::mem::replace(&mut told, true) {
            tracing::info!(
                policy = SCALE_IN_POLICY,
                "not allowed to look for the policy that protects workers, as is usual in single-namespace mode: they drain before they go, on \
                 best effort"
            );
        }
        tokio::time::sleep(FORBIDDEN).await;
    }
}

/// Whether the API server refuses to show policy or binding.
async fn is_refused(client: &Client) -> bool {
    let one = ListParams::default().fields(&format!("metadata.name={SCALE_IN_POLICY}"));
    let refused =
        |error: Option<kube::Error>| matches!(error, Some(kube::Error::Api(status)) if status.is_forbidden());
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    refused(policies.list_metadata(&one).await.err()) || refused(bindings.list_metadata(&one).await.err())
}

/// Follows policy and binding until one of them can't be read.
async fn follow(client: &Client, protection: &watch::Sender<Protection>) -> watcher::Error {
    let policy =
        watcher::watch_object(Api::<ValidatingAdmissionPolicy>::all(client.clone()), SCALE_IN_POLICY)
            .default_backoff()
            .map(|seen| seen.map(|policy| Seen::Policy(policy.is_some())));
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(client.clone());
    let binding = watcher::watch_object(bindings, SCALE_IN_POLICY)
        .default_backoff()
        .map(|seen| seen.map(|binding| Seen::Binding(binding.as_ref().is_some_and(denies))));
    let mut both = std::pin::pin!(stream::select(policy, binding));
    let (mut has_policy, mut has_binding) = (None, None);
    while let Some(seen) = both.next().await {
        match seen {
            Ok(Seen::Policy(there)) => has_policy = Some(there),
            Ok(Seen::Binding(there)) => has_binding = Some(there),
            Err(error) if is_forbidden(&error) => return error,
            Err(error) => {
                tracing::debug!(%error, "can't look for the scale-in policy");
                continue;
            }
        }
        if let (Some(policy), Some(binding)) = (has_policy, has_binding) {
            set(protection, if policy && binding { Protection::Guaranteed } else { Protection::Missing });
        }
    }
    watcher::Error::NoResourceVersion
}

fn set(protection: &watch::Sender<Protection>, now: Protection) {
    protection.send_if_modified(|before| std::mem::replace(before, now) != now);
}

/// Whether a binding makes its policy deny, rather than warn or audit.
fn denies(binding: &ValidatingAdmissionPolicyBinding) -> bool {
    let actions = binding.spec.as_ref().and_then(|spec| spec.validation_actions.as_ref());
    actions.is_some_and(|actions| actions.iter().any(|action| action == "Deny"))
}

fn is_forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.is_forbidden()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that has these, or forbids to look.
    fn api_server(policies: Option<Value>, bindings: Value) -> Client {
        let serve = move |request: Request<Body>| {
            let uri = request.uri().to_string();
            let items = match uri.contains("bindings") {
                true => Some(bindings.clone()),
                false => policies.clone(),
            };
            async move {
                if uri.contains("watch=") {
                    std::future::pending::<()>().await;
                }
                let (code, answer) = match items {
                    Some(items) => (200, json!({"metadata": {"resourceVersion": "1"}, "items": items})),
                    None => (403, json!({"kind": "Status", "code": 403, "reason": "Forbidden"})),
                };
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        };
        Client::new(tower::service_fn(serve), "default")
    }

    fn policy() -> Value {
        json!([{"metadata": {"name": SCALE_IN_POLICY, "resourceVersion": "1"}}])
    }

    fn binding(action: &str) -> Value {
        let metadata = json!({"name": SCALE_IN_POLICY, "resourceVersion": "1"});
        json!([{"metadata": metadata, "spec": {"validationActions": [action]}}])
    }

    /// What is found out, when something else was thought before.
    async fn found(client: Client, before: Protection) -> Protection {
        let protection = watch::Sender::new(before);
        let mut told = protection.subscribe();
        tokio::select! {
            () = super::watch(&client, &protection) => unreachable!("it never ends"),
            changed = told.changed() => changed.unwrap(),
        }
        *protection.borrow()
    }

    #[tokio::test]
    async fn a_policy_whose_binding_denies_guarantees_and_nothing_less_does() {
        let guarantees = api_server(Some(policy()), binding("Deny"));
        assert_eq!(found(guarantees, Protection::Unknown).await, Protection::Guaranteed);
        for (policies, bindings) in [
            (json!([]), binding("Deny")),
            (policy(), json!([])),
            (policy(), binding("Audit")),
            (json!([]), json!([])),
        ] {
            let lacks = api_server(Some(policies), bindings);
            assert_eq!(found(lacks, Protection::Guaranteed).await, Protection::Missing);
        }
    }

    #[tokio::test]
    async fn who_may_not_look_does_not_know() {
        let forbids = api_server(None, json!([]));
        assert_eq!(found(forbids, Protection::Guaranteed).await, Protection::Unknown);
    }
}
