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
use tokio::sync::Notify;

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
    cache: Cache,
    /// Whether the operator serves certain namespaces only, where the chart makes no ClusterRole.
    namespaced: bool,
}

/// What is known of Secrets.
#[derive(Default)]
struct Cache {
    state: Mutex<State>,
    /// Some Secret has changed.
    news: Notify,
}

#[derive(Default)]
struct State {
    entries: HashMap<SecretName, Entry>,
    /// Those that were found to be something else than before, whoever read them, and that nobody was told of yet.
    changed: HashSet<SecretName>,
}

impl Cache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, if it isn't older than `max_age`; what could not be read counts for a shorter time.
    fn fresh(&self, secret: &SecretName, max_age: Duration) -> Option<Known> {
        let state = self.state();
        let entry = state.entries.get(secret)?;
        let max_age = if entry.known.is_ok() { max_age } else { RETRY_AFTER };
        (entry.read_at.elapsed() < max_age).then(|| entry.known.clone())
    }

    /// Takes in what was read, and notes whether it is something else than before.
    fn take_in(&self, secret: &SecretName, known: Known, read_at: Instant) {
        let mut state = self.state();
        let before = state.entries.insert(secret.clone(), Entry { known: known.clone(), read_at });
        if before.is_some_and(|before| before.known != known) {
            tracing::info!(namespace = secret.namespace, secret = secret.name, "Secret has changed");
            state.changed.insert(secret.clone());
            self.news.notify_one();
        }
    }

    /// Forgets what isn't in use. Returns what is to be read again.
    fn due(&self, in_use: &HashSet<SecretName>, now: Instant) -> Vec<SecretName> {
        let mut state = self.state();
        state.entries.retain(|secret, _| in_use.contains(secret));
        let is_due = |entry: &Entry| now.saturating_duration_since(entry.read_at) >= REREAD_AFTER;
        state.entries.iter().filter(|(_, entry)| is_due(entry)).map(|(secret, _)| secret.clone()).collect()
    }

    /// Names of the known Secrets of a namespace, sorted.
    fn names_in(&self, namespace: &str) -> Vec<String> {
        let state = self.state();
        let of_namespace = state.entries.keys().filter(|secret| secret.namespace == namespace);
        let mut names: Vec<String> = of_namespace.map(|secret| secret.name.clone()).collect();
        names.sort_unstable();
        names
    }
}

impl Secrets {
    /// No Secrets yet. `namespaced` says that the operator serves certain namespaces only.
    pub(super) fn new(client: Client, namespaced: bool) -> Self {
        Self { client, cache: Cache::default(), namespaced }
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
        let known = match self.cache.fresh(secret, max_age) {
            Some(known) => known,
            None => self.read(secret).await?,
        };
        Ok(known.map_err(|refusal| {
            let names = self.namespaced.then(|| self.cache.names_in(&secret.namespace));
            refusal.problem(secret, names.as_deref())
        }))
    }

    /// Reads a Secret. Returns what is known then.
    async fn read(&self, secret: &SecretName) -> Result<Known, kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        let known = match api.get(&secret.name).await {
            Ok(found) => Ok(Arc::new(found.data.unwrap_or_default())),
            Err(kube::Error::Api(status)) if status.is_not_found() => Err(Refusal::NotFound),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Err(Refusal::Forbidden(status.message)),
            // What was known holds: an API server that is down must not cut off the brokers.
            Err(error) => {
                let state = self.cache.state();
                return state.entries.get(secret).map(|entry| entry.known.clone()).ok_or(error);
            }
        };
        self.cache.take_in(secret, known.clone(), Instant::now());
        Ok(known)
    }

    /// Reads again what is due of the Secrets in use, and forgets all others.
    pub(super) async fn refresh(&self, in_use: &HashSet<SecretName>) {
        for secret in self.cache.due(in_use, Instant::now()) {
            if let Err(error) = self.read(&secret).await {
                tracing::warn!(namespace = secret.namespace, secret = secret.name, %error, "read Secret");
            }
        }
    }

    /// Waits until some Secret has changed, gone or become forbidden.
    pub(super) async fn news(&self) {
        self.cache.news.notified().await;
    }

    /// The Secrets that have changed, gone or become forbidden since this was asked last.
    pub(super) fn take_changed(&self) -> HashSet<SecretName> {
        std::mem::take(&mut self.cache.state().changed)
    }
}

impl Refusal {
    /// What to tell the user. `names` are the Secrets of the namespace that are in use, if the operator serves certain namespaces only.
    fn problem(&self, secret: &SecretName, names: Option<&[String]>) -> Problem {
        let SecretName { namespace, name } = secret;
        match self {
            Self::NotFound => Problem {
                reason: Reason::SecretNotFound,
                message: format!("Secret `{name}` does not exist in namespace `{namespace}`"),
            },
            Self::Forbidden(said) => Problem {
                reason: Reason::SecretForbidden,
                message: match names {
                    None => format!(
                        "the operator may not read Secret `{name}`; the owner of namespace `{namespace}` can allow it: {}",
                        rolebinding_command(namespace, said)
                    ),
                    Some(names) => format!(
                        "the operator may not read Secret `{name}`; whoever installed the operator can allow it with the chart's \
                         value rbac.secrets: {}",
                        chart_command(namespace, names)
                    ),
                },
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

/// The command that lets an operator of certain namespaces read secrets in one of them: there is no ClusterRole to bind then.
fn chart_command(namespace: &str, names: &[String]) -> String {
    format!(
        "helm upgrade … --reuse-values --set 'rbac.secrets[0].namespace={namespace}' --set 'rbac.secrets[0].names={{{}}}'",
        names.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> SecretName {
        SecretName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn password(value: &str) -> Known {
        Ok(Arc::new(BTreeMap::from([("password".to_owned(), ByteString(value.into()))])))
    }

    fn take_changed(cache: &Cache) -> HashSet<SecretName> {
        std::mem::take(&mut cache.state().changed)
    }

    #[test]
    fn change_is_told_once_whoever_reads_it() {
        let (cache, rabbitmq) = (Cache::default(), named("rabbitmq"));
        cache.take_in(&rabbitmq, password("a"), Instant::now());
        cache.take_in(&rabbitmq, password("a"), Instant::now());
        assert!(take_changed(&cache).is_empty());
        // A reconciliation reads it, and again, before the housekeeping gets to it.
        cache.take_in(&rabbitmq, password("b"), Instant::now());
        cache.take_in(&rabbitmq, password("b"), Instant::now());
        assert_eq!(take_changed(&cache), HashSet::from([rabbitmq]));
        assert!(take_changed(&cache).is_empty());
    }

    #[test]
    fn deletion_and_refusal_are_changes() {
        let (cache, rabbitmq) = (Cache::default(), named("rabbitmq"));
        cache.take_in(&rabbitmq, password("a"), Instant::now());
        let refused = Refusal::Forbidden("no".to_owned());
        for known in [Err(Refusal::NotFound), Err(refused), password("a")] {
            cache.take_in(&rabbitmq, known, Instant::now());
            assert_eq!(take_changed(&cache).len(), 1);
        }
    }

    #[test]
    fn only_what_is_in_use_is_read_again() {
        let cache = Cache::default();
        let now = Instant::now();
        cache.take_in(&named("rabbitmq"), password("a"), now);
        cache.take_in(&named("unused"), password("a"), now);
        let in_use = HashSet::from([named("rabbitmq")]);
        assert!(cache.due(&in_use, now).is_empty());
        assert_eq!(cache.due(&in_use, now + REREAD_AFTER), [named("rabbitmq")]);
        assert_eq!(cache.names_in("default"), ["rabbitmq"]);
    }

    #[test]
    fn refusal_in_certain_namespaces_names_the_chart_value() {
        let secret = named("rabbitmq");
        let refusal = Refusal::Forbidden("secrets \"rabbitmq\" is forbidden".to_owned());
        let names = ["rabbitmq".to_owned(), "redis".to_owned()];
        let message = refusal.problem(&secret, Some(&names)).message;
        assert!(
            message.ends_with(
                "--set 'rbac.secrets[0].namespace=default' --set 'rbac.secrets[0].names={rabbitmq,redis}'"
            ),
            "{message}"
        );
        assert!(!message.contains("rolebinding"));
        assert!(refusal.problem(&secret, None).message.contains("kubectl create rolebinding"));
    }

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
