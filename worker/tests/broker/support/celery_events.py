"""Prints the events of one worker as Celery's own receiver hears them, one JSON object a line."""

import json
import sys

from celery import Celery

broker, node = sys.argv[1:3]
app = Celery("test", broker=broker)


def show(event):
    if event.get("hostname") == node:
        print(json.dumps(event), flush=True)


def watching(*args, **kwargs):
    print(json.dumps({"type": "watching"}), flush=True)


with app.connection_for_read() as connection:
    receiver = app.events.Receiver(connection, handlers={"*": show})
    receiver.on_consume_ready = watching
    receiver.capture(limit=None, timeout=None, wakeup=False)
