//! Calling tasks and showing their results, with our worker and with Celery's.

use crate::support::{Worker, json, out, run, soloist, with_results};
use celery_client::{Signature, chord, group};
use serde_json::{Value, json as value};
use std::io::Write;
use std::process::Stdio;

/// Names of the tasks of a worker, as `soloist worker` and the tests' Celery app have them.
struct Names {
    add: &'static str,
    fail: &'static str,
}

fn calls_and_canvases(worker: &Worker, names: &Names) {
    let queue = worker.queue.as_str();
    let Names { add, fail } = *names;
    assert_eq!(out(with_results(&["call", "-Q", queue, add, "1", "2", "--wait"])), "3");
    assert_eq!(out(with_results(&["call", "-Q", queue, add, "--args", "[1, 2]", "-w"])), "3");
    assert_eq!(out(with_results(&["call", "-Q", queue, add, "--kwargs", r#"{"x": 1, "y": 2}"#, "-w"])), "3");
    let called = json(with_results(&["call", "-Q", queue, add, "1", "2", "--wait"]));
    assert!(called["result"] == 3 && called["task_id"].is_string(), "{called}");

    // Without waiting, the id is what is printed.
    let id =
        out(with_results(&["call", "-Q", queue, add, "2", "2", "--expires", "60", "--countdown", "0.2"]));
    assert_eq!(out(with_results(&["result", &id, "--wait"])), "4");
    let meta = json(with_results(&["result", &id]));
    assert_eq!((&meta["status"], &meta["task_id"]), (&value!("SUCCESS"), &value!(id)));
    let failed = out(with_results(&["call", "-Q", queue, fail]));
    let said = run(with_results(&["result", &failed, "--wait", "--traceback"]));
    assert!(said.code == 5 && said.err.contains("ended as FAILURE"), "{said:?}");
    let said = run(with_results(&["result", &id, &failed]));
    assert!(said.code == 5 && said.out.starts_with("ID ") && said.out.lines().count() == 3, "{said:?}");
    let said = run(with_results(&["call", "-Q", queue, fail, "--wait"]));
    assert_eq!(said.code, 5, "{said:?}");
    out(with_results(&["result", &id, "--forget"]));
    assert_eq!(run(with_results(&["result", &id])).code, 4);

    let [first, second] = [format!("{add}(1, 2)"), format!("{add}(10)")];
    assert_eq!(out(with_results(&["chain", "-Q", queue, &first, &second, "--wait"])), "13");
    let nested = format!("{add}(5, 5) | {add}(1)");
    assert_eq!(out(with_results(&["group", "-Q", queue, &first, &nested, "--wait"])), "[3,11]");
    let group = out(with_results(&["group", "-Q", queue, &first, &nested]));
    assert_eq!(out(with_results(&["result", &group, "--wait"])), "[3,11]");
    let metas = json(with_results(&["result", &group, "--wait"]));
    assert_eq!(metas.as_array().unwrap().iter().map(|meta| &meta["result"]).collect::<Vec<_>>(), [3, 11]);

    // Any canvas from standard input.
    let canvas = value!([{"task": add, "args": [1, 1]}, format!("{add}(3)")]);
    assert_eq!(piped(&["chain", "-Q", queue, "--file", "-", "--wait"], &canvas), "5");
}

/// What the program prints, given JSON on its standard input.
fn piped(args: &[&str], input: &Value) -> String {
    let mut program = with_results(args);
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, REDIS_URL"]
fn tasks_of_our_worker_are_called() {
    let worker = Worker::soloist();
    calls_and_canvases(&worker, &Names { add: "tasks.add", fail: "tasks.fail" });
    // Results over RPC come to the process that waits.
    let mut call = soloist(&["call", "-Q", &worker.queue, "tasks.add", "1", "2", "--wait", "--timeout", "1"]);
    call.env("SOLOIST_RESULTS", "rpc://");
    let said = run(call);
    assert!(said.code == 4 && said.err.contains("has not ended"), "this worker stores in Redis: {said:?}");
}

#[test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
fn tasks_of_celerys_worker_are_called() {
    let worker = Worker::python();
    calls_and_canvases(&worker, &Names { add: "tk.add", fail: "tk.fail" });
    assert_eq!(out(with_results(&["call", "-Q", &worker.queue, "tk.add", "a", "b", "--wait"])), "ab");
    let chord = ["chord", "-Q", &worker.queue, "tk.add(1, 2)", "tk.add(3, 4)", "--body", "tk.sum", "--wait"];
    assert_eq!(out(with_results(&chord)), "10");
    let call = ["call", "-Q", &worker.queue, "tk.seen", "--priority", "3", "--time-limit", "20", "--wait"];
    let more = ["--header", "tenant=acme", "--stamp", "label=x", "--task-id", &worker.queue, "-o", "json"];
    let seen = json(with_results(&[&call[..], &more[..6]].concat()));
    let seen = &seen["result"];
    assert_eq!(seen["id"], value!(worker.queue));
    assert_eq!((&seen["tenant"], &seen["priority"]), (&value!("acme"), &value!(3)));
    assert_eq!((&seen["stamps"], &seen["timelimit"]), (&value!({"label": "x"}), &value!([20, null])));
}

#[test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
fn canvases_go_over_both_workers() {
    let (ours, celerys) = (Worker::soloist(), Worker::python());
    let multiply = |x: i64| Signature::new("tasks.multiply").arg(x).queue(&*ours.queue);
    let add = |x: i64| Signature::new("tk.add").arg(x).queue(&*celerys.queue);
    let sum = || Signature::new("tk.sum").queue(&*celerys.queue);
    // (2 * 3 + 1, 1 + 1) -> 9 -> 90 -> (91, 180) -> 271
    let canvas = group([multiply(2).arg(3) | add(1), add(1).arg(1)])
        | sum()
        | multiply(10)
        | group([add(1), multiply(2)])
        | sum();
    let canvas = serde_json::to_value(canvas).unwrap();
    assert_eq!(piped(&["chain", "--file", "-", "--wait"], &canvas), "271");
    // A chord in the header of a chord: 8 and 2.
    let inner = serde_json::to_value(chord([multiply(2).arg(3), add(1).arg(1)], sum())).unwrap();
    let outer = value!({"header": [inner, "tk.add(1, 1)"], "body": sum()});
    assert_eq!(piped(&["chord", "-Q", &celerys.queue, "--file", "-", "--wait"], &outer), "10");
}
