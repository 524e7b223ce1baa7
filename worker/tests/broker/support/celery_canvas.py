"""Sends a canvas, given as a Python expression, as a Celery client, and prints what became of it."""

import faulthandler
import gc
import json
import os
import sys
import time

from celery import chain, chord, chunks, group, signature  # noqa: F401: for the expression
from celery.canvas import xmap, xstarmap  # noqa: F401: likewise
from celery.exceptions import TimeoutError
from celery.result import GroupResult
from celery_app import add, app, fail, flaky, multiply, record, replace, same, seen, xsum  # noqa: F401: likewise

# A result that Celery's client collects takes the subscription of another one with the same id along, of which a canvas makes some: who
# waits for that one then waits in vain. If it is collected while it subscribes, it waits for its own lock.
gc.disable()
# Each wait below has its timeout, but Celery's client can hang in a lock of its own: then say where, and end.
faulthandler.dump_traceback_later(240, exit=True)

queue, key = sys.argv[1:3]


def rust(name, *args, **options):
    return signature("tasks." + name, args=args, app=app, options={"queue": queue, **options})


def state(result):
    if isinstance(result, GroupResult):
        return [state(member) for member in result.results]
    return result.state


def settle(result):
    """A worker stores its result after it has sent the next step: that may be faster, or may have failed already."""
    deadline = time.monotonic() + 3
    while not result.ready() and time.monotonic() < deadline:
        time.sleep(0.02)


def value(result):
    """Celery's client doesn't wait until it is subscribed before it looks for a result. On a busy machine one that is stored meanwhile may
    be missed by both: the second wait begins with another look."""
    try:
        return result.get(timeout=12)
    except TimeoutError:
        return result.get(timeout=13)


def outcome(result):
    shown = {"id": result.id}
    try:
        shown["value"] = value(result)
    except Exception as error:
        shown.update(error=type(error).__name__, message=str(error))
    parent = result.parent
    try:  # what the result itself says, apart from its parents
        result.parent = None
        settle(result)
        shown["own"] = repr(result.get(timeout=25, disable_sync_subtasks=False))
    except Exception as error:
        shown["own"] = f"{type(error).__name__}: {error}"
    shown["state"] = state(result)
    shown["parents"], shown["parent_ids"] = [], []
    while parent is not None:
        settle(parent)
        shown["parents"].append(state(parent))
        shown["parent_ids"].append(parent.id)
        parent = parent.parent
    if isinstance(result, GroupResult):
        shown["members"] = [member.id for member in result.results]
    else:
        shown["children"] = [child.id for child in result.children or []]
    return shown


expressions = json.load(sys.stdin)
outcomes = []
for expression in expressions:
    outcomes.append(outcome(eval(expression).apply_async()))
json.dump(outcomes, sys.stdout)
sys.stdout.flush()
# The results that were not collected would look for modules that are gone by then, and print so.
os._exit(0)
