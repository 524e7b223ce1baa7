//! `call`, `group`, `chain`, `chord`.

use crate::args::{Common, seconds};
use crate::expression;
use crate::failure::Failure;
use crate::output;
use crate::wait::wait;
use celery_client::{CanvasResult, Route, Signature, chain, chord, group};
use celery_protocol::json::{self, JsonError};
use celery_protocol::{Map, date};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is sent when more than one call is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Group,
    Chain,
}

/// Where tasks go, and what is done about their results.
#[derive(Debug, Args)]
struct Sending {
    #[command(flatten)]
    common: Common,

    /// Queue for tasks that name none.
    #[arg(short = 'Q', long, env = "SOLOIST_DEFAULT_QUEUE", value_name = "NAME", default_value = "celery")]
    queue: String,

    /// Whether a queue that does not exist is made as Celery would make it, or is an error.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true)]
    #[arg(env = "SOLOIST_CREATE_MISSING_QUEUES")]
    create_missing_queues: bool,

    /// Let tasks with a countdown or an ETA wait in RabbitMQ's delay queues: for Python workers of quorum queues.
    #[arg(long)]
    delay_in_broker: bool,

    /// Wait for the result and print it.
    #[arg(short, long)]
    wait: bool,

    /// Seconds to wait at most.
    #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds, requires = "wait")]
    timeout: Duration,
}

impl Sending {
    async fn send(&self, signature: &Signature) -> Result<(), Failure> {
        let builder = self.common.builder()?;
        if self.wait && self.common.addresses.results()?.is_none() {
            return Err(celery_client::ResultError::NoResultStore.into());
        }
        let builder = builder
            .default_queue(&self.queue)
            // Steps take it along: workers don't know what is the default here.
            .route("*", Route::to_queue(&self.queue))
            .create_missing_queues(self.create_missing_queues)
            .delay_in_broker(self.delay_in_broker);
        let celery = self.common.connect(builder).await?;
        let result = celery.send_canvas(signature).await?;
        if let CanvasResult::Group(group) = &result
            && self.common.addresses.results()?.is_some_and(|results| results.to_string() != "rpc://")
        {
            // So that `soloist result` finds it.
            group.save().await?;
        }
        if self.wait {
            let shown = show_result(&result, self.timeout, self.common.is_json()).await;
            celery.close().await;
            return shown;
        }
        celery.close().await;
        if self.common.is_json() { output::json(&handle(&result)) } else { output::line(result.id()) }
    }
}

/// Waits for a canvas's result with a progress bar, and prints its value.
async fn show_result(result: &CanvasResult, timeout: Duration, is_json: bool) -> Result<(), Failure> {
    let value = wait(result, timeout).await;
    if !is_json {
        return output::line(&output::cell(&value?));
    }
    let mut shown = handle(result);
    match value {
        Ok(value) => shown["result"] = value,
        Err(error) => {
            output::json(&shown)?;
            return Err(error.into());
        }
    }
    output::json(&shown)
}

/// The ids of a canvas, for programs.
fn handle(result: &CanvasResult) -> Value {
    match result {
        CanvasResult::Task(task) => json!({"task_id": task.id()}),
        CanvasResult::Group(group) => {
            json!({"group_id": group.id(), "members": group.members().iter().map(handle).collect::<Vec<_>>()})
        }
    }
}

/// Call a task.
#[derive(Debug, Args)]
#[command(after_help = "Example: soloist call -Q red tasks.add 1 2 --countdown 10 --wait")]
pub(crate) struct Call {
    /// Name of the task.
    task: String,

    /// Positional arguments, each JSON or else a text.
    arguments: Vec<String>,

    /// Positional arguments as a JSON list, in place of the others.
    #[arg(short, long, value_name = "JSON", conflicts_with = "arguments")]
    args: Option<String>,

    /// Keyword arguments as a JSON object.
    #[arg(short, long, value_name = "JSON")]
    kwargs: Option<String>,

    /// Seconds before which it is not run.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    countdown: Option<Duration>,

    /// Moment before which it is not run: 2026-11-21T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "countdown")]
    eta: Option<Timestamp>,

    /// Seconds, or the moment, after which it is not started any more.
    #[arg(long, value_name = "SECONDS|TIME", value_parser = expiry)]
    expires: Option<Value>,

    /// Priority in its queue, higher first.
    #[arg(long, value_name = "0..255")]
    priority: Option<u8>,

    /// Id, in place of a random one.
    #[arg(long, value_name = "ID")]
    task_id: Option<String>,

    /// Exchange to publish to, together with --routing-key, in place of the queue.
    #[arg(long, value_name = "NAME", requires = "routing_key")]
    exchange: Option<String>,

    /// Routing key to publish with.
    #[arg(long, value_name = "KEY", requires = "exchange")]
    routing_key: Option<String>,

    /// Seconds after which it is ended.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    time_limit: Option<Duration>,

    /// Seconds after which it is asked to stop.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    soft_time_limit: Option<Duration>,

    /// Store no result.
    #[arg(long, conflicts_with = "wait")]
    ignore_result: bool,

    /// A header for the task to read: NAME=VALUE. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, Value)>,

    /// A label to revoke it by: NAME=VALUE. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    stamp: Vec<(String, Value)>,

    /// Call that is made with the result: `tasks.report("red")`. May be repeated.
    #[arg(long, value_name = "CALL", value_parser = expression::parse)]
    link: Vec<Signature>,

    /// Call that is made if it fails. May be repeated.
    #[arg(long, value_name = "CALL", value_parser = expression::parse)]
    link_error: Vec<Signature>,

    #[command(flatten)]
    sending: Sending,
}

impl Call {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let json = |flag: &str, text: &str| {
            json::parse::<Value>(text.as_bytes())
                .map_err(|error| Failure::usage(format!("{flag} is not JSON: {error}")))
        };
        let mut call = Signature::new(self.task);
        call.args = match self.args {
            None => {
                let values = self.arguments.iter().map(|text| json_or_text(text));
                values.collect::<Result<_, _>>().map_err(Failure::usage)?
            }
            Some(text) => match json("--args", &text)? {
                Value::Array(args) => args,
                _ => return Err(Failure::usage("--args is not a JSON list")),
            },
        };
        if let Some(text) = self.kwargs {
            let Value::Object(kwargs) = json("--kwargs", &text)? else {
                return Err(Failure::usage("--kwargs is not a JSON object"));
            };
            call.kwargs = kwargs;
        }
        let options = [
            ("countdown", self.countdown.map(|delay| delay.as_secs_f64().into())),
            ("eta", self.eta.map(|eta| date::format(eta).into())),
            ("expires", self.expires),
            ("priority", self.priority.map(Value::from)),
            ("task_id", self.task_id.map(Value::from)),
            ("exchange", self.exchange.map(Value::from)),
            ("routing_key", self.routing_key.map(Value::from)),
            ("time_limit", self.time_limit.map(|limit| limit.as_secs_f64().into())),
            ("soft_time_limit", self.soft_time_limit.map(|limit| limit.as_secs_f64().into())),
            ("ignore_result", self.ignore_result.then_some(Value::Bool(true))),
        ];
        let given = options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        call = call.with_options(Map::from_iter(given));
        call = self.header.into_iter().fold(call, |call, (name, value)| call.header(name, value));
        call = self.stamp.into_iter().fold(call, |call, (name, value)| call.stamp(name, value));
        call = self.link.into_iter().fold(call, Signature::link);
        call = self.link_error.into_iter().fold(call, Signature::link_error);
        self.sending.send(&call).await
    }
}

/// Call several tasks.
#[derive(Debug, Args)]
#[command(after_help = "\
A CALL is written as `tasks.add(1, 2, key=\"text\")`, with JSON values; as a chain, `tasks.add(1, 2) | tasks.add(3)`; or as \
a signature in JSON, of any kind, with any option.

Example: soloist chain -Q red 'tasks.add(1, 2)' 'tasks.multiply(10)' --wait")]
pub(crate) struct Canvas {
    /// The calls.
    #[arg(value_name = "CALL", value_parser = expression::parse, required_unless_present = "file")]
    calls: Vec<Signature>,

    /// File with a JSON list of calls, or with a signature of any kind; - for standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with = "calls")]
    file: Option<PathBuf>,

    #[command(flatten)]
    sending: Sending,
}

impl Canvas {
    pub(crate) async fn run(self, kind: Kind) -> Result<(), Failure> {
        let of = |calls: Vec<Signature>| match kind {
            Kind::Group => group(calls),
            Kind::Chain => chain(calls),
        };
        let canvas = match &self.file {
            None => of(self.calls),
            Some(path) => match read(path)? {
                Value::Array(list) => of(calls(list)?),
                other => expression::from_json(other).map_err(Failure::usage)?,
            },
        };
        self.sending.send(&canvas).await
    }
}

/// Call tasks at the same time, and then one more with the list of their results.
#[derive(Debug, Args)]
#[command(after_help = "\
A CALL is written as `tasks.add(1, 2, key=\"text\")`, with JSON values; as a chain, `tasks.add(1, 2) | tasks.add(3)`; or as \
a signature in JSON, of any kind, with any option.

Example: soloist chord -Q red 'tasks.add(1, 2)' 'tasks.add(3, 4)' --body 'tasks.sum()' --wait")]
pub(crate) struct Chord {
    /// The calls at the same time.
    #[arg(value_name = "CALL", value_parser = expression::parse, required_unless_present = "file", requires = "body")]
    calls: Vec<Signature>,

    /// The call with their results.
    #[arg(long, value_name = "CALL", value_parser = expression::parse)]
    body: Option<Signature>,

    /// File with a JSON object `{"header": [CALL...], "body": CALL}`; - for standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["calls", "body"])]
    file: Option<PathBuf>,

    #[command(flatten)]
    sending: Sending,
}

impl Chord {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let canvas = match (&self.file, self.body) {
            (Some(path), _) => {
                let mut object = read(path)?;
                let (Value::Array(header), body) = (object["header"].take(), object["body"].take()) else {
                    return Err(Failure::usage(format!("`header` in {} is not a list", path.display())));
                };
                chord(calls(header)?, expression::from_json(body).map_err(Failure::usage)?)
            }
            (None, Some(body)) => chord(self.calls, body),
            (None, None) => return Err(Failure::usage("--body is missing")),
        };
        self.sending.send(&canvas).await
    }
}

fn calls(list: Vec<Value>) -> Result<Vec<Signature>, Failure> {
    list.into_iter().map(|call| expression::from_json(call).map_err(Failure::usage)).collect()
}

fn read(path: &Path) -> Result<Value, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    let shown = path.display();
    read.map_err(|error| Failure::usage(format!("can't read {shown}: {error}")))?;
    json::parse(text.as_bytes()).map_err(|error| Failure::usage(format!("{shown} is not JSON: {error}")))
}

fn json_or_text(text: &str) -> Result<Value, String> {
    match json::parse(text.as_bytes()) {
        Err(JsonError::IntegerTooLarge) => Err(format!("{text}: {}", JsonError::IntegerTooLarge)),
        parsed => Ok(parsed.unwrap_or_else(|_| text.into())),
    }
}

fn pair(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is needed")?;
    Ok((name.to_owned(), json_or_text(value)?))
}

fn moment(text: &str) -> Result<Timestamp, String> {
    date::parse(text).map_err(|error| error.to_string())
}

fn expiry(text: &str) -> Result<Value, String> {
    match seconds(text) {
        Ok(lifetime) => Ok(lifetime.as_secs_f64().into()),
        Err(_) => Ok(date::format(moment(text)?).into()),
    }
}
