"""Sends remote control commands to one worker as Celery does, and prints the reply and the seconds it took, each."""

import json
import sys
import time

from celery import Celery

broker, node = sys.argv[1:3]
app = Celery("test", broker=broker)
app.control.inspect([node], timeout=1).ping()  # the first call also connects

replies = []
for method, arguments in json.load(sys.stdin):
    begun = time.monotonic()
    answers = app.control.broadcast(method, arguments, destination=[node], reply=True, timeout=5, limit=1)
    replies.append([answers[0][node] if answers else None, time.monotonic() - begun])
json.dump(replies, sys.stdout)
