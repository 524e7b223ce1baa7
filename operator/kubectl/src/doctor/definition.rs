//! Whether the definition of TaskQueues (CRD) fits the operator.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use serde_json::Value;
use soloist_operator::api::custom_resource_definitions;

use super::operator::INSTALL;
use super::{Cause, Finding, Level, Report};
use crate::snapshot::{Operator, Snapshot, Unread};

const OBJECT: &str = "the definition of TaskQueues";

/// The version of the API that the operator serves.
const VERSION: &str = "v1alpha1";

/// What brings the definition to this program's version, without Helm.
const APPLY: &str = "or, without helm: kubectl apply --server-side -f manifests/crd.yaml";

/// What brings operator and definition to one version.
fn upgrade(operators: &[Operator]) -> String {
    match operators.first() {
        Some(operator) => operator.upgrade(""),
        None => "helm upgrade --install soloist charts/soloist -n soloist-system".to_owned(),
    }
}

/// Fields that are named in a message; a definition of another time may lack dozens.
const NAMED: usize = 6;

pub(super) fn examine(snapshot: &Snapshot, report: &mut Report) {
    let Some(definition) = report.known(&snapshot.definition) else { return };
    let Some(definition) = definition else {
        let missing = Finding::new(
            Level::Error,
            Cause::DefinitionMissing,
            OBJECT,
            "the cluster doesn't know TaskQueues",
        );
        report.add(
            missing
                .seen("there is no CustomResourceDefinition taskqueues.soloist.dev")
                .remedy(INSTALL)
                .remedy(APPLY),
        );
        return;
    };
    let operators = snapshot.operators.as_deref().unwrap_or_default();
    let theirs = fields(definition);
    let ours = custom_resource_definitions().first().and_then(fields).unwrap_or_default();
    let Some(theirs) = theirs else {
        let what = format!("the definition doesn't serve {VERSION}, which is what the operator works with");
        let versions: Vec<&str> =
            definition.spec.versions.iter().map(|version| version.name.as_str()).collect();
        let older = Finding::new(Level::Error, Cause::DefinitionOlder, OBJECT, what);
        report.add(
            older.seen(format!("it has {}", versions.join(", "))).remedy(upgrade(operators)).remedy(APPLY),
        );
        return;
    };
    let (lacks, adds) = (listed(ours.difference(&theirs)), listed(theirs.difference(&ours)));
    let other = operators.iter().find(|operator| operator.version() != Some(env!("CARGO_PKG_VERSION")));
    if let Some(other) = other {
        return compare_versions(other, lacks.is_none() && adds.is_none(), report);
    }
    if let Some(fields) = lacks {
        let what =
            "the definition is older than the operator: what is written to a field that it lacks is dropped";
        let older = Finding::new(Level::Error, Cause::DefinitionOlder, OBJECT, what);
        report.add(older.seen(format!("it lacks {fields}")).remedy(upgrade(operators)).remedy(APPLY));
    }
    if let Some(fields) = adds {
        let what = "the definition is newer than the operator: what is written to a field that the operator doesn't know does nothing";
        let newer = Finding::new(Level::Warning, Cause::DefinitionNewer, OBJECT, what);
        report.add(newer.seen(format!("the operator doesn't know {fields}")).remedy(upgrade(operators)));
    }
}

/// What can be said of an operator of another version than this program's, whose fields this program doesn't know.
fn compare_versions(operator: &Operator, definition_is_ours: bool, report: &mut Report) {
    let ours = env!("CARGO_PKG_VERSION");
    let theirs = operator.version().unwrap_or("unknown");
    if !definition_is_ours {
        report.unknown(&Unread {
            what: "whether the definition of TaskQueues fits the operator".to_owned(),
            why: format!("this program is of version {ours} and the operator of version {theirs}"),
        });
        return;
    }
    let newer = Finding::new(
        Level::Warning,
        Cause::DefinitionNewer,
        OBJECT,
        format!("the definition is of version {ours}, the operator of version {theirs}"),
    );
    report.add(
        newer
            .seen(format!("label app.kubernetes.io/version of Deployment {}", operator.deployment.name_any()))
            .remedy(operator.upgrade("")),
    );
}

fn listed<'a>(fields: impl Iterator<Item = &'a String>) -> Option<String> {
    let fields: Vec<&str> = fields.map(String::as_str).collect();
    let more = fields.len().saturating_sub(NAMED);
    let named = fields[..fields.len() - more].join(", ");
    match (fields.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(named),
        (false, more) => Some(format!("{named} and {more} more")),
    }
}

/// The fields of the version that the operator serves.
pub(super) fn fields(definition: &CustomResourceDefinition) -> Option<BTreeSet<String>> {
    let version =
        definition.spec.versions.iter().find(|version| version.name == VERSION && version.served)?;
    let schema = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    let schema = serde_json::to_value(schema).ok()?;
    let mut fields = BTreeSet::new();
    for part in ["spec", "status"] {
        collect(part, &schema["properties"][part], &mut fields);
    }
    Some(fields)
}

fn collect(path: &str, schema: &Value, fields: &mut BTreeSet<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        collect(&path, property, fields);
        fields.insert(path);
    }
    for nested in ["items", "additionalProperties"] {
        if schema[nested].is_object() {
            collect(&format!("{path}[]"), &schema[nested], fields);
        }
    }
}
