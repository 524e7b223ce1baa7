//! What the chart renders, and what it refuses. Needs helm, and no cluster.

use std::collections::BTreeSet;
use std::process::Command;

use e2e::paths::repository;
use serde_json::Value;

use crate::helm::{CHART, helm, helm_program, render};
use crate::values::{COMBINATIONS, MONITORING, REFUSED};

fn defaults() -> Vec<Value> {
    render("defaults", "{}", &[])
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    objects.iter().filter_map(|object| object["kind"].as_str()).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The specs of all pods that the objects would start.
fn pod_specs(objects: &[Value]) -> Vec<&Value> {
    let templates = of_kind(objects, "Deployment").map(|deployment| &deployment["spec"]["template"]["spec"]);
    templates.chain(of_kind(objects, "Pod").map(|pod| &pod["spec"])).collect()
}

#[test]
#[ignore = "needs helm"]
fn lints_and_renders_with_every_switch() {
    for (name, values) in COMBINATIONS {
        let objects = render(name, values, MONITORING);
        let mut names = BTreeSet::new();
        for object in &objects {
            let id = format!(
                "{} {}/{}",
                object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]
            );
            assert!(
                object["apiVersion"].is_string() && object["metadata"]["name"].is_string(),
                "{name}: {object}"
            );
            assert!(names.insert(id.clone()), "{name}: {id} twice");
        }
        let output = helm(&["lint", "--strict", "--quiet", CHART, "--values", "-"], values);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
#[ignore = "needs helm"]
fn refuses_misspelt_and_mistyped_values_by_name() {
    for (value, word) in REFUSED {
        let output = helm(&["template", "soloist", CHART, "--set", value], "");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{value} was taken");
        assert!(message.contains(word), "{value}: the refusal does not name `{word}`: {message}");
    }
}

#[test]
#[ignore = "needs helm"]
fn generated_files_are_up_to_date() {
    let output = Command::new(repository().join("charts/generate"))
        .arg("--check")
        .env("HELM", helm_program())
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Both ways: a value without a property would be refused, a property without a value is not documented.
#[test]
fn every_value_has_a_comment_and_a_schema() {
    fn compare(
        path: &str,
        value: &Value,
        schema: &Value,
        undocumented: &dyn Fn(&str) -> bool,
        wrong: &mut Vec<String>,
    ) {
        let properties = schema["properties"].as_object();
        // Below a documented value all is Kubernetes' own.
        if !path.is_empty() && !undocumented(path) {
            return;
        }
        let Some(children) = value.as_object() else {
            wrong.push(format!("{path}: no `# --` comment"));
            return;
        };
        for (name, child) in children {
            let child_path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match properties.and_then(|properties| properties.get(name)) {
                Some(property) => compare(&child_path, child, property, undocumented, wrong),
                None => wrong.push(format!("{child_path}: not in values.schema.json")),
            }
        }
        for name in properties.into_iter().flatten().map(|(name, _)| name) {
            let given_by_helm = path.is_empty() && name == "global";
            if !children.contains_key(name) && !given_by_helm {
                wrong.push(format!("{path}.{name}: not in values.yaml"));
            }
        }
    }
    let chart = repository().join("charts/soloist");
    let values: Value =
        serde_yaml::from_str(&std::fs::read_to_string(chart.join("values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(chart.join("values.schema.json")).unwrap()).unwrap();
    let readme = std::fs::read_to_string(chart.join("README.md")).unwrap();
    let mut wrong = Vec::new();
    compare("", &values, &schema, &|path| !readme.contains(&format!("\n| `{path}` |")), &mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[ignore = "needs helm"]
fn no_role_has_a_wildcard() {
    for (name, values) in COMBINATIONS {
        let objects = render(name, values, &[]);
        for role in of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role")) {
            for rule in role["rules"].as_array().unwrap() {
                for part in ["apiGroups", "resources", "verbs"] {
                    assert!(!strings(&rule[part]).iter().any(|word| word.contains('*')), "{name}: {role}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs helm"]
fn default_install_binds_nothing_that_reads_secrets() {
    let objects = defaults();
    let reads_secrets = |role: &Value| {
        role["rules"].as_array().unwrap().iter().any(|rule| strings(&rule["resources"]).contains(&"secrets"))
    };
    let readers: Vec<_> = of_kind(&objects, "ClusterRole")
        .chain(of_kind(&objects, "Role"))
        .filter(|role| reads_secrets(role))
        .map(|role| role["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(readers, ["soloist-secret-reader"]);
    for binding in of_kind(&objects, "ClusterRoleBinding").chain(of_kind(&objects, "RoleBinding")) {
        assert!(!readers.contains(&binding["roleRef"]["name"].as_str().unwrap()), "{binding}");
    }
}

#[test]
#[ignore = "needs helm"]
fn named_secrets_are_read_by_name_in_their_namespace_only() {
    let objects = render("secrets", "rbac: {secrets: [{namespace: team-a, names: [rabbitmq]}]}", &[]);
    let role = of_kind(&objects, "Role").find(|role| role["metadata"]["namespace"] == "team-a").unwrap();
    assert_eq!(
        role["rules"],
        serde_json::json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["rabbitmq"], "verbs": ["get"]}])
    );
    assert!(of_kind(&objects, "RoleBinding").any(|binding| binding["metadata"]["namespace"] == "team-a"));
}

#[test]
#[ignore = "needs helm"]
fn some_namespaces_get_the_same_rules_without_anything_cluster_wide() {
    let everywhere = defaults();
    let some = render("some", "watch: {namespaces: [team-a, team-b]}", &[]);
    assert!(
        !kinds(&some).contains("ClusterRole") && !kinds(&some).contains("ClusterRoleBinding"),
        "{:?}",
        kinds(&some)
    );
    let wide =
        of_kind(&everywhere, "ClusterRole").find(|role| role["metadata"]["name"] == "soloist").unwrap();
    for namespace in ["team-a", "team-b"] {
        let role = of_kind(&some, "Role").find(|role| role["metadata"]["namespace"] == namespace).unwrap();
        assert_eq!(role["rules"], wide["rules"]);
    }
    let args = strings(&pod_specs(&some)[0]["containers"][0]["args"]);
    assert!(args.contains(&"--namespaces=team-a,team-b"), "{args:?}");
}

#[test]
#[ignore = "needs helm"]
fn scale_in_is_fenced_unless_it_is_switched_off_or_only_some_namespaces_are_served() {
    let policy = |objects: &[Value]| of_kind(objects, "ValidatingAdmissionPolicy").next().cloned();
    let by_default = policy(&defaults()).unwrap();
    let user = "request.userInfo.username == 'system:serviceaccount:kube-system:replicaset-controller'";
    assert_eq!(by_default["spec"]["matchConditions"][0]["expression"], user);
    assert_eq!(by_default["metadata"]["name"], "soloist-scale-in", "the operator looks for it");
    assert!(of_kind(&defaults(), "ValidatingAdmissionPolicyBinding").next().is_some());
    let named = render("named", "scaleInProtection: {replicaSetController: somebody}", &[]);
    let named = policy(&named).unwrap();
    assert_eq!(named["spec"]["matchConditions"][0]["expression"], "request.userInfo.username == 'somebody'");
    assert_eq!(policy(&render("off", "scaleInProtection: {enabled: false}", &[])), None);
    assert_eq!(policy(&render("some", "watch: {namespaces: [team-a]}", &[])), None);
}

#[test]
#[ignore = "needs helm"]
fn every_pod_passes_the_restricted_standard() {
    let objects = defaults();
    let pods = pod_specs(&objects);
    assert!(pods.len() > 1, "the operator's and the tests'");
    for pod in pods {
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(strings(&context["capabilities"]["drop"]), ["ALL"]);
            assert!(container["resources"]["requests"].is_object(), "{container}");
        }
    }
}

#[test]
#[ignore = "needs helm"]
fn monitors_render_only_where_they_are_wanted_and_known() {
    let wanted = "metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}, prometheusRule: {enabled: true}}";
    let monitors = |objects: &[Value]| {
        let of_the_operator =
            |object: &&Value| object["apiVersion"].as_str().unwrap().starts_with("monitoring.coreos.com/");
        objects.iter().filter(of_the_operator).count()
    };
    assert_eq!(monitors(&render("unwanted", "{}", MONITORING)), 0);
    assert_eq!(monitors(&render("unknown", wanted, &[])), 0);
    let all = render("all", wanted, MONITORING);
    assert_eq!(monitors(&all), 3);
    // Or a TaskQueue's series would seem to be of the operator's namespace.
    let operator = of_kind(&all, "ServiceMonitor").next().unwrap();
    assert_eq!(operator["spec"]["endpoints"][0]["honorLabels"], true);
}

#[test]
#[ignore = "needs helm"]
fn definition_is_kept_when_the_chart_is_uninstalled() {
    let keep = |objects: &[Value]| {
        let definition = of_kind(objects, "CustomResourceDefinition").next().unwrap();
        definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    };
    assert!(keep(&defaults()));
    assert!(!keep(&render("unkept", "crds: {keep: false}", &[])));
}

#[test]
#[ignore = "needs helm"]
fn a_digest_wins_over_a_tag() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let objects = render("digest", &format!("image: {{tag: v9, digest: '{digest}'}}"), &[]);
    for pod in pod_specs(&objects) {
        assert_eq!(pod["containers"][0]["image"], format!("ghcr.io/soloist-dev/soloist-operator@{digest}"));
    }
}

#[test]
#[ignore = "needs helm"]
fn a_single_replica_has_no_disruption_budget_that_would_block_its_node() {
    assert!(kinds(&defaults()).contains("PodDisruptionBudget"));
    assert!(!kinds(&render("single", "replicaCount: 1", &[])).contains("PodDisruptionBudget"));
}

#[test]
#[ignore = "needs helm"]
fn network_policies_open_what_is_needed_and_no_more() {
    assert!(!kinds(&defaults()).contains("NetworkPolicy"));
    let peer = serde_json::json!({"namespaceSelector": {"matchLabels": {"name": "monitoring"}}});
    let values = format!(
        "networkPolicy: {{enabled: true, metricsFrom: [{peer}], workerNamespaces: [team-a, team-b]}}"
    );
    let objects = render("policies", &values, &[]);
    let policies: Vec<_> = of_kind(&objects, "NetworkPolicy").collect();
    let namespaces: Vec<_> =
        policies.iter().map(|policy| policy["metadata"]["namespace"].as_str().unwrap()).collect();
    assert_eq!(namespaces, ["soloist-system", "team-a", "team-b"]);

    let operator = &policies[0]["spec"];
    let deployment = of_kind(&objects, "Deployment").next().unwrap();
    assert_eq!(operator["podSelector"]["matchLabels"], deployment["spec"]["selector"]["matchLabels"]);
    assert_eq!(strings(&operator["policyTypes"]), ["Ingress", "Egress"]);
    // Prometheus and `helm test`.
    let test = of_kind(&objects, "Pod").next().unwrap();
    let from = operator["ingress"][0]["from"].as_array().unwrap();
    assert_eq!(from[0], peer);
    for (label, value) in from[1]["podSelector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(test["metadata"]["labels"][label], *value);
    }
    let ports: Vec<_> = operator["egress"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|rule| rule["ports"].as_array().unwrap().iter().filter_map(|port| port["port"].as_u64()))
        .collect();
    assert_eq!(ports, [53, 53, 443, 6443, 5671, 5672, 15671, 15672]);

    let workers = &policies[1]["spec"];
    assert_eq!(workers["podSelector"]["matchExpressions"][0]["key"], "soloist.dev/task-queue");
    assert_eq!(strings(&workers["policyTypes"]), ["Ingress"], "what tasks connect to is their own affair");
    assert_eq!(workers["ingress"], serde_json::json!([{"ports": [{"port": 8080}], "from": [peer]}]));
}
