//! The Kubernetes API of Soloist: what users write, and what the operator reports back.

pub mod v1alpha1;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The custom resource definitions, in the order in which they are to be installed.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    vec![v1alpha1::TaskQueue::crd()]
}

/// The definitions as one YAML stream, the contents of `manifests/crd.yaml`.
pub fn custom_resource_definitions_yaml() -> Result<String, serde_yaml::Error> {
    let mut stream = String::from(
        "# Generated from operator/src/api by `soloist-operator crd`: change the types and generate it anew.\n",
    );
    for definition in custom_resource_definitions() {
        stream.push_str("---\n");
        stream.push_str(&quoted(&serde_yaml::to_string(&definition)?));
    }
    Ok(stream)
}

/// Puts words into quotes that YAML 1.1, which kubectl and helm read, takes for a boolean: `Off` would become `false`.
fn quoted(yaml: &str) -> String {
    let quote = |line: &str| match line.trim_start().strip_prefix("- ") {
        Some(word) if matches!(word, "Off" | "On" | "Yes" | "No" | "Y" | "N") => {
            format!("{}- \"{word}\"\n", &line[..line.len() - word.len() - 2])
        }
        _ => format!("{line}\n"),
    };
    yaml.lines().map(quote).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crd.yaml");

    #[test]
    fn manifest_is_what_the_types_generate() {
        let committed = std::fs::read_to_string(GENERATED).expect("manifests/crd.yaml is in the repository");
        assert!(
            committed == custom_resource_definitions_yaml().unwrap(),
            "manifests/crd.yaml is out of date: \
             run `cargo run -p soloist-operator -- crd > manifests/crd.yaml` (or `just generate`)"
        );
    }

    #[test]
    fn no_word_of_an_enumeration_is_a_boolean_to_kubectl() {
        assert_eq!(quoted("enum:\n  - Auto\n  - Off\n"), "enum:\n  - Auto\n  - \"Off\"\n");
        assert!(!custom_resource_definitions_yaml().unwrap().contains("- Off\n"));
    }

    #[test]
    fn definition_fits_into_the_annotation_of_kubectl_apply() {
        // `kubectl apply` keeps the object in an annotation, and annotations end at 262,144 bytes.
        for definition in custom_resource_definitions() {
            let size = serde_json::to_string(&definition).unwrap().len();
            assert!(size < 200 * 1024, "{} is {size} bytes", definition.spec.names.kind);
        }
    }

    #[test]
    fn every_field_is_described_for_kubectl_explain() {
        fn undescribed(path: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
            if let Some(properties) = schema["properties"].as_object() {
                for (name, property) in properties {
                    let path = format!("{path}.{name}");
                    if property["description"].as_str().is_none_or(|text| text.trim().is_empty()) {
                        found.push(path.clone());
                    }
                    undescribed(&path, property, found);
                }
            }
            for nested in ["items", "additionalProperties"] {
                if schema[nested].is_object() {
                    undescribed(&format!("{path}[]"), &schema[nested], found);
                }
            }
        }
        let mut found = Vec::new();
        for definition in custom_resource_definitions() {
            for version in &definition.spec.versions {
                let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
                let schema = serde_json::to_value(schema).unwrap();
                for part in ["spec", "status"] {
                    undescribed(part, &schema["properties"][part], &mut found);
                }
            }
        }
        assert!(found.is_empty(), "fields without a description: {found:#?}");
    }
}
