//! A TaskQueue's YAML as a policy: what would it do?

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, to_value};
use soloist_operator::api::v1alpha1::{ScalingSpec, TaskQueue};
use soloist_operator::plan::autoscaler;
use soloist_operator::plan::law::Policy;
use soloist_operator::plan::schedule::Bounds;

/// Bounds that change with the time of day.
#[derive(Clone, Debug)]
pub(crate) struct Schedules {
    scaling: ScalingSpec,
    begins: Timestamp,
}

impl Schedules {
    /// The same policy with the bounds that hold `seconds` after the beginning.
    pub(crate) fn apply(&self, policy: Policy, seconds: f64) -> Policy {
        let now = self.begins + SignedDuration::from_millis((seconds * 1000.0) as i64);
        let Bounds { min, max, .. } = Bounds::at(now, &self.scaling);
        Policy { min, max, ..policy }
    }
}

/// The policy of a TaskQueue, the first one if the file has other objects too, and its schedules, counted from `begins`.
pub(crate) fn policy(yaml: &str, begins: Timestamp) -> Result<(Policy, Schedules)> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(serde_yaml::Value::deserialize);
    let documents = documents.collect::<Result<Vec<_>, _>>().context("read the file")?;
    let document = documents
        .into_iter()
        .find(|document| document.get("kind").is_some_and(|kind| kind == "TaskQueue"))
        .context("there is no TaskQueue in the file")?;
    let written = to_value(&document).context("read the TaskQueue")?;
    let task_queue: TaskQueue = serde_yaml::from_value(document).context("read the TaskQueue")?;
    let known = to_value(&task_queue.spec.scaling)?;
    if let Some(field) = misspelt("spec.scaling", &written["spec"]["scaling"], &known) {
        bail!("there is no field `{field}`");
    }
    let scaling = task_queue.spec.scaling.clone();
    let mut maxima = scaling.schedules.iter().filter_map(|schedule| schedule.max_replicas);
    ensure!(
        scaling.max_replicas > 0 && maxima.all(|max| max > 0),
        "maxReplicas must be at least 1: no task would ever end"
    );
    ensure!(
        scaling.min_replicas <= scaling.max_replicas,
        "scaling.minReplicas may not be greater than scaling.maxReplicas"
    );
    ensure!(
        scaling.max_wait_seconds.is_none() || scaling.tasks_per_worker.is_none(),
        "scaling.maxWaitSeconds and scaling.tasksPerWorker exclude each other"
    );
    let autoscaler::Policy { law, problem, .. } = autoscaler::Policy::new(&task_queue, false, begins);
    if let Some(problem) = problem {
        bail!(problem);
    }
    let bounds = Policy { min: scaling.min_replicas, max: scaling.max_replicas, ..law };
    Ok((bounds, Schedules { scaling, begins }))
}

/// The first field that was written and isn't known, which `kubectl apply` refuses, too.
fn misspelt(path: &str, written: &Value, known: &Value) -> Option<String> {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => written.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match known.get(name) {
                Some(known) => misspelt(&path, value, known),
                // What is empty is as good as left out.
                None if value.is_null() || *value == Value::Array(Vec::new()) => None,
                None => Some(path),
            }
        }),
        (Value::Array(written), Value::Array(known)) => written
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(index, (written, known))| misspelt(&format!("{path}[{index}]"), written, known)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use soloist_operator::plan::law::Goal;

    use super::*;

    fn read(scaling: &str) -> Result<(Policy, Schedules)> {
        let yaml = format!(
            "kind: Secret\n---\napiVersion: soloist.dev/v1alpha1\nkind: TaskQueue\nmetadata: {{name: red}}\nspec:\n  broker: {{secretRef: {{name: rabbitmq}}}}\n  worker: {{image: worker}}\n  scaling: {{{scaling}}}\n"
        );
        policy(&yaml, "2026-11-23T07:00:00Z".parse()?)
    }

    #[test]
    fn takes_bounds_goal_and_window_as_the_operator_does() {
        let goal = |scaling| read(scaling).unwrap().0.goal;
        assert_eq!(goal("maxReplicas: 20"), Goal::MaxWaitSeconds(30.0));
        assert_eq!(goal("maxReplicas: 20, maxWaitSeconds: 5"), Goal::MaxWaitSeconds(5.0));
        let tens = Goal::TasksPerWorker(NonZeroU32::new(10).unwrap());
        assert_eq!(goal("maxReplicas: 20, tasksPerWorker: 10"), tens);
        let policy =
            read("minReplicas: 2, maxReplicas: 20, scaleDown: {stabilizationSeconds: 45}").unwrap().0;
        assert_eq!((policy.min, policy.max), (2, 20));
        assert_eq!(policy.stabilization, Some(Duration::from_secs(45)));
    }

    #[test]
    fn schedules_count_from_the_beginning() {
        let (policy, schedules) =
            read("maxReplicas: 20, schedules: [{cron: 0 8 * * *, durationSeconds: 3600, minReplicas: 5}]")
                .unwrap();
        assert_eq!(policy.min, 0);
        let min = |seconds| schedules.apply(policy, seconds).min;
        assert_eq!([0.0, 3599.0, 3600.0, 7199.0, 7200.0].map(min), [0, 0, 5, 5, 0]);
    }

    #[test]
    fn refuses_what_is_no_task_queue() {
        assert!(read("minReplicas: 30, maxReplicas: 20").is_err());
        assert!(read("maxReplicas: 20, maxWaitSeconds: 5, tasksPerWorker: 5").is_err());
        let schedule =
            "maxReplicas: 20, schedules: [{cron: 0 25 * * *, durationSeconds: 3600, minReplicas: 5}]";
        assert!(read(schedule).unwrap_err().to_string().contains("cron `0 25 * * *`"));
        assert!(read("maxReplicas: 0").is_err());
        assert!(
            read("maxReplicas: 5, schedules: [{cron: 0 8 * * *, durationSeconds: 60, maxReplicas: 0}]")
                .is_err()
        );
        let misspelt = read("maxReplicas: 20, maxWaitSecond: 5").unwrap_err().to_string();
        assert_eq!(misspelt, "there is no field `spec.scaling.maxWaitSecond`");
        let schedule = "maxReplicas: 5, schedules: [{cron: 0 8 * * *, durationSeconds: 60, minReplica: 1}]";
        assert!(read(schedule).unwrap_err().to_string().contains("`spec.scaling.schedules[0].minReplica`"));
        assert!(read("maxReplicas: 5, schedules: [], fallback: null").is_ok());
        assert!(policy("kind: Pod", Timestamp::UNIX_EPOCH).is_err());
    }
}
