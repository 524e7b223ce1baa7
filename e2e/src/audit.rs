//! What was asked of the API server, read from its audit log, so that a test can say "no write" and mean it.
//!
//! Logged are all writes, and the reads of service accounts outside of `kube-system`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

use crate::chart;
use crate::kubernetes::control_plane::audit_log;

/// A point in the log, to count from.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// One request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// Who asked.
    pub user: User,
    /// The program that asked.
    #[serde(default)]
    pub user_agent: String,
    /// What it was about; absent for paths that are no objects (`/version`).
    pub object_ref: Option<ObjectRef>,
    /// How it ended; absent if the connection broke.
    pub response_status: Option<Status>,
    /// Path and parameters.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// When it came.
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// `system:serviceaccount:<namespace>:<name>` for a pod.
    pub username: String,
}

/// What a request was about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// Plural, as in a path.
    pub resource: String,
    /// As `status` or `scale`; empty for the object itself.
    pub subresource: String,
    /// Empty for what has none.
    pub namespace: String,
    /// Empty for lists and creations.
    pub name: String,
}

/// How a request ended.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
}

impl Event {
    /// Whether it asks for a change.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether it comes from this service account.
    pub fn is_from(&self, namespace: &str, service_account: &str) -> bool {
        self.user.username == format!("system:serviceaccount:{namespace}:{service_account}")
    }

    /// Whether the operator asked, about something in this namespace.
    pub fn is_by_operator_in(&self, namespace: &str) -> bool {
        self.is_from(chart::NAMESPACE, chart::SERVICE_ACCOUNT)
            && self.object_ref.as_ref().is_some_and(|object| object.namespace == namespace)
    }

    /// Whether it is about this kind of object (the plural), in any namespace.
    pub fn is_about(&self, resource: &str) -> bool {
        self.object_ref.as_ref().is_some_and(|object| object.resource == resource)
    }
}

/// Now.
///
/// # Errors
/// If there is no audit log: the cluster isn't ours.
pub fn mark() -> Result<Mark> {
    let file = audit_log();
    let length = file.metadata().with_context(|| format!("find the audit log {}", file.display()))?.len();
    Ok(Mark(length))
}

/// The requests since then, in the order in which they were answered.
///
/// # Errors
/// If the log can't be read.
pub fn since(mark: Mark) -> Result<Vec<Event>> {
    let path = audit_log();
    let mut text = String::new();
    let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    file.seek(SeekFrom::Start(mark.0))?;
    file.read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    // A line that isn't complete yet belongs to a request that isn't answered yet.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(|line| serde_json::from_str(line).with_context(|| format!("read {line}"))).collect()
}

/// How many requests since then are such as `wanted` says.
///
/// # Errors
/// As [`since`].
pub fn count(mark: Mark, wanted: impl Fn(&Event) -> bool) -> Result<usize> {
    Ok(since(mark)?.iter().filter(|event| wanted(event)).count())
}

/// What the operator has written since then in this namespace.
///
/// # Errors
/// As [`since`].
pub fn writes_by_operator(mark: Mark, namespace: &str) -> Result<Vec<Event>> {
    let mut events = since(mark)?;
    events.retain(|event| event.is_write() && event.is_by_operator_in(namespace));
    Ok(events)
}

/// What it has written of the Deployments there: pod templates, and numbers of replicas.
///
/// # Errors
/// As [`since`].
pub fn deployment_writes_by_operator(mark: Mark, namespace: &str) -> Result<Vec<Event>> {
    let mut events = writes_by_operator(mark, namespace)?;
    events.retain(|event| event.is_about("deployments"));
    Ok(events)
}
