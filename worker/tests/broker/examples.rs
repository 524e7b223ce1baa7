//! The examples, called by the Python programs beside them or by themselves, give the answers that the articles they come from have.

use std::{
    ffi::OsStr,
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Broker, EXAMPLES, env, eventually, example, example_file, stored, unique, within, worker,
};

/// One of the Python programs.
fn python(queue: &str) -> Command {
    let mut python = client(env("PYTHON"), queue);
    python.current_dir(EXAMPLES).env("PYTHONDONTWRITEBYTECODE", "1").env("POSITIONS", env("REDIS_URL"));
    python
}

/// A program that calls tasks.
fn client(program: impl AsRef<OsStr>, queue: &str) -> Command {
    let mut client = Command::new(program);
    client.env("BROKER", env("AMQP_URL")).env("RESULTS", env("REDIS_URL")).env("QUEUE", queue);
    client
}

/// What it prints.
fn output(client: &mut Command) -> Value {
    let output = client.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether two values are equal, numbers up to a billionth: they are money in floats.
fn is_near(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            (one.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-9
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_near(one, other))
        }
        _ => one == other,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn positions_are_valued() {
    let queue = unique("positions");
    let broker = Broker::connect().await;
    let worker = example("positions", &queue).env("POSITIONS", &env("REDIS_URL")).ready();
    let answers = output(python(&queue).arg("positions.py"));
    let expected = json!({
        "initial": [99, 91, 85, 96, 79],
        "at close": [95, 95, 95, 95, 95],
        "pnl": [-4, 4, 10, -1, 16],
        "ready": true,
        "one after the other": [-4, 4, 10],
        "running sums": [-4, 0, 10],
        "total": 25,
        "nothing to add": 0,
        "missing": null,
        "bad price": null,
        "no price": null,
        "late": 190,
        "late before": "RETRY",
    });
    for (what, answer) in expected.as_object().unwrap() {
        assert!(is_near(&answers[what], answer), "{what}: {answer} expected in {answers}");
    }
    // What the task logs comes with the name and the id of its call.
    let logged = worker.wait_for("calculating the value", |_| true);
    let span = &logged["spans"][0];
    assert!(span["task"] == "positions.value_at_close" && span["id"].is_string(), "{logged}");
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn an_upload_is_scanned_and_read_at_the_same_time() {
    let queue = unique("upload");
    let broker = Broker::connect().await;
    let _workers = [example("upload", &queue).ready(), example("upload", &queue).ready()];
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(&queue);
    fs::write(&file, "first\nsecond\nthird\n").unwrap();
    let report = output(python(&queue).arg("upload.py").arg(&file));
    assert_eq!((&report["is_clean"], &report["metadata"]), (&json!(true), &json!({"bytes": 19, "lines": 3})));
    assert_ne!(report["workers"][0], report["workers"][1]);
    assert!(report["overlap"].as_f64().unwrap() > 0.0, "{report}");
    fs::write(&file, r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*").unwrap();
    assert_eq!(output(python(&queue).arg("upload.py").arg(&file))["is_clean"], false);
    fs::remove_file(file).unwrap();
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn numbers_are_multiplied() {
    let queue = unique("multiply");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let expected = json!({
        "by name": 4, "delay": 20, "partial": 10, "chain": 40, "pipe": 40, "group of chains": [40, 72, 126],
        "starmap": [4, 16],
    });
    assert_eq!(output(python(&queue).arg("multiply.py")), expected);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_program_calls_tasks_of_its_own() {
    let queue = unique("words");
    let broker = Broker::connect().await;
    let _worker = example("words", &queue).ready();
    let mut client = client(example_file("words"), &queue);
    assert_eq!(output(client.args(["count", "to be or", "not to be"])), 6);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celerys_beat_has_days_added_on_schedule() {
    let queue = unique("dates");
    let broker = Broker::connect().await;
    let worker = example("dates", &queue).ready();
    let schedule = format!("{}/{queue}", env!("CARGO_TARGET_TMPDIR"));
    let mut beat = python(&queue)
        .args(["-m", "celery", "-A", "dates", "beat", "--pidfile=", "--schedule", &schedule])
        .env("EVERY", "1")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ids = within(Duration::from_secs(30), "three ticks are run", || {
        let log = worker.log();
        let done = log.iter().filter(|entry| entry["message"] == "task succeeded");
        let ids: Vec<_> = done.map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
        (ids.len() >= 3).then_some(ids)
    });
    beat.kill().unwrap();
    beat.wait().unwrap();
    let _ = fs::remove_file(schedule);
    // Each is stored, although beat waits for none, and two days ahead of the one before by the second between them.
    let dates: Vec<f64> =
        ids.iter().map(|id| in_days(&eventually("the result", || stored(id)).0["result"])).collect();
    for pair in dates.windows(2) {
        let seconds = pair[1] - pair[0];
        assert!((0.5..1.9).contains(&seconds), "{seconds} s between ticks: {dates:?}");
    }
    broker.remove(&queue);
}

/// A date in Celery's JSON that is two days ahead, in seconds.
fn in_days(result: &Value) -> f64 {
    assert_eq!(result["__type__"], "datetime", "{result}");
    let date: jiff::Timestamp = result["__value__"].as_str().unwrap().parse().unwrap();
    let ahead = date.duration_since(jiff::Timestamp::now()).as_secs_f64();
    assert!((2.0 * 86_400.0 - 60.0..2.0 * 86_400.0).contains(&ahead), "{result} is {ahead} s ahead");
    date.as_duration().as_secs_f64()
}
