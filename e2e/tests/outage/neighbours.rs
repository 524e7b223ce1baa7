//! What is wrong with one TaskQueue, or with its broker, keeps no other waiting.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::api_proxy::{ApiProxy, Fate};
use e2e::benchmark::{quantile, rounded};
use e2e::operator::{self, Instance};
use e2e::proxy::{Door, Proxy};
use e2e::soloist::{self, START, Test};
use e2e::wait;
use futures_util::future::try_join_all;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use crate::{figures, own_operator, run, without_workers};

/// As old as a reading of the backlog, and as late as the answer to a burst may be.
const LIMIT: f64 = 2.0;
const BURSTS: usize = 3;
const MESSAGES: usize = 50;

/// How others are served.
struct Service {
    /// From the last message of a burst to the patch of the replicas; half of them were quicker. A machine that does other things too
    /// may stop for a second, which says nothing of the operator.
    patch: f64,
    /// Of their observations; nine of ten were younger.
    age: f64,
}

/// Bursts on TaskQueues that are made for it, whose names begin with `name`.
async fn serve(test: &Test, instance: &Instance, name: &str) -> Result<Service> {
    let celery = test.celery().await?;
    let (mut patches, mut ages) = (Vec::new(), Vec::new());
    for number in 0..BURSTS {
        let name = format!("{name}-{number}");
        test.namespace.apply(&without_workers(&name, "{maxReplicas: 5, tasksPerWorker: 10}")).await?;
        test.condition(&name, "Ready", "True", "Ready").await?;
        try_join_all((0..MESSAGES).map(|_| soloist::send(&celery, &name, "tasks.add", (1, 1)))).await?;
        let published = Instant::now();
        test.until_replicas(&name, 5, START).await?;
        patches.push(published.elapsed().as_secs_f64());
        for _ in 0..5 {
            let own = format!("taskqueue=\"{name}\"");
            ages.extend(instance.scrape().await?.with_label("soloist_observation_age_seconds", &own));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        test.cluster.rabbitmq.purge(&test.namespace.name, &name).await?;
    }
    let part = |samples: &[f64], part| quantile(samples, part).context("nothing was measured");
    Ok(Service { patch: part(&patches, 0.5)?, age: part(&ages, 0.9)? })
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_broker_that_hangs_and_a_task_queue_that_cannot_be_read_delay_no_other() -> Result<()> {
    let test = Test::beside_others("neighbours").await?;
    run(&test, Duration::from_secs(150), async {
        let api = ApiProxy::to(operator::config(&test).await?).await?;
        // A number of replicas that this operator can't read, as that of a definition newer than it might be.
        api.set(|request| match request.uri.path().ends_with("/taskqueues") {
            true => Fate::Replace(r#""maxReplicas":777"#, r#""maxReplicas":"as many as it takes""#),
            false => Fate::Pass,
        });
        let mut instance = own_operator(&test, &api.url).await?;
        let alone = serve(&test, &instance, "before").await?;

        let broker = test.broker_url.split(['@', '/']).nth(3).context("no host")?;
        let door = Proxy::to(broker).await?;
        test.secret("hanging", &test.broker_url.replace(broker, &door.address.to_string())).await?;
        let hanging =
            |name: &str| without_workers(name, "{maxReplicas: 5}").replace("name: rabbitmq", "name: hanging");
        test.namespace.apply(&hanging("connected")).await?;
        test.condition("connected", "Ready", "True", "Ready").await?;
        door.set(Door::Silent);
        test.namespace.apply(&hanging("late")).await?;
        test.namespace.apply(&without_workers("malformed", "{maxReplicas: 777}")).await?;
        let events: Api<Event> = test.namespace.api();
        wait::until("a word on the malformed TaskQueue", START, || async {
            let events = events.list(&ListParams::default()).await?.items;
            let is_it = |event: &Event| event.reason.as_deref() == Some("ResourceInvalid");
            Ok(events.into_iter().find(is_it).and_then(|event| event.note))
        })
        .await?;
        // Its watch has to bear with it, and its list, which is what an operator begins with.
        for (name, is_listed) in [("watched", false), ("listed", true)] {
            if is_listed {
                instance.restart().await?;
                instance.ready().await?;
            }
            let beside = serve(&test, &instance, name).await?;
            figures(&json!({
                "test": "neighbours",
                "malformed": name,
                "patch_seconds_alone": rounded(alone.patch),
                "patch_seconds": rounded(beside.patch),
                "age_seconds_alone": rounded(alone.age),
                "age_seconds": rounded(beside.age),
            }))?;
            ensure!(beside.patch <= LIMIT, "a burst was answered after {} s", beside.patch);
            ensure!(beside.age <= LIMIT, "an observation was {} s old", beside.age);
        }
        for name in ["connected", "late"] {
            test.condition(name, "BrokerReachable", "False", "BrokerUnreachable").await?;
        }
        ensure!(instance.is_ready().await?, "it is not ready because of a broker");
        instance.lives().await
    })
    .await
}
