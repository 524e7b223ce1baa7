//! Flower, and a browser to look at it with.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Vhost, env, http, within};

/// A fresh Python takes seconds for Flower's first page.
const START: Duration = Duration::from_secs(60);
/// Milliseconds of the browser's own clock that a page gets for fetching and showing its data.
const PAGE_MILLISECONDS: u32 = 5000;

/// Flower as anybody would run it. Killed when dropped.
pub(crate) struct Flower {
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Flower {
    /// Starts it for a virtual host, and returns once it answers.
    pub(crate) fn start(vhost: &Vhost) -> Self {
        let address = free_address();
        let (host, port) = address.split_once(':').unwrap();
        let mut child = Command::new(env("PYTHON"))
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/broker/support"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-m", "celery", "-A", "flower_app", "--broker", &vhost.amqp_url()])
            .args(["--result-backend", &env("REDIS_URL"), "flower"])
            .args([format!("--address={host}"), format!("--port={port}")])
            .arg(format!("--broker_api={}/api/", vhost.management_url()))
            // Nobody but this test can reach it.
            .env("FLOWER_UNAUTHENTICATED_API", "true")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        let lines = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line))
        });
        let flower = Self { child, address, log };
        within(START, "Flower listens", || flower.says("Visit me at").then_some(()));
        within(START, "Flower is connected", || flower.says("Connected to").then_some(()));
        flower
    }

    fn says(&self, words: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(words))
    }

    /// What it has complained of: log lines of level warning or higher, and tracebacks.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let bad = |line: &&String| {
            ["[W ", "[E ", "[C "].iter().any(|level| line.starts_with(level)) || line.contains("Traceback")
        };
        self.log.lock().unwrap().iter().filter(bad).cloned().collect()
    }

    /// An answer of its REST API; text that isn't JSON becomes a string.
    pub(crate) fn api(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = http::request(&self.address, method, &format!("/api{path}"), "", &body);
        (status, serde_json::from_str(&answer).unwrap_or_else(|_| json!(answer)))
    }

    /// What Prometheus would scrape from it.
    pub(crate) fn metrics(&self) -> String {
        http::get(&self.address, "/metrics").1
    }

    /// Presses a button: an order to the API that must be followed. Gives back what Flower says to it.
    #[track_caller]
    pub(crate) fn press(&self, path: &str) -> String {
        let (status, answer) = self.api("POST", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {answer}");
        answer["message"].as_str().unwrap_or_default().to_owned()
    }

    /// What a person sees on a page in a browser, once its scripts have run; a picture of it is kept under `name` in the
    /// target directory.
    #[track_caller]
    pub(crate) fn page(&self, path: &str, name: &str) -> String {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("flower");
        fs::create_dir_all(&folder).unwrap();
        let profile = folder.join(format!("profile-{}", self.child.id()));
        let output = Command::new("chromium")
            // Without a sandbox, which root may not have; the only page it sees is Flower's.
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--window-size=1400,1000", "--enable-logging=stderr", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--virtual-time-budget={PAGE_MILLISECONDS}"))
            .arg(format!("--screenshot={}", folder.join(format!("{name}.png")).display()))
            .arg(format!("http://{}{path}", self.address))
            .output()
            .unwrap();
        let _ = fs::remove_dir_all(profile);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{path}: {log}");
        // What the page's scripts print goes there too, failures among it.
        let errors: Vec<_> =
            log.lines().filter(|line| line.contains("CONSOLE") || line.contains("Uncaught")).collect();
        assert!(errors.is_empty(), "{path}: {errors:?}");
        text(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Drop for Flower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.log.lock().unwrap().iter().for_each(|line| eprintln!("flower: {line}"));
        }
    }
}

/// An address of this machine that nothing listens at.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The words of a page: without its head, its scripts and its tags.
fn text(html: &str) -> String {
    let mut words = String::new();
    let mut rest = html.find("<body").map_or(html, |body| &html[body..]);
    while let Some(start) = rest.find('<') {
        words.push_str(&rest[..start]);
        let tag = &rest[start..];
        // Flower splits names over spans; everything else separates words.
        if !["<span", "</span", "<a ", "</a>"].iter().any(|inline| tag.starts_with(inline)) {
            words.push(' ');
        }
        let end = if tag.starts_with("<script") { "</script>" } else { ">" };
        rest = tag.find(end).map_or("", |at| &tag[at + end.len()..]);
    }
    words.push_str(rest);
    words
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace("&amp;", "&")
        .replace("&#x27;", "'")
        .replace("&quot;", "\"")
}
