//! Celery itself, in Python.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{env, eventually, unique};

fn script(name: &str) -> String {
    format!("{}/tests/broker/support/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A Python program of the tests' Celery app.
fn app(backend: &str, queue: &str) -> Command {
    let mut python = Command::new(env("PYTHON"));
    python
        .current_dir(format!("{}/tests/broker/support", env!("CARGO_MANIFEST_DIR")))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BROKER", env("AMQP_URL"))
        .env("BACKEND", backend)
        .env("PYTHON_QUEUE", queue);
    python
}

/// A Celery worker of its own, with the tasks `py.*`. Killed when dropped.
pub(crate) struct PythonWorker {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub(crate) queue: String,
    pub(crate) node: String,
}

impl PythonWorker {
    /// Starts it, and returns once it consumes.
    pub(crate) fn start() -> Self {
        let queue = unique("python");
        let node = format!("{queue}@python");
        let mut child = app(&env("REDIS_URL"), &queue)
            .args(["-m", "celery", "-A", "celery_app", "worker", "-P", "solo", "-l", "INFO", "-Q", &queue])
            .args(["-n", &node])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = collect(child.stderr.take().unwrap());
        let worker = Self { child, log, queue, node };
        worker.wait_for(" ready.");
        worker
    }

    /// Waits for a line of its log with these words.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str) {
        eventually(&format!("the Python worker logs `{words}`"), || {
            self.log.lock().unwrap().iter().any(|line| line.contains(words)).then_some(())
        });
    }
}

/// The lines of a program's output, as they come.
fn collect(output: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            sink.lock().unwrap().push(line);
        }
    });
    lines
}

impl Drop for PythonWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends canvases, given as Python expressions, and waits for what becomes of each. In them `rust(name, args...)` is a
/// task of the Rust worker on `rust_queue`, others are of the Python worker, and `key` is one for `record`.
pub(crate) fn canvas(
    backend: &str,
    rust_queue: &str,
    python_queue: &str,
    key: &str,
    all: &[&str],
) -> Vec<Value> {
    let mut python = app(backend, python_queue);
    python.args(["celery_canvas.py", rust_queue, key]);
    converse(python, "celery_canvas.py", &all)
}

/// Runs a script with `input` as JSON on its standard input, and reads what it prints as JSON.
fn run<T: DeserializeOwned>(name: &str, args: &[&str], input: &impl Serialize) -> T {
    let mut python = Command::new(env("PYTHON"));
    python.arg(script(name)).args(args);
    converse(python, name, input)
}

fn converse<T: DeserializeOwned>(mut python: Command, name: &str, input: &impl Serialize) -> T {
    let mut python = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(&serde_json::to_vec(input).unwrap()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{name} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Replies of one worker to remote control commands, each with the seconds it took.
pub(crate) fn control(node: &str, commands: &[(&str, Value)]) -> Vec<(Value, f64)> {
    run("celery_control.py", &[&env("AMQP_URL"), node], &commands)
}

/// What `celery inspect` with these arguments has of one worker, and the seconds it took, each.
pub(crate) fn inspect(node: &str, commands: &[Vec<&str>]) -> Vec<(Value, f64)> {
    run("celery_inspect.py", &[&env("AMQP_URL"), node], &commands)
}

/// Has Celery declare its delay queues in a virtual host, or send a delayed task to a quorum queue over a topic exchange.
pub(crate) fn delays(amqp_url: &str, queue: &str, action: &str) -> Value {
    run("celery_delays.py", &[amqp_url, &env("REDIS_URL"), queue], &action)
}

/// What Celery's command line prints.
pub(crate) fn celery(args: &[&str]) -> String {
    let output = Command::new(env("PYTHON"))
        .args(["-m", "celery", "-b", &env("AMQP_URL")])
        .args(args)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// `celery events --dump`.
pub(crate) struct EventDump {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl EventDump {
    /// Starts it, and returns once it hears a worker.
    pub(crate) fn start(node: &str) -> Self {
        let mut child = Command::new(env("PYTHON"))
            .args(["-m", "celery", "-b", &env("AMQP_URL"), "events", "--dump"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let dump = Self { lines: collect(child.stdout.take().unwrap()), child };
        eventually("a heartbeat is shown", || dump.line(node, "heartbeat", ""));
        dump
    }

    /// What it shows of a worker: the first line about such an event that has these words too.
    pub(crate) fn line(&self, node: &str, event: &str, words: &str) -> Option<String> {
        let is_meant = |line: &&String| {
            line.starts_with(node) && line.contains(&format!("] {event}:")) && line.contains(words)
        };
        self.lines.lock().unwrap().iter().find(is_meant).cloned()
    }
}

impl Drop for EventDump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One call of a task.
pub(crate) struct Call(Value);

impl Call {
    pub(crate) fn new(task: &str, args: Value) -> Self {
        Self(json!({"task": task, "args": args}))
    }

    pub(crate) fn kwargs(mut self, kwargs: Value) -> Self {
        self.0["kwargs"] = kwargs;
        self
    }

    /// Options of `apply_async`; `eta_in` is an eta in so many seconds, with the way that it is given. When a call with an eta or a
    /// countdown is due, its outcome says in `due`.
    pub(crate) fn options(mut self, options: Value) -> Self {
        self.0["options"] = options;
        self
    }

    /// Headers with other values than Celery gives them.
    pub(crate) fn headers_set(mut self, headers: Value) -> Self {
        self.0["headers_set"] = headers;
        self
    }

    /// Headers that Celery doesn't send, as its versions of old.
    pub(crate) fn headers_left_out(mut self, names: &[&str]) -> Self {
        self.0["headers_left_out"] = json!(names);
        self
    }

    /// Its result is not waited for: what becomes of it is its id.
    pub(crate) fn not_waited_for(mut self) -> Self {
        self.0["wait"] = json!(false);
        self
    }

    /// Its outcome says in `seen` which states and results were there to be read, one after the other.
    pub(crate) fn watched(mut self) -> Self {
        self.0["watch"] = json!(true);
        self
    }

    /// One that was sent already, by others: its result is waited for.
    pub(crate) fn sent(id: &str) -> Self {
        Self(json!({"id": id}))
    }
}

/// A Celery client.
pub(crate) struct Celery {
    backend: String,
    queue: String,
    settings: Value,
}

impl Celery {
    /// A client that reads results from Redis.
    pub(crate) fn with_redis(queue: &str) -> Self {
        Self { backend: env("REDIS_URL"), queue: queue.to_owned(), settings: json!({}) }
    }

    /// A client that gets results over RPC.
    pub(crate) fn with_rpc(queue: &str) -> Self {
        Self { backend: "rpc://".to_owned(), ..Self::with_redis(queue) }
    }

    /// With settings of its app.
    pub(crate) fn settings(self, settings: Value) -> Self {
        Self { settings, ..self }
    }

    /// Calls tasks and waits for what becomes of them: `{"value": …}` or `{"error": type, "message": …}`.
    pub(crate) fn call(&self, calls: impl IntoIterator<Item = Call>) -> Vec<Value> {
        let calls: Vec<_> = calls.into_iter().map(|Call(call)| call).collect();
        run("celery_calls.py", &[&env("AMQP_URL"), &self.backend, &self.queue], &(&self.settings, &calls))
    }

    /// The same while the test does something else; the outcomes come when it is joined.
    pub(crate) fn call_meanwhile(
        self,
        calls: impl IntoIterator<Item = Call> + Send + 'static,
    ) -> thread::JoinHandle<Vec<Value>> {
        thread::spawn(move || self.call(calls))
    }

    /// What becomes of one call.
    pub(crate) fn call_one(&self, call: Call) -> Value {
        self.call([call]).remove(0)
    }
}

/// Celery's event receiver, listening to one worker.
pub(crate) struct EventWatch {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl EventWatch {
    /// Starts listening, and returns once it does.
    pub(crate) fn start(node: &str) -> Self {
        let mut child = Command::new(env("PYTHON"))
            .args([&script("celery_events.py"), &env("AMQP_URL"), node])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = collect(child.stdout.take().unwrap());
        let watch = Self { child, lines };
        watch.wait_for("watching", |_| true);
        watch
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.lines.lock().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for an event of this type for which `check` holds.
    #[track_caller]
    pub(crate) fn wait_for(&self, kind: &str, check: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("event {kind}"), || {
            self.events().into_iter().find(|event| event["type"] == kind && check(event))
        })
    }
}

impl Drop for EventWatch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the examples, with the Python programs that call them.
pub(crate) const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");

/// Has Python's own values (dates, decimals...) sent to a worker that gives them back, and tells which came back different.
pub(crate) fn values_that_change(queue: &str) -> Vec<String> {
    run("celery_values.py", &[&env("AMQP_URL"), &env("REDIS_URL"), queue], &())
}

/// Has tasks of these ids sent in each of Celery's ways: three by priority (1, 9, 5), by topic, to the worker `node`, to all.
pub(crate) fn routes(name: &str, node: &str, ids: &[String]) {
    run("celery_routes.py", &[&env("AMQP_URL"), name, node], &ids)
}
