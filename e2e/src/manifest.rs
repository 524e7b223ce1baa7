//! Applying YAML to a cluster, as `kubectl apply --server-side` does.

use anyhow::{Context, Result, anyhow};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde::Deserialize;

/// Applies every document of `yaml`, in order, and gives back what the API server made of them. A document that names
/// no namespace is taken for one of the whole cluster.
///
/// The plural of a kind is guessed from its name, which is right for all kinds used here.
///
/// # Errors
/// If a document isn't a Kubernetes object, or the API server refuses it.
pub async fn apply(client: &kube::Client, yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut applied = Vec::new();
    for object in read(yaml)? {
        applied.push(apply_object(client, &object).await?);
    }
    Ok(applied)
}

/// As [`apply`], with every document put into `namespace`.
///
/// # Errors
/// As [`apply`].
pub async fn apply_in(client: &kube::Client, namespace: &str, yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut applied = Vec::new();
    for mut object in read(yaml)? {
        object.metadata.namespace = Some(namespace.to_owned());
        applied.push(apply_object(client, &object).await?);
    }
    Ok(applied)
}

fn read(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let object = serde_yaml::Value::deserialize(document).context("read YAML")?;
        if !object.is_null() {
            objects.push(serde_yaml::from_value(object).context("read a Kubernetes object")?);
        }
    }
    Ok(objects)
}

async fn apply_object(client: &kube::Client, object: &DynamicObject) -> Result<DynamicObject> {
    let name = object.metadata.name.as_deref().ok_or_else(|| anyhow!("an object without a name"))?;
    let types = object.types.as_ref().ok_or_else(|| anyhow!("{name} has no apiVersion and kind"))?;
    let kind = GroupVersionKind::try_from(types).context("read apiVersion and kind")?;
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply("soloist-e2e").force();
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .with_context(|| format!("apply {} {name}", types.kind))
}
