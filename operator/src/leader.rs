//! Leader election by a Lease, in the way of client-go: of many instances one works.
//!
//! # Guarantees
//! - Every write of the Lease carries the resource version that was read, so of two that reach for it one fails.
//! - Clocks need not agree: another's Lease counts as expired when *this* instance has seen it unchanged for its whole duration.
//! - A leader that could not renew for [`RENEW_DEADLINE`] is told so before anybody else can have taken over ([`DURATION`]). What it does then is
//!   to stop the process: nothing is left running that believes it leads.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::time::{Instant, sleep, timeout};

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
    /// When the attempt began by which the Lease was taken or renewed last: when that is answered, some of its time has passed already.
    renewed_at: Instant,
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
    /// What the Lease is now is seen with the next attempt.
    #[error("somebody else has just changed it")]
    Outrun,
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
            renewed_at: Instant::now(),
        }
    }

    /// Waits until this instance leads. `seen` is called each time the API server has shown the Lease.
    pub async fn acquire(&mut self, seen: impl Fn()) {
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
                Ok(false) | Err(LeaseError::Outrun) => seen(),
                Err(error) => tracing::warn!(lease = self.name, %error, "take the Lease"),
            }
            // Not a moment later than another's Lease expires.
            let expires_in = self.expires_in(Instant::now()).filter(|left| !left.is_zero());
            sleep(expires_in.unwrap_or(RETRY).min(RETRY)).await;
        }
    }

    /// Renews the Lease until that fails for too long, or somebody else has it.
    ///
    /// Each poll looks at the clock first: what is polled after this one, in the same task, does nothing once the time is over, even if
    /// the whole process was stopped until then.
    pub async fn hold(&mut self) -> Lost {
        let deadline = Cell::new(self.renewed_at + RENEW_DEADLINE);
        let mut renewing = pin!(self.renew(&deadline));
        poll_fn(|task| {
            if Instant::now() >= deadline.get() {
                return Poll::Ready(Lost(format!("not renewed for {} s", RENEW_DEADLINE.as_secs())));
            }
            renewing.as_mut().poll(task)
        })
        .await
    }

    /// Renews the Lease, and notes until when that holds.
    async fn renew(&mut self, deadline: &Cell<Instant>) -> Lost {
        loop {
            sleep(RETRY).await;
            let left = deadline.get().duration_since(Instant::now());
            match timeout(left, self.attempt()).await.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                Ok(true) => deadline.set(self.renewed_at + RENEW_DEADLINE),
                Ok(false) => return Lost(format!("the Lease is held by `{}`", self.holder())),
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "renew the Lease");
                    if Instant::now() + RETRY >= deadline.get() {
                        let seconds = self.renewed_at.elapsed().as_secs();
                        return Lost(format!("not renewed for {seconds} s: {error}"));
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
        let began = Instant::now();
        let Some(lease) = timeout(REQUEST_TIMEOUT, self.api.get_opt(&self.name)).await?? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.claim(None)),
            };
            let created = timeout(REQUEST_TIMEOUT, self.api.create(&PostParams::default(), &lease)).await?;
            return self.won(created, began);
        };
        self.observe(&lease);
        if !self.may_take(Instant::now()) {
            return Ok(false);
        }
        let wanted = Lease { spec: Some(self.claim(lease.spec.as_ref())), ..lease };
        let replaced =
            timeout(REQUEST_TIMEOUT, self.api.replace(&self.name, &PostParams::default(), &wanted)).await?;
        self.won(replaced, began)
    }

    fn won(&mut self, written: kube::Result<Lease>, began: Instant) -> Result<bool, LeaseError> {
        match written {
            Ok(lease) => {
                self.observe(&lease);
                self.renewed_at = began;
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Err(LeaseError::Outrun)
            }
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
        self.expires_in(now).is_some_and(|left| left.is_zero())
    }

    /// How long the Lease is still another's, as it was seen last.
    fn expires_in(&self, now: Instant) -> Option<Duration> {
        let Observed { lease, unchanged_since } = self.observed.as_ref()?;
        if holder(lease).is_none_or(|holder| holder == self.identity) {
            return Some(Duration::ZERO);
        }
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let duration =
            seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DURATION, Duration::from_secs);
        Some(duration.saturating_sub(now.duration_since(*unchanged_since)))
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
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

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

    /// An instance `me` that leads, and whose API server then takes so long to answer each `GET`, and refuses or leaves open each `PUT`.
    async fn leader(get_takes: Duration, put: Option<u16>) -> Election {
        let works = Arc::new(AtomicBool::new(true));
        let (leads, replaced) = (Arc::clone(&works), lease("2", "me"));
        let api_server = tower::service_fn(move |request: Request<Body>| {
            let (works, found) = (leads.load(Ordering::Relaxed), lease("1", "me"));
            let replaced = replaced.clone();
            async move {
                let is_get = request.method() == Method::GET;
                let (code, answer) = match (is_get, works, put) {
                    (true, _, _) => (200, json!(found)),
                    (false, true, _) => (200, json!(replaced)),
                    (false, false, Some(code)) => (code, json!({"kind": "Status", "code": code})),
                    (false, false, None) => std::future::pending().await,
                };
                if is_get && !works {
                    sleep(get_takes).await;
                }
                let answer =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        let mut election = Election::new(Client::new(api_server, "default"), "default", "l", "me".into());
        election.acquire(|| {}).await;
        works.store(false, Ordering::Relaxed);
        election
    }

    #[tokio::test(start_paused = true)]
    async fn leader_gives_up_before_anybody_can_take_over() {
        assert!(RENEW_DEADLINE < DURATION);
        for (get_takes, put) in
            [(Duration::ZERO, None), (Duration::from_millis(3900), None), (Duration::ZERO, Some(500))]
        {
            let mut election = leader(get_takes, put).await;
            let began = Instant::now();
            election.hold().await;
            assert!(began.elapsed() <= RENEW_DEADLINE, "{get_takes:?}, {put:?}: after {:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_the_leader_in_a_select_does_nothing_when_its_time_is_over() {
        let mut election = leader(Duration::ZERO, None).await;
        let mut holding = std::pin::pin!(election.hold());
        assert!(futures_util::poll!(&mut holding).is_pending());
        // As after a stop of the whole process: no timer has run yet.
        tokio::time::advance(RENEW_DEADLINE).await;
        assert!(futures_util::poll!(&mut holding).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_somebody_touched_is_not_lost() {
        let mut election = leader(Duration::ZERO, Some(409)).await;
        let began = Instant::now();
        let lost = election.hold().await;
        assert!(began.elapsed() + RETRY >= RENEW_DEADLINE, "{lost} after {:?}", began.elapsed());
    }
}
