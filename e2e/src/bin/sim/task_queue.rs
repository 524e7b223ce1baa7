//! A TaskQueue's YAML as a policy: what would it do?

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_yaml::Value;
use soloist_operator::api::v1alpha1::TaskQueue;
use soloist_operator::plan::law::{Goal, Policy};

/// The policy of a TaskQueue, with `otherwise` for a wait that it doesn't state.
pub(crate) fn policy(yaml: &str, otherwise: f64) -> Result<Policy> {
    let document: Value = serde_yaml::from_str(yaml).context("read the TaskQueue")?;
    let task_queue: TaskQueue = serde_yaml::from_value(document.clone()).context("read the TaskQueue")?;
    let scaling = &task_queue.spec.scaling;
    // What the API server would fill in is not what the user said.
    let written = |path: &[&str]| {
        let start = document.get("spec")?.get("scaling")?;
        path.iter().try_fold(start, |value, field| value.get(*field))?.as_f64()
    };
    let goal = match (written(&["maxWaitSeconds"]), scaling.tasks_per_worker.and_then(NonZeroU32::new)) {
        (Some(wait), _) => Goal::MaxWaitSeconds(wait),
        (None, Some(tasks)) => Goal::TasksPerWorker(tasks),
        (None, None) => Goal::MaxWaitSeconds(otherwise),
    };
    ensure!(
        scaling.min_replicas <= scaling.max_replicas,
        "scaling.minReplicas may not be greater than scaling.maxReplicas"
    );
    Ok(Policy {
        min: scaling.min_replicas,
        max: scaling.max_replicas,
        goal,
        stabilization: written(&["scaleDown", "stabilizationSeconds"]).map(Duration::from_secs_f64),
        fallback: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(scaling: &str) -> Result<Policy> {
        let yaml = format!(
            "apiVersion: soloist.dev/v1alpha1\nkind: TaskQueue\nmetadata: {{name: red}}\nspec:\n  broker: {{secretRef: {{name: rabbitmq}}}}\n  worker: {{image: worker}}\n  scaling: {{{scaling}}}\n"
        );
        policy(&yaml, 5.0)
    }

    #[test]
    fn takes_bounds_and_goal() {
        let goal = |scaling| read(scaling).unwrap().goal;
        assert_eq!(goal("maxReplicas: 20"), Goal::MaxWaitSeconds(5.0));
        assert_eq!(goal("maxReplicas: 20, maxWaitSeconds: 30"), Goal::MaxWaitSeconds(30.0));
        assert_eq!(
            goal("maxReplicas: 20, tasksPerWorker: 10"),
            Goal::TasksPerWorker(NonZeroU32::new(10).unwrap())
        );
        let policy = read("minReplicas: 2, maxReplicas: 20").unwrap();
        assert_eq!((policy.min, policy.max, policy.stabilization), (2, 20, None));
    }

    #[test]
    fn takes_a_stabilization_that_was_written() {
        let policy = read("maxReplicas: 20, scaleDown: {stabilizationSeconds: 45}").unwrap();
        assert_eq!(policy.stabilization, Some(Duration::from_secs(45)));
    }

    #[test]
    fn refuses_what_is_no_task_queue() {
        assert!(read("minReplicas: 30, maxReplicas: 20").is_err());
        assert!(policy("kind: Pod", 5.0).is_err());
    }
}
