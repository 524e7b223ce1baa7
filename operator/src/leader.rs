//! Leader election by a Lease, in the way of client-go: of many instances one works.
//!
//! # Guarantees
//! - Every write of the Lease carries the resource version that was read, so of two that reach for it one fails.
//! - Clocks need not agree: another's Lease counts as expired when *this* instance has seen it unchanged for its whole duration.
//! - A leader that could not renew for [`RENEW_DEADLINE`] is told so before anybody else can have taken over ([`DURATION`]). What it does then is
//!   to stop the process: nothing is left running that believes it leads.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::time::{sleep, timeout};

/// How long a Lease holds after it was renewed.
pub const DURATION: Duration = Duration::from_secs(15);

/// How long a leader goes on without having renewed.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Time between two attempts to take or renew the Lease.
const RETRY: Duration = Duration::from_secs(2);

/// Longest wait for one answer of the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// One instance's part in the election.
pub struct Election {
    api: Api<Lease>,
    name: String,
    namespace: String,
    identity: String,
    observed: Option<Observed>,
}

/// The Lease as it was seen last, and since when it has been like that.
struct Observed {
    lease: Lease,
    unchanged_since: Instant,
}

/// Why the Lease could not be taken or renewed.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("API server: {0}")]
    Api(#[from] kube::Error),
    #[error("no answer of the API server")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// The Lease is lost: somebody else leads, or may soon.
#[derive(Debug, thiserror::Error)]
#[error("leadership lost: {0}")]
pub struct Lost(String);

impl Election {
    /// Takes part as `identity`, which no other instance may have.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            identity,
            observed: None,
        }
    }

    /// Waits until this instance leads.
    pub async fn acquire(&mut self) {
        tracing::info!(
            lease = self.name,
            namespace = self.namespace,
            identity = self.identity,
            "waiting to lead"
        );
        loop {
            match self.attempt().await {
                Ok(true) => {
                    tracing::info!(identity = self.identity, "leading");
                    return;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(lease = self.name, %error, "take the Lease"),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews the Lease until that fails for too long, or somebody else has it.
    pub async fn hold(&mut self) -> Lost {
        let mut renewed_at = Instant::now();
        loop {
            sleep(RETRY).await;
            // What counts is when the renewal was sent: when it is answered, some of the time has passed already.
            let sent_at = Instant::now();
            match self.attempt().await {
                Ok(true) => renewed_at = sent_at,
                Ok(false) => return Lost(format!("the Lease is held by `{}`", self.holder())),
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "renew the Lease");
                    if renewed_at.elapsed() + RETRY >= RENEW_DEADLINE {
                        return Lost(format!(
                            "not renewed for {} s: {error}",
                            renewed_at.elapsed().as_secs()
                        ));
                    }
                }
            }
        }
    }

    /// Gives the Lease up, so that another instance need not wait for it to expire.
    pub async fn release(mut self) {
        let released = async {
            let mut lease = self.api.get(&self.name).await?;
            self.observe(&lease);
            if self.holder() != self.identity {
                return Ok(());
            }
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            // A second is the least that the API server takes.
            spec.lease_duration_seconds = Some(1);
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            tracing::info!(lease = self.name, "Lease released");
            Ok::<(), kube::Error>(())
        };
        match timeout(REQUEST_TIMEOUT, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "release the Lease"),
            Err(_) => tracing::warn!("release the Lease: no answer of the API server"),
        }
    }

    fn holder(&self) -> &str {
        let lease = self.observed.as_ref().map(|observed| &observed.lease);
        lease.and_then(holder).unwrap_or_default()
    }

    /// Tries once to take or renew the Lease. Returns whether this instance has it.
    async fn attempt(&mut self) -> Result<bool, LeaseError> {
        let Some(lease) = timeout(REQUEST_TIMEOUT, self.api.get_opt(&self.name)).await?? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.claim(None)),
            };
            let created = timeout(REQUEST_TIMEOUT, self.api.create(&PostParams::default(), &lease)).await?;
            return self.won(created);
        };
        self.observe(&lease);
        if !self.may_take(Instant::now()) {
            return Ok(false);
        }
        let wanted = Lease { spec: Some(self.claim(lease.spec.as_ref())), ..lease };
        let replaced =
            timeout(REQUEST_TIMEOUT, self.api.replace(&self.name, &PostParams::default(), &wanted)).await?;
        self.won(replaced)
    }

    fn won(&mut self, written: kube::Result<Lease>) -> Result<bool, LeaseError> {
        match written {
            Ok(lease) => {
                self.observe(&lease);
                Ok(true)
            }
            // Somebody else was quicker: what he wrote is seen with the next attempt.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn observe(&mut self, lease: &Lease) {
        let unchanged = self
            .observed
            .as_ref()
            .is_some_and(|observed| observed.lease.resource_version() == lease.resource_version());
        if !unchanged {
            self.observed = Some(Observed { lease: lease.clone(), unchanged_since: Instant::now() });
        }
    }

    /// Whether the Lease is ours, nobody's, or expired.
    fn may_take(&self, now: Instant) -> bool {
        let Some(Observed { lease, unchanged_since }) = &self.observed else { return false };
        match holder(lease) {
            None => true,
            Some(holder) if holder == self.identity => true,
            Some(_) => {
                let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
                let duration = seconds
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map_or(DURATION, Duration::from_secs);
                now.duration_since(*unchanged_since) >= duration
            }
        }
    }

    /// The Lease as ours, following what it was before.
    fn claim(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let was_ours =
            before.is_some_and(|before| before.holder_identity.as_deref() == Some(self.identity.as_str()));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            acquire_time: before
                .filter(|_| was_ours)
                .and_then(|before| before.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(if was_ours || before.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lease(version: &str, holder: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": "l", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3,
                "acquireTime": "2026-11-21T10:00:00.000000Z", "renewTime": "2001-01-01T00:00:00.000000Z"},
        }))
        .unwrap()
    }

    /// An instance `me` that never talks to anybody.
    fn election() -> Election {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Election::new(Client::try_from(config).unwrap(), "default", "l", "me".into())
    }

    #[tokio::test]
    async fn waits_for_its_own_clock_not_for_the_holders() {
        let mut election = election();
        election.observe(&lease("1", "other"));
        let now = Instant::now();
        assert!(!election.may_take(now), "its renew time lies far back, but clocks may differ");
        assert!(!election.may_take(now + Duration::from_secs(14)));
        assert!(election.may_take(now + Duration::from_secs(15)));
    }

    #[tokio::test]
    async fn renewal_by_the_holder_starts_the_wait_anew() {
        let mut election = election();
        election.observe(&lease("1", "other"));
        let first = election.observed.as_ref().unwrap().unchanged_since;
        election.observe(&lease("1", "other"));
        assert_eq!(election.observed.as_ref().unwrap().unchanged_since, first);
        election.observe(&lease("2", "other"));
        assert!(election.observed.as_ref().unwrap().unchanged_since > first);
    }

    #[tokio::test]
    async fn takes_what_is_its_own_or_nobodys() {
        for holder in ["me", ""] {
            let mut election = election();
            election.observe(&lease("1", holder));
            assert!(election.may_take(Instant::now()));
        }
    }

    #[tokio::test]
    async fn transitions_count_changes_of_the_holder() {
        let election = election();
        let renewed = election.claim(lease("1", "me").spec.as_ref());
        assert_eq!(renewed.lease_transitions, Some(3));
        assert_eq!(renewed.acquire_time.unwrap().0.to_string(), "2026-11-21T10:00:00Z");
        let taken = election.claim(lease("1", "other").spec.as_ref());
        assert_eq!(taken.lease_transitions, Some(4));
        assert_eq!(election.claim(None).lease_transitions, Some(0));
    }

    #[test]
    fn leader_gives_up_before_anybody_can_take_over() {
        assert!(RENEW_DEADLINE + REQUEST_TIMEOUT < DURATION);
    }
}
