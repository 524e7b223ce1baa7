//! Asking and telling workers, and their events.

use crate::support::{Beside, Worker, json, out, run, soloist, with_results};
use serde_json::Value;

/// Every question; most answers depend on the worker, what is in the table doesn't.
fn answers_everything(worker: &Worker, add: &str) {
    let (queue, node) = (worker.queue.as_str(), worker.node.as_str());
    let inspect = |method: &str| out(soloist(&["inspect", method, "-d", node, "-t", "30"]));
    assert_eq!(out(with_results(&["call", "-Q", queue, add, "1", "2", "--wait"])), "3");
    let pong = inspect("ping");
    let lines: Vec<_> = pong.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines, [["NODE", "ANSWER"], [node, "pong"]]);
    let stats = inspect("stats");
    assert!(stats.contains(&format!("{add} 1")), "{stats}");
    assert!(inspect("registered").contains(add));
    assert!(inspect("active_queues").contains(queue));
    assert!(inspect("conf").contains("task_default_queue"));
    assert!(inspect("report").contains("software"));
    for empty in ["active", "reserved", "scheduled", "revoked"] {
        assert!(inspect(empty).starts_with("NODE"), "{empty}");
    }
    let clock = json(soloist(&["inspect", "clock", "-t", "3", "--pattern", &format!("*{queue}")]));
    assert!(clock[node]["clock"].as_u64().unwrap() > 0, "{clock}");
    let found = json(soloist(&["inspect", "query_task", "unknown", "-d", node, "-t", "30"]));
    assert_eq!(found[node], serde_json::json!({}));

    let control = |args: &[&str]| out(soloist(&[&["control", "-d", node, "-t", "30"], args].concat()));
    assert!(control(&["rate_limit", add, "100/s"]).contains("new rate limit set"));
    assert!(control(&["time_limit", add, "5", "9"]).contains("time limits set"));
    let other = format!("{queue}-other");
    assert!(control(&["add_consumer", &other]).contains(&format!("add consumer {other}")));
    assert!(control(&["cancel-consumer", &other]).contains("no longer consuming"));
    crate::support::on_broker(async |channel| {
        channel.queue_delete(other.as_str().into(), Default::default()).await.unwrap();
        let _ = channel.exchange_delete(other.as_str().into(), Default::default()).await;
    });
    // Flags may come last.
    let revoked = json(soloist(&["control", "revoke", "an-id", "-d", node, "-t", "30"]));
    assert!(revoked[node]["ok"].as_str().unwrap().contains("flagged as revoked"), "{revoked}");
    assert!(inspect("revoked").contains("an-id"));
    assert!(control(&["revoke_by_stamped_headers", "tenant=acme"]).contains("flagged as revoked"));
    let said = run(soloist(&["control", "pool_restart", "-d", node, "-t", "30"]));
    assert!(
        said.code == 5 && said.err.contains("Pool restarts not enabled") && said.out.is_empty(),
        "{said:?}"
    );
    let said = run(soloist(&["control", "rate_limit", "unknown.task", "1/s", "-d", node, "-t", "30"]));
    assert!(said.code == 5 && said.err.contains("unknown task"), "{said:?}");
    assert!(control(&["enable_events"]).contains("enabled"));
    assert_eq!(control(&["heartbeat"]), "sent");
}

fn tells_of_its_tasks(worker: &Worker, add: &str) {
    let id = format!("{}-watched", worker.queue);
    let watch = |args: &[&str]| Beside::start(soloist(&[&["events", "--type", "task-*"], args].concat()));
    let named = format!("{add}[{id}]");
    let end = ["task-succeeded", &id];
    let watches = [
        (watch(&[]), &[end[0], &named][..]),
        (watch(&["-o", "json"]), &end),
        (watch(&["--dump"]), &end[1..]),
    ];
    let seen = std::thread::scope(|scope| {
        let readers = watches.map(|(watch, end)| scope.spawn(move || watch.until(end)));
        // Until all three have seen one from beginning to end.
        while !readers.iter().all(|reader| reader.is_finished()) {
            out(with_results(&["call", "-Q", &worker.queue, add, "1", "2", "--wait", "--task-id", &id]));
        }
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(seen[0].contains(&format!("{} task-received {add}[{id}]", worker.node)), "{}", seen[0]);
    let succeeded = seen[0].lines().rfind(|line| line.contains("task-succeeded")).unwrap();
    assert!(succeeded.contains(&format!("{add}[{id}] 3 in ")), "{succeeded}");
    let event: Value = serde_json::from_str(seen[1].lines().last().unwrap()).unwrap();
    assert_eq!((&event["uuid"], &event["result"]), (&Value::from(&*id), &Value::from("3")));
    assert!(
        seen[2].ends_with(&format!(
            "
  uuid: {id}
"
        )),
        "{}",
        seen[2]
    );
}

#[test]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, REDIS_URL"]
fn our_worker_answers_and_obeys() {
    let mut worker = Worker::soloist();
    answers_everything(&worker, "tasks.add");
    tells_of_its_tasks(&worker, "tasks.add");

    // Asked while it works.
    let id = out(with_results(&["call", "-Q", &worker.queue, "tasks.sleep", "600"]));
    let active = loop {
        let active = json(soloist(&["inspect", "active", "-d", &worker.node, "-t", "30"]));
        if active[&worker.node] != Value::Array(Vec::new()) {
            break active;
        }
    };
    assert_eq!(active[&worker.node][0]["id"], Value::from(&*id));
    assert!(out(soloist(&["inspect", "active", "-d", &worker.node, "-t", "30"])).contains("tasks.sleep"));
    out(soloist(&["control", "terminate", "TERM", &id, "-d", &worker.node, "-t", "30"]));
    let said = run(with_results(&["result", &id, "--wait"]));
    assert!(said.code == 5 && said.err.contains("REVOKED"), "{said:?}");
    assert_eq!(out(soloist(&["control", "shutdown", "-d", &worker.node, "-t", "30"])), "sent");
    worker.has_exited();
}

#[test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
fn celerys_worker_answers_and_obeys() {
    let worker = Worker::python();
    answers_everything(&worker, "tk.add");
    tells_of_its_tasks(&worker, "tk.add");
}
