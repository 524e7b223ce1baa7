"""Posts Fibonacci tasks from several threads and keeps the ids: `produce.py TASKS THREADS IDS_FILE`.

The last line of its output is JSON: how many were published to each queue, and the Unix times of the first and last.
"""

import json
import random
import sys
import threading
import time
from collections import Counter

from fibonacci import app, route_by_size

# Where each class of work starts and ends; see route_by_size.
SIZES = [(12, 27), (28, 34), (35, 38)]


def numbers(count, seed):
    """`count` numbers, evenly from the three classes, in an order that a seed decides."""
    rng = random.Random(seed)
    return [rng.randint(*SIZES[i % len(SIZES)]) for i in range(count)]


def post(ns, sent, failures):
    """Posts one task a number; a failure of one thread must not look like success of the whole."""
    try:
        for n in ns:
            sent.append((app.send_task("tasks.fib", args=[n]).id, n))
    except Exception as error:
        failures.append(error)


def main():
    tasks, threads, ids_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    work = numbers(tasks, seed=2017)
    sent = [[] for _ in range(threads)]
    failures = []
    posters = [
        threading.Thread(target=post, args=(work[i::threads], sent[i], failures)) for i in range(threads)
    ]
    first = time.time()
    for poster in posters:
        poster.start()
    for poster in posters:
        poster.join()
    last = time.time()
    if failures:
        raise failures[0]
    published = [pair for thread in sent for pair in thread]
    with open(ids_file, "w") as out:
        for task_id, n in published:
            out.write(json.dumps({"id": task_id, "n": n}) + "\n")
    per_queue = Counter(route_by_size("tasks.fib", [n], {}, {})["queue"] for _, n in published)
    print(json.dumps({"published": len(published), "queues": per_queue, "first": first, "last": last}))


if __name__ == "__main__":
    main()
