"""Sends chains, groups and chords until it is told to stop, while servers and workers are killed; then waits for all of
them, and prints what became of each, as JSON.

    python load.py BROKER RESULTS QUEUE QUEUE_TYPE SECONDS_TO_WAIT < pipe

The end of standard input means: stop sending. A workflow that could not be sent without an error is not counted on: it may
have been sent in part. Everything else must come to the right end, with the result of each of its tasks stored.
"""

import json
import sys
import threading
import time

import redis
from celery import Celery, chain, chord, group, signature
from celery.result import GroupResult

broker, results, queue, queue_type, patience = *sys.argv[1:5], float(sys.argv[5])
IN_FLIGHT = 40

store = redis.Redis.from_url(results, socket_timeout=5, socket_connect_timeout=1)
stop = threading.Event()


def wait_for_the_end():
    sys.stdin.read()
    stop.set()


def connect():
    app = Celery("load", broker=broker, backend=results)
    app.conf.update(
        task_default_queue=queue,
        task_default_queue_type=queue_type,
        # Else a message that the broker has lost is taken for sent.
        broker_transport_options={"confirm_publish": True},
        broker_connection_timeout=2,
        # Each message once, or an error: a second one from here must not be taken for a fault of the workers.
        task_publish_retry=False,
        redis_socket_connect_timeout=1,
        redis_socket_timeout=5,
    )
    # Results are read at the end.
    app.backend.result_consumer.consume_from = lambda task_id: None
    return app


def workflow(app, number):
    """A canvas, and the result that it is to have."""

    def task(name, *args, **kwargs):
        return signature(name, args=args, kwargs=kwargs, app=app)

    def add(*args):
        return task("tasks.add", *args)

    def collect():
        return task("celery.accumulate", index=0)

    pause = 0.02 * (number % 7)
    kinds = [
        lambda: (chain(add(number, 1), task("tasks.multiply", 2), task("tasks.sleep", pause).set(immutable=True)), pause),
        lambda: (group(add(number, n) for n in range(5)), [number + n for n in range(5)]),
        lambda: (
            chord([*(add(number, n) for n in range(5)), task("tasks.sleep", pause)], collect()),
            [*(number + n for n in range(5)), pause],
        ),
        lambda: (
            chain(add(number, 1), group(add(1), task("tasks.multiply", 2), add(3)), collect(), collect()),
            [number + 2, 2 * (number + 1), number + 4],
        ),
    ]
    return kinds[number % len(kinds)]()


def ids_of(result):
    """Of a result, its parents and members: each id, in no order."""
    ids = []
    while result is not None:
        if isinstance(result, GroupResult):
            for member in result.results:
                ids += ids_of(member)
        else:
            ids.append(result.id)
        result = result.parent
    return list(dict.fromkeys(ids))


def metas(ids):
    """What is stored for each; an outage of the store is waited for."""
    while True:
        try:
            found = []
            for start in range(0, len(ids), 1000):
                found += store.mget(["celery-task-meta-" + one for one in ids[start:start + 1000]])
            return [json.loads(meta) if meta else None for meta in found]
        except redis.RedisError:
            time.sleep(0.1)


def is_success(meta):
    return meta is not None and meta["status"] == "SUCCESS"


def last_ids(result):
    return [one.id for one in result.results] if isinstance(result, GroupResult) else [result.id]


threading.Thread(target=wait_for_the_end, daemon=True).start()
app, sent, unsure, number, open_ids = connect(), [], 0, 0, {}
while not stop.is_set():
    if len(open_ids) >= IN_FLIGHT:
        ends = list(open_ids)
        for end, meta in zip(ends, metas(ends)):
            if is_success(meta):
                del open_ids[end]
        stop.wait(0.02)
        continue
    number += 1
    canvas, expected = workflow(app, number)
    try:
        result = canvas.apply_async()
    except Exception as error:  # whatever an outage makes of it
        print(f"workflow {number} is not sent for sure: {error!r}", file=sys.stderr)
        unsure += 1
        app.close()
        stop.wait(0.2)
        app = connect()
        continue
    body = {2: result, 3: result.parent}.get(number % 4)
    sent.append((number, result, expected, body.id if body is not None else None))
    open_ids[last_ids(result)[-1]] = number

wanted = list(dict.fromkeys(one for _, result, _, _ in sent for one in ids_of(result)))
deadline = time.monotonic() + patience
missing = wanted
while missing and time.monotonic() < deadline:
    missing = [one for one, meta in zip(missing, metas(missing)) if not is_success(meta)]
    time.sleep(0.2 if missing else 0)

final = dict(zip(wanted, metas(wanted)))
wrong = []
for number, result, expected, _ in sent:
    values = [(final[one] or {}).get("result") for one in last_ids(result)]
    value = values if isinstance(result, GroupResult) else values[0]
    if value != expected:
        wrong.append({"workflow": number, "expected": expected, "value": value})
json.dump(
    {
        "workflows": len(sent),
        "unsure": unsure,
        "ids": wanted,
        "bodies": [body for *_, body in sent if body is not None],
        "lost": [{"id": one, "stored": final[one]} for one in missing],
        "wrong": wrong,
    },
    sys.stdout,
)
