//! The tasks that every Celery worker has: calling another for each of many items, and the small change.

use std::{borrow::Cow, sync::Arc};

use celery_protocol::{Arguments, Exception, Map, Request, Signature, json::JsonError};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{AsyncFunction, BlockingFunction, Context, Registry, Task, TaskError, TaskFunction, TaskResult};

/// Their names.
pub(super) const NAMES: [&str; 6] = [
    "celery.accumulate",
    "celery.backend_cleanup",
    "celery.chord_unlock",
    "celery.chunks",
    "celery.map",
    "celery.starmap",
];

/// The built-in task that serves a call, if there is one of its name.
pub(super) fn task(request: &Request, registry: &Registry) -> Option<Task> {
    let name = *NAMES.iter().find(|name| **name == request.task)?;
    let function = match name {
        "celery.accumulate" => blocking(|context| accumulate(&context.request().arguments)),
        // Results expire by themselves where we store them.
        "celery.backend_cleanup" => blocking(|_| raw("null".to_owned())),
        "celery.chord_unlock" => failing(TaskError::new(
            "NotImplementedError",
            "this chord counts on a result store other than Redis, which its members here don't have: its body will not \
             be called",
        )),
        "celery.chunks" => failing(chunks(&request.arguments)),
        "celery.map" => map(&request.arguments, registry, one_argument),
        _ => map(&request.arguments, registry, listed_arguments),
    };
    Some(Task::of(Cow::Borrowed(name), function))
}

fn blocking(function: impl Fn(&Context) -> TaskResult + Send + Sync + 'static) -> TaskFunction {
    let function: Arc<BlockingFunction> = Arc::new(move |context: &Context, _: &Task| function(context));
    TaskFunction::Blocking(function)
}

fn raw(text: String) -> TaskResult {
    Ok(RawValue::from_string(text)?)
}

/// All positional arguments as a list, or the one at `index`.
fn accumulate(arguments: &Arguments) -> TaskResult {
    #[derive(Deserialize)]
    struct Options {
        #[serde(default)]
        index: Option<usize>,
    }
    let Some(index) = arguments.keyword_as::<Options>()?.index else {
        return Ok(arguments.positional().to_owned());
    };
    let items = arguments.positional_items();
    let item = items.get(index).ok_or_else(|| TaskError::new("IndexError", "tuple index out of range"))?;
    Ok((*item).to_owned())
}

/// Has a group of runs sent, each with a part of the items.
fn chunks(arguments: &Arguments) -> TaskError {
    let kwargs = match arguments.keyword_as::<Map>() {
        Ok(kwargs) => kwargs,
        Err(error) => return TaskError::new("TypeError", error.to_string()),
    };
    match (Signature { kwargs, ..Signature::new("celery.chunks") }).chunks_as_group() {
        Some(group) => TaskError::send(group),
        None => TaskError::new("TypeError", "`task`, `it` and `n` are not a task, a list and a number"),
    }
}

/// What to call, and with what.
#[derive(Deserialize)]
struct Mapped {
    task: Signature,
    it: Vec<Box<RawValue>>,
}

type IntoArguments = fn(&RawValue) -> Result<Arguments, JsonError>;

fn one_argument(item: &RawValue) -> Result<Arguments, JsonError> {
    Arguments::new(&(item,), &())
}

fn listed_arguments(item: &RawValue) -> Result<Arguments, JsonError> {
    Arguments::new(&item, &())
}

/// Calls a registered task for each item, in order, on the kind of thread that it needs.
fn map(arguments: &Arguments, registry: &Registry, into_arguments: IntoArguments) -> TaskFunction {
    let Mapped { task, it } = match arguments.keyword_as() {
        Ok(mapped) => mapped,
        Err(error) => return failing(TaskError::new("TypeError", format!("`task` and `it`: {error}"))),
    };
    let Some(task) = registry.get(&task.task).cloned() else {
        return failing(TaskError::from_exception(Exception::not_registered(&task.task)));
    };
    let it = Arc::new(it);
    match &task.function {
        TaskFunction::Blocking(function) => {
            let function = Arc::clone(function);
            blocking(move |context| {
                let mut results = Vec::with_capacity(it.len());
                for item in it.iter() {
                    context.check()?;
                    let context = context.with_arguments(into_arguments(item)?);
                    results.push(function(&context, &task)?);
                }
                list(&results)
            })
        }
        TaskFunction::Async(function) => {
            let function = Arc::clone(function);
            let function: Arc<AsyncFunction> = Arc::new(move |context: &Context, _: &Task| {
                let (function, task) = (Arc::clone(&function), Arc::clone(&task));
                let (it, context) = (Arc::clone(&it), context.clone());
                Box::pin(async move {
                    let mut results = Vec::with_capacity(it.len());
                    for item in it.iter() {
                        context.check()?;
                        let context = context.with_arguments(into_arguments(item)?);
                        results.push(function(&context, &task).await?);
                    }
                    list(&results)
                })
            });
            TaskFunction::Async(function)
        }
    }
}

fn failing(error: TaskError) -> TaskFunction {
    blocking(move |_| Err(error.clone()))
}

fn list(results: &[Box<RawValue>]) -> TaskResult {
    Ok(serde_json::value::to_raw_value(results)?)
}
