//! Whether NetworkPolicies let pods out to an address. Only what is certain is judged: peers are known by their labels, and a broker is
//! known by its name.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// What pods need to reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
}

/// The NetworkPolicies that together let none of these pods out to the destination, and what they cut off; none if they do, or may.
pub(super) fn cut<'a>(
    policies: &'a [NetworkPolicy],
    labels: &BTreeMap<String, String>,
    destination: Destination<'_>,
) -> Option<(Vec<&'a NetworkPolicy>, String)> {
    let effective: Vec<&NetworkPolicy> =
        policies.iter().filter(|policy| limits_egress(policy) && selects_pod(policy, labels)).collect();
    if effective.is_empty() {
        return None;
    }
    let address = destination.host.parse::<IpAddr>().ok();
    let allows = |port: u16, protocol: &str, address: Option<IpAddr>| {
        let rules = effective.iter().filter_map(|policy| policy.spec.as_ref()?.egress.as_ref()).flatten();
        rules.into_iter().any(|rule| {
            let ports = rule.ports.as_deref().unwrap_or_default();
            let peers = rule.to.as_deref().unwrap_or_default();
            (ports.is_empty() || ports.iter().any(|allowed| allows_port(allowed, port, protocol)))
                && (peers.is_empty() || peers.iter().any(|peer| may_be(peer, address)))
        })
    };
    if !allows(destination.port, "TCP", address) {
        return Some((effective, format!("port {} of {}", destination.port, destination.host)));
    }
    let needs_dns = address.is_none();
    (needs_dns && !allows(53, "UDP", None) && !allows(53, "TCP", None))
        .then_some((effective, "DNS (port 53)".to_owned()))
}

fn limits_egress(policy: &NetworkPolicy) -> bool {
    let Some(spec) = &policy.spec else { return false };
    match &spec.policy_types {
        Some(types) => types.iter().any(|kind| kind == "Egress"),
        None => spec.egress.is_some(),
    }
}

fn selects_pod(policy: &NetworkPolicy, labels: &BTreeMap<String, String>) -> bool {
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    selector.is_none_or(|selector| selects(selector, labels))
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(name, value)| labels.get(name) == Some(value));
    let expressed = selector.match_expressions.iter().flatten().all(|wanted| {
        let value = labels.get(&wanted.key);
        let listed = value.is_some_and(|value| wanted.values.iter().flatten().any(|one| one == value));
        match wanted.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && expressed
}

fn allows_port(allowed: &NetworkPolicyPort, port: u16, protocol: &str) -> bool {
    if allowed.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    let port = i32::from(port);
    match (&allowed.port, allowed.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&port),
        (Some(IntOrString::Int(only)), None) => *only == port,
        // A port's name is the other pod's to give.
        (Some(IntOrString::String(_)), _) => true,
    }
}

/// Whether a peer can be what has this address. Which pods a name or a Service leads to isn't judged.
fn may_be(peer: &NetworkPolicyPeer, address: Option<IpAddr>) -> bool {
    match (&peer.ip_block, address) {
        (Some(block), Some(address)) => contains(block, address),
        _ => true,
    }
}

fn contains(block: &IPBlock, address: IpAddr) -> bool {
    in_range(&block.cidr, address).unwrap_or(true)
        && !block.except.iter().flatten().any(|range| in_range(range, address) == Some(true))
}

fn in_range(range: &str, address: IpAddr) -> Option<bool> {
    let (network, length) = range.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    let (network, address, bits) = match (network.parse().ok()?, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return Some(false),
    };
    let shift = u32::checked_sub(bits, length)?;
    Some(network.checked_shr(shift) == address.checked_shr(shift))
}

/// The command that lets pods out to a port, added to a NetworkPolicy.
pub(super) fn opening(policy: &NetworkPolicy, destination: Destination<'_>) -> String {
    let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
    let rule = format!(
        r#"{{"ports":[{{"port":{},"protocol":"TCP"}},{{"port":53,"protocol":"UDP"}},{{"port":53,"protocol":"TCP"}}]}}"#,
        destination.port
    );
    let has_rules =
        policy.spec.as_ref().is_some_and(|spec| spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    let (path, value) =
        if has_rules { ("/spec/egress/-", rule) } else { ("/spec/egress", format!("[{rule}]")) };
    format!(
        r#"kubectl patch networkpolicy {name} -n {namespace} --type=json -p '[{{"op":"add","path":"{path}","value":{value}}}]'"#
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_cut(spec: Value, host: &str) -> bool {
        let policy = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let labels = BTreeMap::from([("soloist.dev/task-queue".to_owned(), "emails".to_owned())]);
        cut(&[policy], &labels, Destination { host, port: 5672 }).is_some()
    }

    #[test]
    fn a_policy_cuts_off_what_it_selects_and_does_not_allow() {
        assert!(is_cut(json!({"podSelector": {}, "policyTypes": ["Egress"]}), "rabbitmq"));
        assert!(!is_cut(json!({"podSelector": {}, "policyTypes": ["Ingress"]}), "rabbitmq"));
        assert!(!is_cut(
            json!({"podSelector": {"matchLabels": {"app": "shop"}}, "policyTypes": ["Egress"]}),
            "rabbitmq"
        ));
        let ours = json!([{"key": "soloist.dev/task-queue", "operator": "Exists"}]);
        assert!(is_cut(
            json!({"podSelector": {"matchExpressions": ours}, "policyTypes": ["Egress"]}),
            "rabbitmq"
        ));
    }

    #[test]
    fn ports_protocols_and_dns_count() {
        let allows = |ports: Value| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": ports}]});
        assert!(is_cut(allows(json!([{"port": 443}])), "rabbitmq"));
        assert!(is_cut(allows(json!([{"port": 5672, "protocol": "UDP"}])), "10.0.0.1"));
        assert!(is_cut(allows(json!([{"port": 5672}])), "rabbitmq"), "the name can't be resolved");
        assert!(!is_cut(allows(json!([{"port": 5672}])), "10.0.0.1"));
        assert!(!is_cut(allows(json!([{"port": 5672}, {"port": 53, "protocol": "UDP"}])), "rabbitmq"));
        assert!(!is_cut(allows(json!([{"port": 5000, "endPort": 6000}])), "10.0.0.1"));
    }

    #[test]
    fn addresses_are_compared_and_names_are_not_guessed() {
        let to =
            |peer: Value| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]});
        assert!(is_cut(to(json!({"ipBlock": {"cidr": "10.1.0.0/16"}})), "10.0.0.1"));
        assert!(!is_cut(to(json!({"ipBlock": {"cidr": "10.0.0.0/8"}})), "10.0.0.1"));
        assert!(is_cut(
            to(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}})),
            "10.0.0.1"
        ));
        assert!(!is_cut(to(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})), "10.0.0.1"));
        assert!(!is_cut(to(json!({"namespaceSelector": {}})), "rabbitmq"));
    }
}
