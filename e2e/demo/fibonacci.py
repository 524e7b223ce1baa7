"""The Celery app of the demo: plain Celery, nothing of Soloist is imported here.

It holds no task code, only their names: the workers are Rust programs. One task, `tasks.fib`, is routed by
configuration over three queues by how much work it is.
"""

import os

from celery import Celery
from kombu import Queue

app = Celery("fibonacci", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])

# Plain recursion takes about 1.6 times longer for each step of n.
GREEN_UP_TO = 27  # a millisecond at most
BLUE_UP_TO = 34  # milliseconds; all above is red: tens of milliseconds


def route_by_size(name, args, kwargs, options, task=None, **_):
    """A Celery router: small numbers to green, middling ones to blue, large ones to red."""
    if name != "tasks.fib":
        return None
    n = args[0]
    return {"queue": "green" if n <= GREEN_UP_TO else "blue" if n <= BLUE_UP_TO else "red"}


app.conf.update(
    task_routes=(route_by_size,),
    # As the TaskQueues declare them: red is a quorum queue, the others are classic.
    task_queues=(
        Queue("red", routing_key="red", queue_arguments={"x-queue-type": "quorum"}),
        Queue("green", routing_key="green"),
        Queue("blue", routing_key="blue"),
    ),
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)


def fibonacci(n):
    """The value to check against, computed without recursion."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
