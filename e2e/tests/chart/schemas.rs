//! What the chart renders fits the oldest Kubernetes that it is for: the types that this workspace is built with are of that version. That it
//! fits a newer one is seen on the cluster, see `install.rs`.

use std::fmt::Debug;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::helm::{CHART, NEWEST, OLDEST, helm, render, render_on};
use crate::values::COMBINATIONS;

/// What of an object its type doesn't know: read as that type and written again, it is gone.
fn unknown<T: DeserializeOwned + Serialize + Debug>(object: &Value) -> Vec<String> {
    fn compare(path: &str, there: &Value, kept: Option<&Value>, lost: &mut Vec<String>) {
        match (there, kept) {
            (Value::Null, _) => {}
            (_, None) => lost.push(path.to_owned()),
            (Value::Object(fields), Some(kept)) => {
                for (name, field) in fields {
                    compare(&format!("{path}.{name}"), field, kept.get(name), lost);
                }
            }
            (Value::Array(items), Some(kept)) => {
                for (index, item) in items.iter().enumerate() {
                    compare(&format!("{path}[{index}]"), item, kept.get(index), lost);
                }
            }
            _ => {}
        }
    }
    let typed: T = match serde_json::from_value(object.clone()) {
        Ok(typed) => typed,
        Err(error) => return vec![error.to_string()],
    };
    let mut lost = Vec::new();
    compare("", object, Some(&serde_json::to_value(typed).expect("what was JSON is JSON")), &mut lost);
    lost
}

fn unknown_of_its_kind(object: &Value) -> Vec<String> {
    let id = (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
    match id {
        ("v1", "ConfigMap") => unknown::<ConfigMap>(object),
        ("v1", "Pod") => unknown::<Pod>(object),
        ("v1", "Service") => unknown::<Service>(object),
        ("v1", "ServiceAccount") => unknown::<ServiceAccount>(object),
        ("apps/v1", "Deployment") => unknown::<Deployment>(object),
        ("policy/v1", "PodDisruptionBudget") => unknown::<PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => unknown::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => unknown::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => unknown::<ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => unknown::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => unknown::<RoleBinding>(object),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            unknown::<CustomResourceDefinition>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            unknown::<ValidatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            unknown::<ValidatingAdmissionPolicyBinding>(object)
        }
        _ => vec![format!("no type for {id:?}")],
    }
}

#[test]
#[ignore = "needs helm"]
fn the_oldest_kubernetes_knows_every_field() {
    for (name, values) in COMBINATIONS {
        for object in render_on(OLDEST, name, values, &[]) {
            let unknown = unknown_of_its_kind(&object);
            assert!(
                unknown.is_empty(),
                "{name}: {} {}: {unknown:?}",
                object["kind"],
                object["metadata"]["name"]
            );
        }
    }
}

#[test]
#[ignore = "needs helm"]
fn a_misspelt_field_would_be_noticed() {
    let mut objects = render("defaults", "{}", &[]);
    let deployment = objects.iter_mut().find(|object| object["kind"] == "Deployment").unwrap();
    deployment["spec"]["template"]["spec"]["containers"][0]["imagepullpolicy"] = "Always".into();
    assert_eq!(unknown_of_its_kind(deployment), [".spec.template.spec.containers[0].imagepullpolicy"]);
}

#[test]
#[ignore = "needs helm"]
fn every_combination_of_values_is_the_same_on_the_oldest_and_the_newest_kubernetes() {
    for (name, values) in COMBINATIONS {
        assert_eq!(render_on(OLDEST, name, values, &[]), render_on(NEWEST, name, values, &[]), "{name}");
    }
}

#[test]
#[ignore = "needs helm"]
fn an_older_kubernetes_is_refused() {
    let output = helm(&["template", "soloist", CHART, "--kube-version", "1.32.9"], "");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("1.33"), "{message}");
}
