"""Has a file looked at by the workers of upload.rs, and prints their report: BROKER and RESULTS name the servers."""

import json
import os
import sys

from celery import Celery, chord

app = Celery("upload", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.task_default_queue = os.environ.get("QUEUE", "uploads")

path = os.path.abspath(sys.argv[1])
steps = [app.signature("upload." + name, args=(path,)) for name in ("scan", "metadata")]
print(json.dumps(chord(steps)(app.signature("upload.report")).get(timeout=20)))
