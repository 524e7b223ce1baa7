//! Secrets that TaskQueues name, read one by one.
//!
//! They are not watched: a watch would need the right to list all secrets of a namespace, and this operator asks for none but to get
//! those it was given. A Secret in use is read again every half a minute instead.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::plan::reason::Reason;
use crate::plan::status::Problem;

/// What was read counts this long.
pub(super) const REREAD_AFTER: Duration = Duration::from_secs(30);

/// What could not be read is tried again after this long: somebody waits for it.
const RETRY_AFTER: Duration = Duration::from_secs(4);

/// Namespace and name of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SecretName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// The keys of a Secret.
pub(super) type Fields = Arc<BTreeMap<String, ByteString>>;

/// Why a Secret isn't there for us.
#[derive(Clone, Debug, PartialEq)]
enum Refusal {
    NotFound,
    /// The API server's message.
    Forbidden(String),
}

type Known = Result<Fields, Refusal>;

struct Entry {
    known: Known,
    read_at: Instant,
}

/// The Secrets in use.
pub(super) struct Secrets {
    client: Client,
    entries: Mutex<HashMap<SecretName, Entry>>,
}

impl Secrets {
    pub(super) fn new(client: Client) -> Self {
        Self { client, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SecretName, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys of a Secret, not older than `max_age`, or why there are none.
    ///
    /// # Errors
    /// When the API server can't be asked and nothing is known from before.
    pub(super) async fn get(
        &self,
        secret: &SecretName,
        max_age: Duration,
    ) -> Result<Result<Fields, Problem>, kube::Error> {
        let known = self.entries().get(secret).and_then(|entry| {
            let max_age = if entry.known.is_ok() { max_age } else { RETRY_AFTER };
            (entry.read_at.elapsed() < max_age).then(|| entry.known.clone())
        });
        let known = match known {
            Some(known) => known,
            None => self.read(secret).await?.0,
        };
        Ok(known.map_err(|refusal| refusal.problem(secret)))
    }

    /// Reads a Secret. Returns what is known then, and whether it is something else than before.
    async fn read(&self, secret: &SecretName) -> Result<(Known, bool), kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        let known = match api.get(&secret.name).await {
            Ok(found) => Ok(Arc::new(found.data.unwrap_or_default())),
            Err(kube::Error::Api(status)) if status.is_not_found() => Err(Refusal::NotFound),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Err(Refusal::Forbidden(status.message)),
            Err(error) => {
                let mut entries = self.entries();
                // What was known holds: an API server that is down must not cut off the brokers.
                return match entries.get_mut(secret) {
                    Some(entry) => Ok((entry.known.clone(), false)),
                    None => Err(error),
                };
            }
        };
        let entry = Entry { known: known.clone(), read_at: Instant::now() };
        let before = self.entries().insert(secret.clone(), entry);
        let changed = before.is_some_and(|before| before.known != known);
        Ok((known, changed))
    }

    /// Reads again what is due of the Secrets in use, and forgets all others. Returns those that have changed.
    pub(super) async fn refresh(&self, in_use: &HashSet<SecretName>) -> Vec<SecretName> {
        let due: Vec<SecretName> = {
            let mut entries = self.entries();
            entries.retain(|secret, _| in_use.contains(secret));
            let due = entries.iter().filter(|(_, entry)| entry.read_at.elapsed() >= REREAD_AFTER);
            due.map(|(secret, _)| secret.clone()).collect()
        };
        let mut changed = Vec::new();
        for secret in due {
            match self.read(&secret).await {
                Ok((_, true)) => {
                    tracing::info!(namespace = secret.namespace, secret = secret.name, "Secret has changed");
                    changed.push(secret);
                }
                Ok((_, false)) => {}
                Err(error) => {
                    tracing::warn!(namespace = secret.namespace, secret = secret.name, %error, "read Secret")
                }
            }
        }
        changed
    }
}

impl Refusal {
    fn problem(&self, secret: &SecretName) -> Problem {
        let SecretName { namespace, name } = secret;
        match self {
            Self::NotFound => Problem {
                reason: Reason::SecretNotFound,
                message: format!("Secret `{name}` does not exist in namespace `{namespace}`"),
            },
            Self::Forbidden(said) => Problem {
                reason: Reason::SecretForbidden,
                message: format!(
                    "the operator may not read Secret `{name}`; the owner of namespace `{namespace}` can allow it: {}",
                    rolebinding_command(namespace, said)
                ),
            },
        }
    }
}

/// The command that lets the operator read secrets in a namespace. The API server's refusal says who the operator is to it.
fn rolebinding_command(namespace: &str, said: &str) -> String {
    let user = said.split('"').skip_while(|part| !part.ends_with("User ")).nth(1).unwrap_or_default();
    let subject = match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    };
    format!(
        "kubectl create rolebinding soloist-secret-reader -n {namespace} --clusterrole=soloist-secret-reader {subject}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_the_command_that_helps() {
        let said = "secrets \"rabbitmq\" is forbidden: User \"system:serviceaccount:soloist-system:soloist\" cannot get \
                    resource \"secrets\" in API group \"\" in the namespace \"default\"";
        assert_eq!(
            rolebinding_command("default", said),
            "kubectl create rolebinding soloist-secret-reader -n default --clusterrole=soloist-secret-reader \
             --serviceaccount=soloist-system:soloist"
        );
        let said = "secrets \"rabbitmq\" is forbidden: User \"jane\" cannot get resource";
        assert!(rolebinding_command("default", said).ends_with("--user=jane"));
    }
}
