"""Calls tasks as a Celery client: reads a list of calls as JSON, prints what became of each."""

import json
import sys

from celery import Celery

broker, backend, queue = sys.argv[1:4]
app = Celery("test", broker=broker, backend=backend)
app.conf.task_default_queue = queue
app.conf.broker_connection_timeout = 5


def outcome(result, timeout):
    try:
        value = result.get(timeout=timeout)
    except Exception as error:
        kind = type(error)
        return {"id": result.id, "error": kind.__name__, "module": kind.__module__, "message": str(error),
                "traceback": result.traceback, "state": result.state}
    return {"id": result.id, "value": value, "state": result.state}


calls = json.load(sys.stdin)
results = [
    app.send_task(call["task"], call.get("args"), call.get("kwargs"), **call.get("options", {})) for call in calls
]
json.dump([outcome(result, 15) for result, call in zip(results, calls)], sys.stdout)
