"""Five positions, valued by the workers of positions.rs: BROKER, RESULTS and POSITIONS name the servers."""

import json
import os

import redis
from celery import Celery, chain, chord, group

app = Celery("positions", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.task_default_queue = os.environ.get("QUEUE", "positions")

prices = {"pos_1": 0.99, "pos_2": 0.91, "pos_3": 0.85, "pos_4": 0.96, "pos_5": 0.79}
names, close = list(prices), 0.95
db = redis.Redis.from_url(os.environ["POSITIONS"])
db.delete("pos_late")
for name, price in prices.items():
    db.set(name, json.dumps({"name": name, "size": 100, "price": price}))


def call(task, *args):
    return app.signature("positions." + task, args=args)


def values(result):
    return result.get(timeout=20)


def in_order(last):
    """The results of a chain, from its first task to its last."""
    last.get(timeout=20)
    results = []
    while last is not None:
        results.insert(0, last.result)
        last = last.parent
    return results


at_once = group(call("pnl", name, close).set(immutable=True) for name in names)()
late = call("value_when_there", "pos_late", close).delay()
answers = {
    "initial": values(group(call("initial_value", name) for name in names)()),
    "at close": values(group(call("value_at_close", name, close) for name in names)()),
    "pnl": values(at_once),
    "ready": at_once.ready(),
    "one after the other": in_order(chain(*(call("pnl", name, close).set(immutable=True) for name in names[:3]))()),
    "missing": values(call("value_at_close", "pos_6", close).delay()),
    "bad price": values(call("value_at_close", "pos_1", 0).delay()),
    "no price": values(call("value_at_close", "pos_1", None).delay()),
    "total": values(chord([call("pnl", name, close) for name in names])(call("total"))),
}
first, second, third = answers["one after the other"]
answers["running sums"] = in_order(chain(call("add", 0, first), call("add", second), call("add", third))())
answers["nothing to add"] = values(call("add").delay())

# A position that comes later is waited for, without holding up the worker.
late_state = late.state
db.set("pos_late", json.dumps({"name": "pos_late", "size": 200, "price": 0.5}))
answers["late"] = values(late)
answers["late before"] = late_state

print(json.dumps(answers))
