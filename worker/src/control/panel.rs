//! The commands, by name.

use std::{sync::Arc, time::Duration};

use celery_client::BrokerAddress;
use celery_protocol::{Map, Request, control::Command, repr};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use super::show;
use crate::{
    delay::Postponed,
    events::{Activity, Clock, Events},
    limits::{Limits, RateLimit},
    queues::{Binding, Queue, Queues},
    revoked::{Revoked, as_list, carries},
    stop::Stop,
    supervise::TimeLimits,
    task::Registry,
    tracker::{Stage, Tracked, Tracker},
};

/// Signal that a task is ended with when none is named.
const SIGTERM: i32 = 15;

/// What remote control can see and change.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) node: Arc<str>,
    pub(crate) app: String,
    pub(crate) broker: BrokerAddress,
    pub(crate) results: String,
    pub(crate) create_missing_queues: bool,
    pub(crate) track_started: bool,
    pub(crate) started: Instant,
    pub(crate) clock: Arc<Clock>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) tracker: Arc<Tracker>,
    pub(crate) postponed: Arc<Postponed>,
    pub(crate) revoked: Arc<Revoked>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) events: Events,
    pub(crate) activity: Arc<Activity>,
    pub(crate) stop: Stop,
}

impl Panel {
    /// Carries out a command and gives the reply; `None` if there never is one.
    pub(crate) fn obey(&self, command: &Command) -> Option<Value> {
        let arguments = Arguments(&command.arguments);
        Some(match command.method.as_str() {
            "ping" => ok("pong"),
            "stats" => self.stats(),
            "active" | "dump_active" => self.active(arguments.flag("safe")),
            "reserved" | "dump_reserved" => self.calls_in(Stage::Reserved),
            "scheduled" | "dump_schedule" => self.scheduled(),
            "registered" | "dump_tasks" => self.registered(&arguments),
            "active_queues" => self.queues.active().iter().map(show::queue).collect(),
            "revoked" | "dump_revoked" => self.revoked.ids().into(),
            "query_task" => self.query_task(&arguments.texts("ids")),
            "conf" | "dump_conf" => self.conf(),
            "report" => ok(self.report()),
            "clock" => json!({"clock": self.clock.now()}),
            "hello" => self.hello(&arguments),
            "revoke" => self.revoke(&arguments, arguments.flag("terminate")),
            "terminate" => self.revoke(&arguments, true),
            "revoke_by_stamped_headers" => self.revoke_by_stamps(&arguments),
            "rate_limit" => self.rate_limit(&arguments),
            "time_limit" => self.time_limit(&arguments),
            "add_consumer" => self.add_consumer(&arguments),
            "cancel_consumer" => self.cancel_consumer(&arguments),
            "enable_events" => ok(if self.events.enable(true) {
                "task events enabled"
            } else {
                "task events already enabled"
            }),
            "disable_events" => ok(if self.events.enable(false) {
                "task events disabled"
            } else {
                "task events already disabled"
            }),
            "heartbeat" => {
                self.events.heartbeat(&self.activity);
                Value::Null
            }
            "pool_grow" | "pool_shrink" => error("solo pool cannot be resized; scale replicas instead"),
            "pool_restart" => error("ValueError('Pool restarts not enabled')"),
            "autoscale" => error("ValueError('Autoscale not enabled')"),
            "memsample" => Value::Null,
            "memdump" | "objgraph" => error("not available: this worker is not written in Python"),
            // A lone Celery worker crashes on its own election; this one never takes part.
            "election" => Value::Null,
            "shutdown" => {
                warn!("told to shut down by remote control");
                self.stop.warm();
                return None;
            }
            unknown => error(format!("KeyError({})", repr::string(unknown))),
        })
    }

    /// Adds what others have revoked: a list of ids, or, up to Celery 5.6, a map by id.
    pub(super) fn adopt(&self, revoked: Option<&Value>) {
        let ids: Vec<&str> = match revoked {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_str).collect(),
            Some(Value::Object(ids)) => ids.keys().map(String::as_str).collect(),
            _ => return,
        };
        if !ids.is_empty() {
            self.revoked.change(|revocations| ids.iter().for_each(|id| revocations.add(id, Instant::now())));
        }
    }

    fn stats(&self) -> Value {
        let times = self.limits.default_times();
        let timeouts: Vec<f64> = match (times.soft, times.hard) {
            (None, None) => Vec::new(),
            (soft, hard) => [soft, hard].map(|limit| limit.unwrap_or_default().as_secs_f64()).to_vec(),
        };
        let pid = std::process::id();
        json!({
            "total": self.tracker.begun(),
            "pid": pid,
            "clock": self.clock.now().to_string(),
            "uptime": self.started.elapsed().as_secs(),
            "pool": {
                "implementation": "soloist:solo",
                "max-concurrency": 1,
                "processes": [pid],
                "max-tasks-per-child": null,
                "put-guarded-by-semaphore": true,
                "timeouts": timeouts,
            },
            "broker": {
                "hostname": self.broker.host,
                "userid": self.broker.username,
                "virtual_host": self.broker.vhost,
                "port": self.broker.port,
                "insist": false,
                "ssl": self.broker.tls,
                "transport": "amqp",
                "connect_timeout": self.broker.connect_timeout.as_secs(),
                "transport_options": {},
                "login_method": "PLAIN",
                "uri_prefix": null,
                "heartbeat": self.broker.heartbeat.as_secs(),
                "failover_strategy": "round-robin",
                "alternates": [],
                "credential_provider": null,
            },
            "prefetch_count": self.activity.prefetch(),
            "rusage": show::resource_usage(),
        })
    }

    fn active(&self, as_text: bool) -> Value {
        let is_active = |tracked: &Tracked| matches!(tracked.stage, Stage::Active { .. });
        self.tracker
            .show(|tracked| is_active(tracked).then(|| show::call(tracked, &self.node, as_text)))
            .into()
    }

    fn calls_in(&self, stage: Stage) -> Value {
        self.tracker
            .show(|tracked| (tracked.stage == stage).then(|| show::call(tracked, &self.node, false)))
            .into()
    }

    fn scheduled(&self) -> Value {
        let show = |tracked: &Tracked| {
            (tracked.stage == Stage::Scheduled).then(|| show::scheduled(tracked, &self.node, false))
        };
        let mut scheduled = self.tracker.show(show);
        scheduled.extend(self.postponed.show(Timestamp::now(), show));
        scheduled.into()
    }

    fn registered(&self, arguments: &Arguments<'_>) -> Value {
        // Of the attributes that may be asked for, a task here has only this one.
        let asked = arguments.texts("taskinfoitems");
        let shows_rate = asked.is_empty() || asked.contains(&"rate_limit");
        let names = self.registry.names().into_iter().map(|name| {
            match self.limits.rate(&name).filter(|_| shows_rate) {
                Some(rate) => format!("{name} [rate_limit={rate}]"),
                None => name,
            }
        });
        names.collect()
    }

    fn query_task(&self, ids: &[&str]) -> Value {
        let show = |tracked: &Tracked| {
            let state = match tracked.stage {
                Stage::Reserved => "reserved",
                Stage::Scheduled => "scheduled",
                Stage::Active { .. } => "active",
            };
            let id = tracked.request.id.as_str();
            ids.contains(&id).then(|| (id.to_owned(), json!([state, show::call(tracked, &self.node, false)])))
        };
        let mut found = self.postponed.show(Timestamp::now(), show);
        found.extend(self.tracker.show(show));
        Value::Object(Map::from_iter(found))
    }

    fn conf(&self) -> Value {
        let times = self.limits.default_times();
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        json!({
            "accept_content": ["json"],
            "broker_url": self.broker.to_string(),
            "enable_utc": true,
            "main": self.app,
            "result_backend": self.results,
            "result_expires": celery_protocol::result::EXPIRES_SECONDS,
            "result_serializer": "json",
            "task_acks_late": true,
            "task_create_missing_queues": self.create_missing_queues,
            "task_default_queue": self.queues.list().first().map(|queue| queue.name.clone()),
            "task_ignore_result": false,
            "task_serializer": "json",
            "task_soft_time_limit": seconds(times.soft),
            "task_time_limit": seconds(times.hard),
            "task_track_started": self.track_started,
            "timezone": "UTC",
            "worker_concurrency": 1,
            "worker_pool": "solo",
            "worker_prefetch_multiplier": 1,
            "worker_send_task_events": self.events.is_enabled(),
        })
    }

    fn report(&self) -> String {
        format!(
            "\nsoftware -> soloist:{} rust\nplatform -> system:Linux arch:{}\nsettings -> broker:{} results:{}\n",
            crate::VERSION,
            std::env::consts::ARCH,
            self.broker,
            self.results
        )
    }

    fn hello(&self, arguments: &Arguments<'_>) -> Value {
        if arguments.text("from_node") == Some(&*self.node) {
            return Value::Null;
        }
        self.adopt(arguments.0.get("revoked"));
        json!({"revoked": self.revoked.ids(), "clock": self.clock.forward()})
    }

    fn revoke(&self, arguments: &Arguments<'_>, terminate: bool) -> Value {
        let ids = arguments.texts("task_id");
        self.revoked.revoke(&ids);
        if terminate {
            return match signal(arguments.0.get("signal")) {
                Some(signum) => self.terminate(|request| ids.contains(&request.id.as_str()), signum),
                None => error("ValueError('Unknown signal')"),
            };
        }
        info!(ids = ids.join(","), "tasks flagged as revoked");
        let shown: Vec<_> = ids.iter().map(|id| repr::string(id)).collect();
        ok(match shown.as_slice() {
            [] => "tasks set() flagged as revoked".to_owned(),
            ids => format!("tasks {{{}}} flagged as revoked", ids.join(", ")),
        })
    }

    fn revoke_by_stamps(&self, arguments: &Arguments<'_>) -> Value {
        let stamps = match arguments.0.get("headers") {
            Some(Value::Object(stamps)) => stamps.clone(),
            // The command line sends a list of `name=value`.
            Some(list) => {
                let pairs = as_list(list).iter().filter_map(|pair| pair.as_str()?.split_once('='));
                pairs.map(|(name, value)| (name.to_owned(), value.into())).collect()
            }
            None => Map::new(),
        };
        self.revoked.change(|revocations| revocations.add_stamps(&stamps));
        let shown = repr::dict(&stamps);
        info!(stamps = shown, "stamps flagged as revoked");
        if !arguments.flag("terminate") {
            return ok(format!("headers {shown} flagged as revoked, but not terminated"));
        }
        let is_meant = |request: &Request| {
            stamps
                .iter()
                .any(|(name, values)| as_list(values).iter().any(|value| carries(request, name, value)))
        };
        match signal(arguments.0.get("signal")) {
            Some(signum) => self.terminate(is_meant, signum),
            None => error("ValueError('Unknown signal')"),
        }
    }

    fn terminate(&self, is_meant: impl Fn(&Request) -> bool, signum: i32) -> Value {
        let terminated = self.tracker.terminate(is_meant, signum);
        if terminated.is_empty() {
            return ok("terminate: tasks unknown");
        }
        let ids = terminated.join(", ");
        warn!(ids, signum, "terminating tasks by remote control");
        ok(format!("terminate: {ids}"))
    }

    fn rate_limit(&self, arguments: &Arguments<'_>) -> Value {
        let given = arguments.0.get("rate_limit").unwrap_or(&Value::Null);
        let Ok(rate) = RateLimit::parse(given) else {
            let shown = given.as_str().map_or_else(|| given.to_string(), str::to_owned);
            return error(format!("Invalid rate limit string: {}", repr::string(&shown)));
        };
        let Some(task) = self.known_task(arguments) else { return error("unknown task") };
        info!(task, rate_limit = %given, "rate limit set by remote control");
        self.limits.set_rate(task, rate);
        // By the value, not by what it means: the text "0" is no limit either, but a new one to Celery.
        let is_off =
            matches!(given, Value::Null) || given.as_f64() == Some(0.0) || given.as_str() == Some("");
        ok(if is_off { "rate limit disabled successfully" } else { "new rate limit set successfully" })
    }

    fn time_limit(&self, arguments: &Arguments<'_>) -> Value {
        let Some(task) = self.known_task(arguments) else { return error("unknown task") };
        let limit = |name| {
            let seconds = arguments.0.get(name)?.as_f64().filter(|seconds| *seconds > 0.0)?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        let times = TimeLimits { soft: limit("soft"), hard: limit("hard") };
        info!(task, soft = ?times.soft, hard = ?times.hard, "time limits set by remote control");
        self.limits.set_times(task, times);
        ok("time limits set successfully")
    }

    fn known_task<'a>(&self, arguments: &Arguments<'a>) -> Option<&'a str> {
        arguments.text("task_name").filter(|task| self.registry.get(task).is_some())
    }

    fn add_consumer(&self, arguments: &Arguments<'_>) -> Value {
        let Some(name) = arguments.text("queue").filter(|queue| !queue.is_empty()) else {
            return error("ValueError('no queue named')");
        };
        let exchange = arguments.text("exchange").filter(|exchange| !exchange.is_empty());
        let binding = exchange.map(|exchange| Binding {
            exchange: exchange.to_owned(),
            exchange_type: arguments.text("exchange_type").unwrap_or("direct").to_owned(),
            routing_key: arguments.text("routing_key").unwrap_or(name).to_owned(),
        });
        self.queues.add(Queue { name: name.to_owned(), binding });
        ok(format!("add consumer {name}"))
    }

    fn cancel_consumer(&self, arguments: &Arguments<'_>) -> Value {
        let name = arguments.text("queue").unwrap_or_default();
        self.queues.cancel(name);
        ok(format!("no longer consuming from {name}"))
    }
}

/// Arguments of a command; what is absent, null or of another type counts as not given.
struct Arguments<'a>(&'a Map);

impl<'a> Arguments<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name)?.as_str()
    }

    /// As Python takes a value for true: Flower's buttons send 1.
    fn flag(&self, name: &str) -> bool {
        match self.0.get(name) {
            Some(Value::Bool(flag)) => *flag,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            _ => false,
        }
    }

    /// A list of texts, or a single one.
    fn texts(&self, name: &str) -> Vec<&'a str> {
        self.0.get(name).map(as_list).unwrap_or_default().iter().filter_map(Value::as_str).collect()
    }
}

fn ok(text: impl Into<Value>) -> Value {
    json!({"ok": text.into()})
}

fn error(text: impl Into<Value>) -> Value {
    json!({"error": text.into()})
}

/// A signal by number or by name, with or without `SIG`.
fn signal(given: Option<&Value>) -> Option<i32> {
    let Some(given) = given.filter(|given| !given.is_null()) else { return Some(SIGTERM) };
    if let Some(number) = given.as_i64() {
        return i32::try_from(number).ok();
    }
    let name = given.as_str()?.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "ALRM" => 14,
        "TERM" => SIGTERM,
        other => other.parse().ok()?,
    })
}

#[cfg(test)]
mod tests;
