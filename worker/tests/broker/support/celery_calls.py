"""Calls tasks as a Celery client: reads its settings and a list of calls as JSON, prints what became of each.

A call may change the headers that Celery is about to send (`headers_set`, `headers_left_out`). One without a task was sent by others.
"""

import datetime
import json
import os
import sys
import time

from celery import Celery
from celery.signals import before_task_publish
from kombu.serialization import register

broker, backend, queue = sys.argv[1:4]
app = Celery("test", broker=broker, backend=backend)
app.conf.task_default_queue = queue
app.conf.broker_connection_timeout = 5
# Formats whose libraries are not installed here: what counts is the content type.
register("yaml", json.dumps, json.loads, "application/x-yaml", "utf-8")
register("msgpack", lambda value: b"\x93\x90\x80\x80", json.loads, "application/x-msgpack", "binary")


# Ways to give an eta that is known in UTC: as a program's datetime, or as a text.
ETA = {
    "utc": lambda moment: moment,
    "naive": lambda moment: moment.replace(tzinfo=None),
    "offset": lambda moment: moment.astimezone(datetime.timezone(datetime.timedelta(hours=2))),
    "text with Z": lambda moment: moment.isoformat().replace("+00:00", "Z"),
    "text with offset": lambda moment: str(ETA["offset"](moment)),
}
due = {}


def look(result, timeout):
    """What a program finds that looks again and again until there is an end."""
    seen = []
    deadline = time.monotonic() + timeout
    while not result.ready() and time.monotonic() < deadline:
        state, info = result.state, result.info
        found = [state, info if isinstance(info, dict) else repr(info)]
        if found not in seen:
            seen.append(found)
        time.sleep(0.02)
    return seen


def outcome(result, timeout, is_watched):
    shown = {"id": result.id, "due": due.get(result.id)}
    if is_watched:
        shown["seen"] = look(result, timeout)
    try:
        shown["value"] = result.get(timeout=timeout)
    except Exception as error:
        kind = type(error)
        shown.update(error=kind.__name__, module=kind.__module__, message=str(error), traceback=result.traceback)
    return {**shown, "state": result.state}


def send(call):
    if "task" not in call:
        return app.AsyncResult(call["id"])

    def change(headers=None, **kwargs):
        for name in call.get("headers_left_out", []):
            del headers[name]
        headers.update(call.get("headers_set", {}))

    options = call.get("options", {})
    now = datetime.datetime.now(datetime.timezone.utc)
    moment = None
    if "eta_in" in options:
        seconds, way = options.pop("eta_in")
        moment = now + datetime.timedelta(seconds=seconds)
        options["eta"] = ETA[way](moment)
    elif "countdown" in options:
        moment = now + datetime.timedelta(seconds=options["countdown"])
    before_task_publish.connect(change)
    try:
        result = app.send_task(call["task"], call.get("args"), call.get("kwargs"), **options)
    finally:
        before_task_publish.disconnect(change)
    due[result.id] = moment and moment.isoformat()
    return result


settings, calls = json.load(sys.stdin)
app.conf.update(settings)
results = [send(call) for call in calls]
json.dump(
    [
        outcome(result, 15, call.get("watch", False)) if call.get("wait", True) else result.id
        for call, result in zip(calls, results)
    ],
    sys.stdout,
)
sys.stdout.flush()
# The results that were not waited for would look for modules that are gone by then, and print so.
os._exit(0)
