//! Whether an object in the cluster still has everything that was applied to it.
//!
//! Only what we want is compared: what others add (defaults of the API server, annotations, sidecars put in by admission) isn't ours. A
//! field that we no longer want can't be seen this way; the hash of what was applied shows that.

use serde_json::Value;

/// The path of the first wanted value that `live` doesn't have, if there is one.
pub fn missing(live: &Value, wanted: &Value) -> Option<String> {
    missing_at("", live, wanted)
}

fn missing_at(path: &str, live: &Value, wanted: &Value) -> Option<String> {
    match (live, wanted) {
        (_, wanted) if live == wanted => None,
        (live, Value::Object(wanted)) => wanted.iter().find_map(|(name, wanted)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match live.get(name) {
                Some(live) => missing_at(&path, live, wanted),
                None if is_default(wanted) => None,
                None => Some(path),
            }
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            match list_keys(path) {
                Some(keys) => wanted.iter().find_map(|wanted| {
                    let same = |live: &&Value| keys.iter().all(|key| live.get(key) == wanted.get(key));
                    let key = wanted.get(keys[0]).map(Value::to_string).unwrap_or_default();
                    let path = format!("{path}[{key}]");
                    match live.iter().find(same) {
                        Some(live) => missing_at(&path, live, wanted),
                        None => Some(path),
                    }
                }),
                None if live.len() != wanted.len() => Some(path.to_owned()),
                None => live.iter().zip(wanted).enumerate().find_map(|(index, (live, wanted))| {
                    missing_at(&format!("{path}[{index}]"), live, wanted)
                }),
            }
        }
        (Value::String(live), Value::String(wanted)) if is_quantity(path) && same_quantity(live, wanted) => {
            None
        }
        _ => Some(path.to_owned()),
    }
}

/// The API server leaves out values that are what they would be anyway.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_default),
    }
}

/// The fields by which Kubernetes tells the items of a list apart; none if the list is one value as a whole.
fn list_keys(path: &str) -> Option<&'static [&'static str]> {
    let field = path.rsplit_once('.').map_or(path, |(_, field)| field);
    Some(match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims" => &["name"],
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "ports" => &["containerPort", "protocol"],
        "hostAliases" => &["ip"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "ownerReferences" => &["uid"],
        _ => return None,
    })
}

/// Whether the value at this path is an amount such as `500m`, which the API server may write in another way.
fn is_quantity(path: &str) -> bool {
    let parent = path.rsplit_once('.').and_then(|(parent, _)| parent.rsplit('.').next());
    matches!(parent, Some("requests" | "limits"))
        || path.ends_with(".sizeLimit")
        || path.ends_with(".divisor")
}

fn same_quantity(one: &str, other: &str) -> bool {
    match (amount(one), amount(other)) {
        (Some(one), Some(other)) => (one - other).abs() <= f64::EPSILON * one.abs().max(other.abs()),
        _ => false,
    }
}

/// The number that a quantity stands for.
fn amount(quantity: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    // What has no suffix of these is a plain number, `1E3` included; a lone `E` is 10^18.
    if let Ok(number) = quantity.parse::<f64>() {
        return Some(number);
    }
    if let Some(number) = quantity.strip_suffix('E') {
        return number.parse::<f64>().ok().map(|number| number * 1e18);
    }
    SUFFIXES.iter().find_map(|(suffix, factor)| {
        quantity.strip_suffix(suffix)?.parse::<f64>().ok().map(|number| number * factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_others_add_is_no_drift() {
        let wanted = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "worker", "image": "i"}]}});
        let live = json!({
            "metadata": {"labels": {"a": "1", "b": "2"}, "annotations": {"c": "3"}},
            "spec": {
                "replicas": 3,
                "containers": [
                    {"name": "injected", "image": "x"},
                    {"name": "worker", "image": "i", "terminationMessagePolicy": "File"},
                ],
            },
        });
        assert_eq!(missing(&live, &wanted), None);
    }

    #[test]
    fn changed_and_removed_values_are_drift() {
        let wanted = json!({"spec": {"containers": [{"name": "worker", "image": "i", "args": ["a", "b"]}]}});
        let changed = |container| missing(&json!({"spec": {"containers": [container]}}), &wanted);
        assert_eq!(
            changed(json!({"name": "worker", "image": "j", "args": ["a", "b"]})).as_deref(),
            Some("spec.containers[\"worker\"].image")
        );
        assert_eq!(
            changed(json!({"name": "worker", "image": "i", "args": ["a"]})).as_deref(),
            Some("spec.containers[\"worker\"].args")
        );
        assert_eq!(
            changed(json!({"name": "worker", "args": ["a", "b"]})).as_deref(),
            Some("spec.containers[\"worker\"].image")
        );
        assert_eq!(changed(json!({"name": "other"})).as_deref(), Some("spec.containers[\"worker\"]"));
    }

    #[test]
    fn defaults_that_the_server_leaves_out_are_no_drift() {
        let wanted =
            json!({"env": [{"name": "A", "value": ""}], "securityContext": {}, "hostNetwork": false});
        assert_eq!(missing(&json!({"env": [{"name": "A"}]}), &wanted), None);
        let wanted = json!({"enableServiceLinks": false});
        assert!(missing(&json!({"enableServiceLinks": true}), &wanted).is_some());
    }

    #[test]
    fn quantities_are_compared_as_amounts() {
        let limits = |amount: &str| json!({"resources": {"limits": {"cpu": amount}}});
        for (one, other) in
            [("1000m", "1"), ("0.5", "500m"), ("1Gi", "1024Mi"), ("1e3", "1k"), ("1E", "1000P")]
        {
            assert_eq!(missing(&limits(one), &limits(other)), None, "{one} is {other}");
        }
        assert!(missing(&limits("1"), &limits("2")).is_some());
        assert!(missing(&json!({"value": "1"}), &json!({"value": "1000m"})).is_some());
    }
}
