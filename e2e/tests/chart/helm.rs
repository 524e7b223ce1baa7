//! Running helm without a cluster.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use e2e::go_tools::GoTools;
use e2e::paths::repository;
use serde::Deserialize;
use serde_json::Value;

/// The chart, from the repository's root.
pub(crate) const CHART: &str = "charts/soloist";

/// The oldest Kubernetes that the chart is for.
pub(crate) const OLDEST: &str = "1.33.0";
/// The newest there is.
pub(crate) const NEWEST: &str = "1.37.0";

/// `$HELM`, or the one that the cluster's programs were built with, or the one in PATH.
pub(crate) fn helm_program() -> PathBuf {
    let set = std::env::var_os("HELM").map(PathBuf::from);
    set.or_else(|| GoTools::built().ok().map(|tools| tools.program("helm"))).unwrap_or_else(|| "helm".into())
}

/// Runs helm with these values on its standard input, for `--values -`.
pub(crate) fn helm(args: &[&str], values: &str) -> Output {
    let program = helm_program();
    let mut child = Command::new(&program)
        .args(args)
        .current_dir(repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("run {}: {error}", program.display()));
    child
        .stdin
        .take()
        .expect("standard input is piped")
        .write_all(values.as_bytes())
        .expect("helm reads its input");
    child.wait_with_output().expect("helm ends")
}

/// The dashboards that the chart brings, as Grafana reads them.
pub(crate) fn dashboards() -> Vec<Value> {
    let objects = render("dashboards", "metrics: {dashboards: {enabled: true}}", &[]);
    let map = objects.iter().find(|object| object["metadata"]["name"] == "soloist-dashboards");
    let files = map.and_then(|map| map["data"].as_object()).expect("a ConfigMap with dashboards");
    files.values().map(|json| serde_json::from_str(json.as_str().expect("text")).expect("JSON")).collect()
}

/// The objects that the chart renders with these values, on a cluster that has these APIs besides its own.
pub(crate) fn render(name: &str, values: &str, apis: &[&str]) -> Vec<Value> {
    render_on(NEWEST, name, values, apis)
}

/// The same, on a cluster of this version.
pub(crate) fn render_on(kubernetes: &str, name: &str, values: &str, apis: &[&str]) -> Vec<Value> {
    let mut args = vec!["template", "soloist", CHART, "--namespace", "soloist-system", "--values", "-"];
    args.extend(["--kube-version", kubernetes]);
    args.extend(apis.iter().flat_map(|api| ["--api-versions", api]));
    let output = helm(&args, values);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    serde_yaml::Deserializer::from_slice(&output.stdout)
        .map(|document| Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}")))
        .filter(|object| !object.is_null())
        .collect()
}
