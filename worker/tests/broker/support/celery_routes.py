"""Sends tasks in each of Celery's ways to a queue. Reads {"way": [name, id, options]...} and makes the queues first."""

import json
import sys

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu import Exchange, Queue
from kombu.common import Broadcast

broker, name, node = sys.argv[1:4]
app = Celery("test", broker=broker)
app.conf.task_queues = [
    Queue(name + "-priority", Exchange(name + "-priority"), routing_key=name, queue_arguments={"x-max-priority": 9}),
    Queue(name + "-topic", Exchange(name + "-topic", type="topic"), routing_key="media.#"),
    Broadcast(name + "-everybody"),
]

ids = json.load(sys.stdin)


def send(way, priority=None, **options):
    app.send_task("tasks.add", args=(1, 2), task_id=ids.pop(0), priority=priority, **options)


for priority in (1, 9, 5):
    send("priority", priority, queue=name + "-priority")
send("topic", queue=name + "-topic", routing_key="media.image.small")
send("direct", queue=worker_direct(node))
send("everybody", queue=name + "-everybody")
# Who sends to all declares a queue of its own too.
with app.connection_for_write() as connection:
    app.amqp.queues[name + "-everybody"](connection.default_channel).delete()
json.dump(None, sys.stdout)
