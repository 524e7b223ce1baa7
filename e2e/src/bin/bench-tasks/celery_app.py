"""The tasks of the benchmarks, for Celery; and what its client does in them.

BROKER and BACKEND say where; as a program: celery_app.py enqueue|fetch.
"""

import os
import sys
import threading
import time

from celery import Celery
from kombu import Queue
from kombu.asynchronous import Hub

BROKER, BACKEND = os.environ["BROKER"], os.environ.get("BACKEND")
QUEUE_ARGUMENTS = {"x-queue-type": "quorum"} if os.environ.get("QUORUM") else {}

fire_timers = Hub.fire_timers


def without_stall(hub, **options):
    """How long the event loop may wait for the broker: not at all while callbacks are due.

    Celery leaves acknowledgements to its event loop as callbacks. When the next message has come before the loop looks at the
    socket, it runs that task first and then waits for its next timer with the acknowledgement unsent, for up to two seconds: with one
    message in hand, on a broker as near as this one, after most tasks. What Celery does when that doesn't strike is what is measured.
    """
    wait = fire_timers(hub, **options)
    return 0 if hub._ready else wait


Hub.fire_timers = without_stall

app = Celery("bench", broker=BROKER, backend=BACKEND)
app.conf.update(
    task_ignore_result=BACKEND is None,
    task_acks_late=bool(os.environ.get("ACKS_LATE")),
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "4")),
    task_queues=[Queue(name, routing_key=name, queue_arguments=QUEUE_ARGUMENTS) for name in os.environ["QUEUES"].split(",")],
    broker_transport_options={"confirm_publish": True} if os.environ.get("CONFIRMS") else {},
    broker_connection_retry_on_startup=True,
)


@app.task(name="tasks.add")
def add(x, y):
    return x + y


@app.task(name="tasks.fib")
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def enqueue(tasks, threads):
    """Sends tasks.add(1, 2), and prints how many a second."""
    queue = os.environ["QUEUES"]
    send = lambda count: [add.apply_async((1, 2), queue=queue) for _ in range(count)]
    send(1)
    running = [threading.Thread(target=send, args=(tasks // threads,)) for _ in range(threads)]
    begun = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    print(tasks // threads * threads / (time.perf_counter() - begun))


def fetch(ids):
    """Reads results by their ids, and prints how many a second."""
    with open(ids) as lines:
        ids = lines.read().split("\n")
    app.AsyncResult(ids[0]).result
    begun = time.perf_counter()
    for id in ids:
        assert app.AsyncResult(id).result == 3
    print(len(ids) / (time.perf_counter() - begun))


if __name__ == "__main__":
    if sys.argv[1] == "enqueue":
        enqueue(int(sys.argv[2]), int(sys.argv[3]))
    else:
        fetch(sys.argv[2])
