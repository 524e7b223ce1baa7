//! Flower, as it comes, shows our worker and commands it.

use serde_json::{Value, json};

use crate::support::{Flower, Vhost, eventually, stored, unique, worker};

const NONE: Value = Value::Null;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis, Celery with Flower, and Chromium: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn flower_shows_the_worker_in_a_browser_and_its_buttons_work() {
    let vhost = Vhost::create().await;
    let queue = unique("flower");
    let mut worker = worker(&queue).env("SOLOIST_BROKER", &vhost.amqp_url()).ready();
    let flower = Flower::start(&vhost);
    let node = worker.node.clone();
    let workers = |query: &str| flower.api("GET", &format!("/workers{query}"), &NONE).1;
    eventually("the worker is online", || (workers("?status=true")[&node] == true).then_some(()));

    let send = |task: &str, args: Value| {
        let call = json!({"args": args, "queue": queue});
        let (status, sent) = flower.api("POST", &format!("/task/send-task/{task}"), &call);
        assert_eq!(status, 200, "{sent}");
        sent["task-id"].as_str().unwrap().to_owned()
    };
    let state = |id: &str| flower.api("GET", "/tasks", &NONE).1[id]["state"].clone();
    let ends_as = |id: &str, wanted: &str| {
        eventually(&format!("{id} is {wanted}"), || (state(id) == wanted).then_some(()));
    };
    let (added, failed) = (send("tasks.add", json!([1, 2])), send("tasks.fail", json!(["boom"])));
    ends_as(&added, "SUCCESS");
    ends_as(&failed, "FAILURE");
    let running = send("tasks.sleep", json!([60]));
    ends_as(&running, "STARTED");

    // Its API, while the worker is busy.
    let tasks = flower.api("GET", "/tasks", &NONE).1;
    assert_eq!(tasks.as_object().unwrap().len(), 3, "{tasks}");
    let info = flower.api("GET", &format!("/task/info/{added}"), &NONE).1;
    let shown = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
    assert_eq!([shown("name"), shown("args"), shown("result")], ["tasks.add", "[1, 2]", "3"], "{info}");
    assert!(info["runtime"].is_number() && info["worker"] == json!(node), "{info}");
    assert_eq!(flower.api("GET", &format!("/task/result/{added}"), &NONE).1["result"], 3);

    // Its pages, in a browser.
    let page = flower.page("/workers", "workers");
    let counts = format!("{node} Online 1 3 1 1");
    assert!(page.contains(&counts), "active, processed, failed, succeeded: {counts}: {page}");
    let page = flower.page("/tasks", "tasks");
    // The whole id (for copying), its beginning, the state.
    for (id, state) in [(&added, "SUCCESS"), (&failed, "FAILURE"), (&running, "STARTED")] {
        assert!(page.contains(&format!("{id}{} {state}", &id[..8])), "{id} {state}: {page}");
    }
    let page = flower.page(&format!("/task/{failed}"), "task");
    for words in ["Name tasks.fail", "Status FAILURE", "RuntimeError('boom')", &node] {
        assert!(page.contains(words), "{words}: {page}");
    }
    // Not sooner: Flower's inspection at its start takes a second, and then overwrites newer answers.
    let known = eventually("the API knows of the worker's tasks", || {
        let known = flower.api("GET", &format!("/workers?refresh=1&workername={node}"), &NONE).1;
        (known[&node]["stats"]["total"]["tasks.sleep"] == 1).then_some(known)
    });
    let worker_info = &known[&node];
    assert_eq!(worker_info["active_queues"][0]["name"], json!(queue), "{known}");
    assert_eq!(worker_info["active"][0]["id"], json!(running), "{known}");
    assert_eq!(worker_info["stats"]["pool"]["max-concurrency"], 1, "{known}");
    let lengths = flower.api("GET", "/queues/length", &NONE).1;
    assert_eq!(lengths["active_queues"][0]["name"], json!(queue), "{lengths}");
    let page = flower.page(&format!("/worker/{node}"), "worker");
    for words in [
        "Implementation Soloist:solo",
        "Max concurrency 1",
        &*queue,
        "tasks.add 1",
        &running,
        "tasks.multiply",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let page = flower.page("/broker", "broker");
    // Messages, of them unacknowledged, of them ready, consumers: the management API lags a little behind.
    assert!(
        page.contains(&format!("{queue} 1 1 0 1")) || page.contains(&format!("{queue} 0 0 0 1")),
        "{page}"
    );

    // Its buttons.
    assert_eq!(
        flower.press(&format!("/task/revoke/{running}?terminate=true")),
        format!("Revoked '{running}'")
    );
    ends_as(&running, "REVOKED");
    let (meta, _) = eventually("the termination is stored", || stored(&running));
    assert_eq!(meta["result"]["exc_message"], json!(["terminated"]));
    let said = flower.press(&format!("/task/rate-limit/tasks.add?workername={node}&ratelimit=100/s"));
    assert_eq!(said, "new rate limit set successfully");
    let said = flower.press(&format!("/task/timeout/tasks.add?workername={node}&soft=5&hard=10"));
    assert_eq!(said, "time limits set successfully");
    let second = unique("flower");
    assert_eq!(
        flower.press(&format!("/worker/queue/add-consumer/{node}?queue={second}")),
        format!("add consumer {second}")
    );
    let said = flower.press(&format!("/worker/queue/cancel-consumer/{node}?queue={second}"));
    assert_eq!(said, format!("no longer consuming from {second}"));
    // What it has to say of metrics, and of a worker that goes.
    let metrics = flower.metrics();
    let online = format!("flower_worker_online{{worker=\"{node}\"}} 1.0");
    assert!(metrics.contains(&online), "{metrics}");
    assert_eq!(flower.complaints(), Vec::<String>::new());

    // One process holds one task: what would make it hold more is refused, with the remedy. Flower logs that as an error.
    let (status, said) = flower.api("POST", &format!("/worker/pool/grow/{node}?n=1"), &NONE);
    assert_eq!(status, 403);
    assert!(said.as_str().unwrap().contains("scale replicas instead"), "{said}");

    assert_eq!(flower.press(&format!("/worker/shutdown/{node}")), "Shutting down!");
    assert_eq!(worker.wait().code(), Some(0));
    eventually("the worker is offline", || (workers("?status=true")[&node] == false).then_some(()));
}
