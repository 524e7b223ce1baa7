"""Sends values that JSON itself doesn't have to a task that gives them back, and prints which of them came back different."""

import datetime
import decimal
import json
import sys
import uuid

from celery import Celery

broker, backend, queue = sys.argv[1:4]
app = Celery("test", broker=broker, backend=backend)
app.conf.task_default_queue = queue

json.load(sys.stdin)
values = [
    datetime.datetime(2026, 11, 21, 1, 2, 3, 456, tzinfo=datetime.timezone.utc),
    datetime.datetime(2026, 11, 21, 1, 2, 3),
    datetime.date(2026, 11, 21),
    datetime.time(1, 2, 3),
    decimal.Decimal("3.1400000000000000000000001"),
    uuid.uuid4(),
    b"text",
    b"\xff\x00",
    {"nested": [decimal.Decimal(1)]},
]
result = app.send_task("celery.accumulate", args=values).get(timeout=15)
json.dump([repr(pair) for pair in zip(values, result) if pair[0] != pair[1]], sys.stdout)
