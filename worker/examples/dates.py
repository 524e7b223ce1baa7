"""Has two days added to the time again and again: `celery -A dates beat`. The worker is dates.rs; BROKER and RESULTS name the
servers, EVERY the seconds (10)."""

import os

from celery import Celery

app = Celery("dates", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.task_default_queue = os.environ.get("QUEUE", "dates")
app.conf.beat_schedule = {
    "add-days": {"task": "tasks.add_days", "schedule": float(os.environ.get("EVERY", "10")), "args": (2,)},
}

if __name__ == "__main__":
    print(app.send_task("tasks.add_days", args=(2,)).get(timeout=20).isoformat())
