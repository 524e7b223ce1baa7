"""The app of the Celery workers that tests run as pods of a TaskQueue."""

import time
from pathlib import Path

from celery import Celery, signals

# The operator mounts the Secrets of the TaskQueue here.
SECRETS = Path("/etc/soloist")
READY = Path("/tmp/ready")
# The container may have been started again.
READY.unlink(missing_ok=True)

app = Celery(
    "celery_worker",
    broker=(SECRETS / "broker/uri").read_text(),
    backend=(SECRETS / "results/uri").read_text(),
)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    # The solo pool sends none during a task, for which the broker would hang up.
    broker_heartbeat=0,
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
)


@app.task(name="tasks.sleep")
def sleep(seconds):
    time.sleep(seconds)


@signals.worker_ready.connect
def tell_the_startup_probe(**_):
    READY.touch()
