"""A Celery app: the tasks that a Python worker runs in tests, and signatures of those that it doesn't."""

import os

from celery import Celery, signature

app = Celery("test", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.update(
    task_default_queue=os.environ["PYTHON_QUEUE"],
    broker_connection_timeout=5,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="py.add")
def add(x, y):
    return x + y


@app.task(name="py.multiply")
def multiply(x, y):
    return x * y


@app.task(name="py.sum")
def xsum(numbers):
    return sum(numbers)


@app.task(name="py.same")
def same(value):
    return value


@app.task(name="py.fail")
def fail(*args):
    raise ValueError("boom")


@app.task(name="py.record")
def record(value, key):
    """Leaves word of each run in Redis."""
    app.backend.client.rpush(key, str(value))
    app.backend.client.expire(key, 600)
    return value


@app.task(name="py.seen", bind=True)
def seen(self, *args):
    """Where its message says that it comes from."""
    return {"root": self.request.root_id, "parent": self.request.parent_id, "value": args}


@app.task(name="py.flaky", bind=True, max_retries=5)
def flaky(self, failures):
    """Asks to be retried until it was so often, and returns what it was sent with."""
    if self.request.retries < failures:
        raise self.retry(countdown=1, exc=ValueError("not yet"))
    return {"retries": self.request.retries, "tenant": self.request.get("tenant"), "id": self.request.id}


@app.task(name="py.replace", bind=True)
def replace(self, replacement):
    return self.replace(signature(replacement, app=app))
