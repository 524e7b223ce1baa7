//! The documentation says nothing of what is gone, and something of everything that is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2e::paths::repository;
use serde::Deserialize;
use serde_json::Value;

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The files with this ending in a folder and those below it.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden && !path.ends_with("target") {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&repository(), "md", &mut found);
    assert!(found.len() > 10, "{found:?}");
    found
}

#[test]
fn every_field_of_a_task_queue_is_in_its_page() {
    // Kubernetes' own types are documented by Kubernetes.
    const FOREIGN: &[&str] =
        &["spec.worker.env", "spec.worker.envFrom", "spec.worker.template", "status.conditions"];
    fn leaves(path: &str, schema: &Value, found: &mut Vec<String>) {
        if FOREIGN.contains(&path) {
            found.push(path.to_owned());
        } else if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                leaves(&format!("{path}.{name}"), property, found);
            }
        } else if schema["items"]["properties"].is_object() {
            leaves(&format!("{path}[]"), &schema["items"], found);
        } else {
            found.push(path.to_owned());
        }
    }
    let definition: Value = serde_yaml::Deserializer::from_str(&read("manifests/crd.yaml"))
        .map(|document| Value::deserialize(document).unwrap())
        .find(|document| document["kind"] == "CustomResourceDefinition")
        .unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut missing = Vec::new();
    for part in ["spec", "status"] {
        leaves(part, &schema[part], &mut missing);
    }
    assert!(missing.len() > 30, "{missing:?}");
    let page = read("docs/taskqueue.md");
    missing.retain(|path| {
        let field = path.split_once('.').expect("below spec or status").1;
        !page.contains(&format!("`{field}`"))
    });
    assert!(missing.is_empty(), "docs/taskqueue.md says nothing of {missing:#?}");
}

#[test]
fn the_metrics_page_has_the_metrics_that_there_are() {
    fn names(text: &str, found: &mut BTreeSet<String>) {
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            let ours = ["soloist_", "controller_runtime_", "workqueue_", "leader_election_"];
            // Crates are named so too; a metric's name has a unit or a noun after the second underscore.
            if ours.iter().any(|prefix| word.starts_with(prefix)) && word.matches('_').count() > 1 {
                // A histogram's series in a query.
                found.insert(word.trim_end_matches("_bucket").to_owned());
            }
        }
    }
    let (mut there, mut documented) = (BTreeSet::new(), BTreeSet::new());
    for source in ["operator/src/metrics.rs", "operator/src/metrics/task_queues.rs", "worker/src/metrics.rs"]
    {
        let code = read(source);
        // Each name is a string of its own, whole.
        for text in code.split("#[cfg(test)]\nmod tests").next().unwrap().split('"').skip(1).step_by(2) {
            if !text.contains(' ') {
                names(text, &mut there);
            }
        }
    }
    names(&read("docs/metrics.md"), &mut documented);
    assert_eq!(there, documented, "left: in the code, right: in docs/metrics.md");
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let leads = target.exists() && (anchor.is_empty() || has_heading(&target, anchor));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Whether a page has a heading that makes this anchor, as GitHub makes them.
fn has_heading(page: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(page).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix('#')).any(|heading| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let made = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        made.map(|c| if c == ' ' { '-' } else { c }).eq(anchor.chars())
    })
}

#[test]
fn every_decision_is_a_page_in_the_list_of_decisions() {
    let list = read("docs/adr/README.md");
    let mut pages = Vec::new();
    files(&repository().join("docs/adr"), "md", &mut pages);
    for page in pages {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        assert!(list.contains(&format!("({name})")), "docs/adr/README.md does not list {name}");
        let text = std::fs::read_to_string(&page).unwrap();
        for part in ["## Context", "## Decision", "## Consequences", "## Turned down"] {
            assert!(text.contains(part), "{name} has no part `{part}`");
        }
    }
}

#[test]
fn every_test_that_the_compatibility_pages_name_exists() {
    let mut sources = Vec::new();
    for part in ["worker", "operator", "e2e"] {
        files(&repository().join(part), "rs", &mut sources);
    }
    let sources: Vec<String> = sources.iter().map(read).collect();
    // Some are made by a macro that takes their names.
    let exists = |name: &str| {
        let forms = [format!("fn {name}("), format!("    {name}: \"")];
        sources.iter().any(|source| forms.iter().any(|form| source.contains(form)))
    };
    let is_test = |name: &&str| {
        let is_setting = ["soloist_", "task_"].iter().any(|start| name.starts_with(start));
        !is_setting
            && name.matches('_').count() >= 2
            && name.chars().all(|letter| letter.is_ascii_lowercase() || "_0123456789".contains(letter))
    };
    for page in ["docs/acceptance.md", "docs/compatibility.md", "docs/features.md"] {
        let page = read(page);
        let missing: Vec<&str> =
            page.split('`').skip(1).step_by(2).filter(is_test).filter(|name| !exists(name)).collect();
        assert!(missing.is_empty(), "no such test: {missing:?}");
    }
}
