//! What the worker tells about itself, in the shapes that Celery's tools index.

use std::time::Duration;

use celery_protocol::Request;
use jiff::Timestamp;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
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

/// What the process has used of the machine so far, by Celery's names: times in seconds, memory in kilobytes.
pub(super) fn resource_usage() -> Value {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return "N/A".into() };
    let seconds = |time: TimeVal| {
        let microseconds = time.num_microseconds().try_into().unwrap_or_default();
        Duration::from_micros(microseconds).as_secs_f64()
    };
    json!({
        "utime": seconds(usage.user_time()),
        "stime": seconds(usage.system_time()),
        "maxrss": usage.max_rss(),
        "ixrss": usage.shared_integral(),
        "idrss": usage.unshared_data_integral(),
        "isrss": usage.unshared_stack_integral(),
        "minflt": usage.minor_page_faults(),
        "majflt": usage.major_page_faults(),
        "nswap": usage.full_swaps(),
        "inblock": usage.block_reads(),
        "oublock": usage.block_writes(),
        "msgsnd": usage.ipc_sends(),
        "msgrcv": usage.ipc_receives(),
        "nsignals": usage.signals(),
        "nvcsw": usage.voluntary_context_switches(),
        "nivcsw": usage.involuntary_context_switches(),
    })
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
        assert_eq!(usage.as_object().unwrap().len(), 16);
        assert!(usage["utime"].is_f64() && usage["maxrss"].as_u64().unwrap() > 1000, "{usage}");
        assert!(usage["minflt"].as_u64().unwrap() > 100, "{usage}");
    }
}
