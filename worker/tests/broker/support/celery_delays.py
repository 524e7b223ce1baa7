"""Declares Celery's delay queues as its workers do, or sends a task through them as its clients do, and prints the result."""

import json
import sys

from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport.native_delayed_delivery import declare_native_delayed_delivery_exchanges_and_queues

broker, backend, queue = sys.argv[1:4]
if json.load(sys.stdin) == "declare":
    with Connection(broker) as connection:
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
    json.dump("declared", sys.stdout)
else:
    app = Celery("test", broker=broker, backend=backend)
    # Celery delays in the broker what goes to a quorum queue over an exchange that isn't direct.
    exchange = Exchange(queue + ".topic", type="topic")
    arguments = {"x-queue-type": "quorum"}
    app.conf.task_queues = [Queue(queue, exchange, routing_key=queue, queue_arguments=arguments)]
    result = app.send_task("tasks.flaky", [1, 1], queue=queue, countdown=2, headers={"tenant": "a"})
    json.dump(result.get(timeout=15), sys.stdout)
