"""Calls `tasks.add` on a queue, over and over, until its input ends; then reads every result: `calls.py QUEUE TYPE`.

It prints a line after the first call, and at the end JSON: how many were called, and of how many the result is right.
"""

import json
import os
import sys
import threading

from celery import Celery

QUEUE, TYPE = sys.argv[1:]
EVERY = 0.01
# Some are put off: they wait in the broker, outside of the queue.
PUT_OFF = 50

app = Celery("shop", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app.conf.task_create_missing_queue_type = TYPE
app.conf.broker_transport_options = {"confirm_publish": True}


def call(n):
    """One call; every so many wait a second first."""
    countdown = 1 if n % PUT_OFF == 0 else None
    return app.send_task("tasks.add", args=[n, 1], queue=QUEUE, countdown=countdown)


def right(n, result):
    """Whether the task was run, and gave what it should."""
    try:
        return result.get(timeout=30) == n + 1
    except Exception as error:
        print(f"{result.id}: {error!r}", file=sys.stderr)
        return False


def main():
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    results = [call(0)]
    print("calling", flush=True)
    while not stop.wait(EVERY):
        results.append(call(len(results)))
    print(json.dumps({"called": len(results), "right": sum(right(n, result) for n, result in enumerate(results))}))


if __name__ == "__main__":
    main()
