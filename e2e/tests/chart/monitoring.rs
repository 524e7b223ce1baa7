//! The alerts and the dashboards that the chart brings.

use std::collections::BTreeSet;
use std::process::Command;

use e2e::paths::repository;
use serde_json::Value;

use crate::helm::render;
use crate::values::MONITORING;

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(repository().join(path)).expect("a file of the repository");
    serde_yaml::from_str(&text).expect("YAML")
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn alerts() -> Vec<Value> {
    let file = yaml("charts/soloist/alerts.yaml");
    list(&file["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    const PAGE: &str = "https://github.com/soloist-dev/soloist/blob/main/docs/runbooks.md#";
    let runbooks = std::fs::read_to_string(repository().join("docs/runbooks.md")).unwrap();
    let alerts = alerts();
    assert!(alerts.len() >= 10, "{}", alerts.len());
    let names: BTreeSet<_> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["warning", "critical"].contains(&severity), "{name}: {severity}");
        for text in ["summary", "description"] {
            assert!(alert["annotations"][text].as_str().unwrap().ends_with('.'), "{name}: {text}");
        }
        assert_eq!(alert["annotations"]["runbook_url"], format!("{PAGE}{}", name.to_lowercase()));
    }
    let sections: BTreeSet<_> = runbooks.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, names, "left: sections of docs/runbooks.md, right: alerts");
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_none_does() {
    let cases = yaml("e2e/tests/chart/alerts.yaml");
    let mut alerts: BTreeSet<_> =
        alerts().iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect();
    for case in list(&cases["tests"]) {
        let name = case["name"].as_str().unwrap();
        let looks: Vec<_> =
            list(&case["promql_expr_test"]).iter().map(|look| list(&look["exp_samples"])).collect();
        let fires = |look: &&[Value]| {
            look.len() == 1 && look[0]["labels"].as_str().unwrap().contains(&format!("alertname=\"{name}\""))
        };
        assert!(looks.iter().any(fires), "{name} never fires");
        assert!(looks.iter().any(|look| look.is_empty()), "{name} always fires");
        assert!(alerts.remove(name), "{name} is no alert");
    }
    assert!(alerts.is_empty(), "without a case: {alerts:?}");
}

#[test]
#[ignore = "needs promtool"]
fn alerts_fire_when_they_should_and_only_then() {
    let output = Command::new("promtool")
        .args(["test", "rules", "e2e/tests/chart/alerts.yaml"])
        .current_dir(repository())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
#[ignore = "needs helm"]
fn the_prometheus_rule_holds_the_alerts() {
    let objects = render("rules", "metrics: {prometheusRule: {enabled: true}}", MONITORING);
    let rule = objects.iter().find(|object| object["kind"] == "PrometheusRule").unwrap();
    assert_eq!(rule["spec"], yaml("charts/soloist/alerts.yaml"));
}

#[test]
#[ignore = "needs helm"]
fn dashboards_are_what_grafana_reads() {
    let dashboards = crate::helm::dashboards();
    let uids: Vec<_> = dashboards.iter().map(|dashboard| dashboard["uid"].as_str().unwrap()).collect();
    assert_eq!(uids, ["soloist-fleet", "soloist-taskqueue", "soloist-operator"]);
    for dashboard in &dashboards {
        let variables: Vec<_> =
            list(&dashboard["templating"]["list"]).iter().map(|v| v["name"].as_str().unwrap()).collect();
        let mut places = BTreeSet::new();
        for panel in list(&dashboard["panels"]) {
            assert!(places.insert(panel["gridPos"].to_string()), "two panels at {}", panel["gridPos"]);
            assert!(panel["title"].is_string() && !list(&panel["targets"]).is_empty(), "{panel}");
            let mut ids = BTreeSet::new();
            for target in list(&panel["targets"]) {
                assert!(ids.insert(target["refId"].as_str().unwrap()), "{target}");
                let expression = target["expr"].as_str().unwrap();
                let used = expression.split('$').skip(1);
                let used =
                    used.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap());
                for variable in used.filter(|variable| *variable != "__rate_interval") {
                    assert!(variables.contains(&variable), "{expression}: ${variable}");
                }
            }
        }
    }
}
