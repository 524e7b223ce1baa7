"""The Celery app that the client's tests run a real Python worker of."""

import os
import time

from celery import Celery
from kombu import Queue

app = Celery("client-tests", broker=os.environ["AMQP_URL"], backend=os.environ["RESULTS"])
app.conf.update(
    task_default_queue=os.environ["QUEUE"],
    task_track_started=True,
    broker_connection_retry_on_startup=True,
)


@app.task(name="tk.add")
def add(x, y):
    return x + y


if os.environ.get("QUORUM"):
    queue = os.environ["QUEUE"]
    app.conf.task_queues = [Queue(queue, routing_key=queue, queue_arguments={"x-queue-type": "quorum"})]


@app.task(name="tk.sum")
def total(numbers):
    return sum(numbers)


@app.task(name="tk.sleep")
def sleep(seconds):
    time.sleep(seconds)
    return seconds


@app.task(name="tk.errback")
def errback(failed_id):
    """One required argument: called with the id of what failed."""
    return f"saw {failed_id}"


@app.task(name="tk.fail")
def fail():
    raise ValueError("boom", 3)


@app.task(name="tk.seen", bind=True)
def seen(self):
    """What the worker made of the message."""
    request = self.request
    names = ["id", "root_id", "parent_id", "retries", "expires", "timelimit", "origin", "shadow", "priority"]
    seen = {name: getattr(request, name, None) for name in names if name != "priority"}
    seen["priority"] = request.delivery_info.get("priority")
    seen["tenant"] = request.headers.get("tenant") if request.headers else getattr(request, "tenant", None)
    seen["stamps"] = getattr(request, "stamps", None)
    return seen
