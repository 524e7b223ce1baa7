"""The stock worker multiplies: by name, in chains, in groups of chains. BROKER and RESULTS name the servers."""

import json
import os

from celery import Celery, chain, group

app = Celery("multiply", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.task_default_queue = os.environ.get("QUEUE", "celery")


@app.task(name="tasks.multiply")
def multiply(a, b):
    """Here for its name and its shortcuts only: the worker has its own."""
    raise NotImplementedError


def value(result):
    return result.get(timeout=20)


duplicate = multiply.s(2)
print(json.dumps({
    "by name": value(app.send_task("tasks.multiply", args=[2, 2])),
    "delay": value(multiply.delay(4, 5)),
    "partial": value(duplicate.delay(5)),
    "chain": value(chain(multiply.s(4, 5), multiply.s(2)).delay()),
    "pipe": value((multiply.s(4, 5) | multiply.s(2)).delay()),
    "group of chains": value(group(
        multiply.s(4, 5) | multiply.s(2),
        multiply.s(9, 2) | multiply.s(4),
        multiply.s(9, 7) | duplicate,
    ).delay()),
    "starmap": value(app.signature(multiply.starmap([(2, 2), (4, 4)])).delay()),
}))
