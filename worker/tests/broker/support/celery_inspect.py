"""Runs `celery inspect` on one worker, as its command line does, with each of the given arguments. Prints the answers and the seconds."""

import json
import sys
import time

from celery.bin.celery import celery
from click.testing import CliRunner

broker, node = sys.argv[1:3]
answers = []
for command in json.load(sys.stdin):
    begun = time.monotonic()
    result = CliRunner().invoke(celery, ["-b", broker, "inspect", "-t", "5", "-d", node, "-j", *command])
    if result.exit_code:
        sys.exit(f"{command}: {result.output} {result.exception}")
    answers.append([json.loads(result.stdout)[node], time.monotonic() - begun])
json.dump(answers, sys.stdout)
