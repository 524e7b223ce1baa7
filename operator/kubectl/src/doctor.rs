//! What is wrong: a plain function from a [`Snapshot`] to findings, and how they are told.
//!
//! A finding says what is wrong, how that is known, and what to type. What could not be looked at is told beside the findings: a doctor who
//! may not look says so, and does not say that all is well.

mod broker;
mod definition;
mod network;
mod operator;
mod task_queue;
mod workers;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::{Serialize, Serializer};
use soloist_operator::plan::reason::Reason;
use soloist_terminal::{Failure, count, json, line};

use crate::args::{Format, Output};
use crate::cluster::Cluster;
use crate::gather::{self, Scope};
use crate::snapshot::{Seen, Snapshot, Unread};

macro_rules! causes {
    ($($(#[doc = $meaning:literal])+ $name:ident,)+) => {
        /// Causes that no condition of a TaskQueue has a word for, as the operator doesn't see them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Cause {
            $($(#[doc = $meaning])+ $name,)+
            /// A word that conditions have, too.
            Condition(Reason),
        }

        impl Cause {
            /// The words that are the doctor's own, and what they mean: the table in docs/kubectl.md.
            #[cfg(test)]
            pub(crate) const OWN: &[(&'static str, &'static str)] =
                &[$((stringify!($name), concat!($($meaning),+)),)+];

            /// The word.
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Condition(reason) => reason.as_str(),
                }
            }
        }
    };
}

causes! {
    /// The cluster doesn't know TaskQueues.
    DefinitionMissing,
    /// The definition of TaskQueues (CRD) lacks fields that the operator knows: what is written there is dropped.
    DefinitionOlder,
    /// The definition of TaskQueues (CRD) has fields that the operator doesn't know: what is written there does nothing.
    DefinitionNewer,
    /// There is no operator.
    OperatorMissing,
    /// The operator has no pod that runs.
    OperatorNotRunning,
    /// The operator's service account may not do what the operator has to.
    OperatorForbidden,
    /// No pod of the operator leads, so that nothing is done.
    NoLeader,
    /// The pod of the operator that led has not said so for too long.
    LeaseStale,
    /// Two operators serve the same namespace.
    OperatorsCompete,
    /// No operator serves the namespace.
    NamespaceNotWatched,
    /// The operator works, and has not looked at the TaskQueue.
    NotServed,
    /// A deletion waits for an operator that is not there.
    DeletionStuck,
    /// The broker's name can't be resolved.
    BrokerNameUnknown,
    /// Nothing listens where the broker should be.
    BrokerRefused,
    /// Nothing answers where the broker should be.
    BrokerSilent,
    /// The TLS connection to the broker fails.
    BrokerTls,
    /// A NetworkPolicy keeps operator or workers from the broker.
    NetworkPolicy,
    /// A worker was killed because it used more memory than it may.
    OutOfMemory,
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Tasks don't run, or not as they should.
    Error,
    /// They do, but something is not as it should be.
    Warning,
    /// Somebody wants it so.
    Note,
}

/// Something that is wrong.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) cause: Cause,
    /// What it is about: `taskqueue shop/emails`.
    pub(crate) object: String,
    /// What is wrong.
    pub(crate) what: String,
    /// How that is known.
    pub(crate) evidence: Vec<String>,
    /// What to do: a command to type, or a sentence.
    pub(crate) remedy: Vec<String>,
}

impl Finding {
    pub(crate) fn new(level: Level, cause: Cause, object: &str, what: impl Into<String>) -> Self {
        let object = object.to_owned();
        Self { level, cause, object, what: what.into(), evidence: Vec::new(), remedy: Vec::new() }
    }

    /// How that is known.
    pub(crate) fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// What to do.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy.push(remedy.into());
        self
    }
}

/// What the doctor has to say.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// What is wrong, the operator's troubles first.
    pub(crate) findings: Vec<Finding>,
    /// What could not be looked at.
    pub(crate) unknown: Vec<Unread>,
    /// TaskQueues that were looked at.
    pub(crate) task_queues: usize,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Whether this was found already.
    fn has(&self, object: &str, cause: Cause) -> bool {
        self.findings.iter().any(|finding| finding.object == object && finding.cause == cause)
    }

    fn unknown(&mut self, unread: &Unread) {
        if !self.unknown.contains(unread) {
            self.unknown.push(unread.clone());
        }
    }

    /// What was read, or else notes that it could not be.
    fn known<'a, T>(&mut self, seen: &'a Seen<T>) -> Option<&'a T> {
        seen.as_ref().map_err(|unread| self.unknown(unread)).ok()
    }

    fn problems(&self) -> usize {
        self.findings.iter().filter(|finding| finding.level != Level::Note).count()
    }
}

/// Finds out what is wrong.
pub(crate) fn diagnose(snapshot: &Snapshot) -> Report {
    let mut report = Report { task_queues: snapshot.task_queues.len(), ..Report::default() };
    definition::examine(snapshot, &mut report);
    operator::examine(snapshot, &mut report);
    for subject in &snapshot.task_queues {
        task_queue::examine(snapshot, subject, &mut report);
    }
    report
}

/// Runs the command.
pub(crate) async fn run(cluster: &Cluster, scope: Scope<'_>, output: Output) -> Result<ExitCode, Failure> {
    let report = diagnose(&gather::snapshot(cluster, scope).await?);
    match output.format {
        Format::Json => json(&report)?,
        Format::Text => {
            line(&text(&report))?;
            if let (0, Scope::Namespace(namespace)) = (report.task_queues, scope) {
                line(&format!("namespace {namespace} has no TaskQueue; those of all namespaces: -A"))?;
            }
        }
    }
    Ok(ExitCode::from(match (report.problems(), report.unknown.len()) {
        (0, 0) => 0,
        (0, _) => 6,
        _ => 5,
    }))
}

/// The report for people.
fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut object = "";
    for finding in &report.findings {
        if finding.object != object {
            object = &finding.object;
            let _ = writeln!(text, "{object}");
        }
        let level = match finding.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        let _ = writeln!(text, "  {level} {}: {}", finding.cause.as_str(), finding.what);
        for evidence in &finding.evidence {
            let _ = writeln!(text, "    seen  {evidence}");
        }
        for remedy in &finding.remedy {
            let _ = writeln!(text, "    do    {remedy}");
        }
        text.push('\n');
    }
    if !report.unknown.is_empty() {
        let _ = writeln!(text, "not known");
        for unread in &report.unknown {
            let _ = writeln!(text, "  {}: {}", unread.what, unread.why);
        }
        text.push('\n');
    }
    let looked = count(report.task_queues as u64, "TaskQueue");
    let found = match report.problems() {
        0 => "nothing wrong was found".to_owned(),
        problems => count(problems as u64, "problem"),
    };
    let unknown = match report.unknown.len() {
        0 => String::new(),
        things => format!("; {} could not be looked at", count(things as u64, "thing")),
    };
    let _ = write!(text, "the operator and {looked}: {found}{unknown}");
    text
}

#[cfg(test)]
mod tests;
