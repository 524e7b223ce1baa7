"""Reads every result by the id that the producer kept, and checks its value: `fetch.py IDS_FILE`.

It is another process than the producer and shares nothing with it but the file of ids. The last line of its output
is JSON: how many values were correct, wrong and missing. Exits with 1 unless all were correct.
"""

import json
import sys

from celery.exceptions import TimeoutError
from celery.result import AsyncResult

from fibonacci import app, fibonacci

# The tasks are done when this runs: a result that isn't there by then is missing.
PATIENCE_SECONDS = 5


def main():
    counts = {"correct": 0, "wrong": 0, "missing": 0}
    with open(sys.argv[1]) as ids:
        for line in ids:
            sent = json.loads(line)
            result = AsyncResult(sent["id"], app=app)
            try:
                value = result.get(timeout=PATIENCE_SECONDS, propagate=False)
            except TimeoutError:
                counts["missing"] += 1
                continue
            if value == fibonacci(sent["n"]):
                counts["correct"] += 1
            else:
                counts["wrong"] += 1
                print(f"tasks.fib({sent['n']}) {sent['id']}: {result.state} {value!r}", file=sys.stderr)
    print(json.dumps(counts))
    return 0 if counts["wrong"] == counts["missing"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
