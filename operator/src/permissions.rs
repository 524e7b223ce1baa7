//! What the operator may have to do in a cluster: asked for by `soloist-operator check` and by `kubectl soloist doctor`.

use k8s_openapi::api::authorization::v1::ResourceAttributes;

use crate::plan::metadata::OPERATOR;

/// What the operator does in the namespaces it serves: API group, resource, verbs. The chart's rules are these; a test keeps the two equal.
pub const PERMISSIONS: &[(&str, &str, &[&str])] = &[
    ("soloist.dev", "taskqueues", &["get", "list", "patch", "watch"]),
    ("soloist.dev", "taskqueues/status", &["patch"]),
    ("soloist.dev", "taskqueues/finalizers", &["update"]),
    ("apps", "deployments", &["get", "list", "watch", "create", "patch"]),
    ("apps", "deployments/scale", &["patch"]),
    ("apps", "replicasets", &["list", "watch"]),
    ("", "pods", &["get", "list", "watch", "patch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
];

/// What it does in its own namespace. It may do the last two with its own lease only.
pub const OWN_PERMISSIONS: &[(&str, &str, &[&str])] =
    &[("coordination.k8s.io", "leases", &["create", "get", "update"])];

/// What to ask the API server for: may somebody do this? An empty namespace asks for all of them.
pub fn attributes(namespace: &str, group: &str, resource: &str, verb: &str) -> ResourceAttributes {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        group: Some(group.to_owned()),
        // A lease may be made by any name, and by no other than its own be changed.
        name: (resource == "leases" && verb != "create").then(|| OPERATOR.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_a_subresource_as_such() {
        let attributes = attributes("", "apps", "deployments/scale", "patch");
        assert_eq!(attributes.resource.as_deref(), Some("deployments"));
        assert_eq!(attributes.subresource.as_deref(), Some("scale"));
    }
}
