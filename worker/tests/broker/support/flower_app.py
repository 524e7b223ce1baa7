"""A Celery app that knows a task of the Rust worker: Flower changes the limits of no others than its app has."""

from celery import Celery

app = Celery("flower")


@app.task(name="tasks.add")
def add(x, y):
    raise NotImplementedError("the Rust worker does that")
