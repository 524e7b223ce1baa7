//! Kubernetes events on TaskQueues. An event that can't be written is logged, and nothing fails because of it.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

use super::context::Context;
use crate::plan::reason::Reason;

/// Longest note of an event: the API server takes 1 kB.
const NOTE_BYTES: usize = 1000;

/// Something worth telling.
pub(super) struct News<'a> {
    pub(super) warning: bool,
    pub(super) reason: Reason,
    /// What was done, as a word; events that agree in it and the reason are counted as one.
    pub(super) action: String,
    pub(super) note: &'a str,
}

/// Writes an event about a TaskQueue.
pub(super) async fn publish(task_queue: &ObjectReference, context: &Context, news: News<'_>) {
    let mut end = news.note.len().min(NOTE_BYTES);
    while !news.note.is_char_boundary(end) {
        end -= 1;
    }
    let event = Event {
        type_: if news.warning { EventType::Warning } else { EventType::Normal },
        reason: news.reason.as_str().to_owned(),
        note: Some(news.note[..end].to_owned()),
        action: news.action,
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, task_queue).await {
        tracing::warn!(reason = %news.reason, %error, "write event");
    }
}
