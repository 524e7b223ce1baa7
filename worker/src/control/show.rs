//! What the worker tells about itself, in the shapes that Celery's tools index.

use celery_protocol::Request;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    queues::Queue,
    tracker::{Stage, Tracked},
};

/// A call as `inspect active` and its like show it. With `as_text`, arguments are text for people.
pub(super) fn call(tracked: &Tracked, node: &str, as_text: bool) -> Value {
    let request = &tracked.request;
    let since = match tracked.stage {
        Stage::Active { since } => Some(seconds(since)),
        Stage::Reserved | Stage::Scheduled => None,
    };
    let info = &tracked.delivery_info;
    let (args, kwargs) = arguments(request, as_text);
    json!({
        "id": request.id,
        "name": request.display_name(),
        "args": args,
        "kwargs": kwargs,
        "type": request.task,
        "hostname": node,
        "time_start": since,
        "acknowledged": false,
        "delivery_info": {
            "exchange": info.exchange,
            "routing_key": info.routing_key,
            "priority": info.priority,
            "redelivered": info.redelivered,
        },
        "worker_pid": since.map(|_| std::process::id()),
    })
}

/// A call as `inspect scheduled` shows it.
pub(super) fn scheduled(tracked: &Tracked, node: &str, as_text: bool) -> Value {
    json!({
        "eta": tracked.request.eta.map(celery_protocol::date::format),
        "priority": 6,
        "request": call(tracked, node, as_text),
    })
}

fn arguments(request: &Request, as_text: bool) -> (Value, Value) {
    let values = if as_text { None } else { request.arguments.to_values().ok() };
    match values {
        Some((args, kwargs)) => (args.into(), kwargs.into()),
        None => (request.args_repr().into(), request.kwargs_repr().into()),
    }
}

/// A queue as `inspect active_queues` shows it.
pub(super) fn queue(queue: &Queue) -> Value {
    let (exchange, exchange_type, routing_key) = match &queue.binding {
        Some(binding) => (&binding.exchange, binding.exchange_type.as_str(), &binding.routing_key),
        None => (&queue.name, "direct", &queue.name),
    };
    json!({
        "name": queue.name,
        "exchange": {
            "name": exchange, "type": exchange_type, "arguments": null, "durable": true, "passive": false,
            "auto_delete": false, "delivery_mode": null, "no_declare": false,
        },
        "routing_key": routing_key,
        "queue_arguments": null,
        "binding_arguments": null,
        "consumer_arguments": null,
        "durable": true,
        "exclusive": false,
        "auto_delete": false,
        "no_ack": false,
        "alias": null,
        "bindings": [],
        "no_declare": null,
        "expires": null,
        "message_ttl": null,
        "max_length": null,
        "max_length_bytes": null,
        "max_priority": null,
    })
}

/// What the process has used of the machine so far.
pub(super) fn resource_usage() -> Value {
    // Linux counts these in hundredths of a second, on every architecture.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before the last bracket may itself have spaces in it. Times are fields 14 and 15 of all, 12 and 13 after it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let time = |index: usize| {
        fields.get(index).and_then(|ticks| ticks.parse::<f64>().ok()).map(|ticks| ticks / TICKS)
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    match (time(11), time(12), peak) {
        (Some(user), Some(system), Some(peak)) => json!({"utime": user, "stime": system, "maxrss": peak}),
        _ => "N/A".into(),
    }
}

fn seconds(moment: Timestamp) -> f64 {
    moment.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_has_every_key_that_flower_indexes() {
        let shown = queue(&Queue::named("red"));
        assert_eq!((&shown["name"], &shown["routing_key"]), (&json!("red"), &json!("red")));
        assert_eq!(shown["exchange"]["type"], "direct");
        assert_eq!(shown.as_object().unwrap().len(), 18);
    }

    #[test]
    fn resource_usage_is_read_from_the_system() {
        let usage = resource_usage();
        assert!(usage["utime"].is_f64() && usage["maxrss"].as_u64().unwrap() > 1000, "{usage}");
    }
}
