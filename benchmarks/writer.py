"""A process that logs metrics as fast as it can, and waits until the daemon has them all."""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from typing import Any

import psutil

import zmqtrack

from .plan import sample
from .processes import cpu_seconds, leave_result


def main() -> None:
    spec = json.loads(sys.argv[1])
    me = psutil.Process()
    bare = me.memory_info().rss
    run = zmqtrack.init("bench", "run", spec["site"], spec["address"], codec=spec["codec"])
    values = sample(4096)
    print("ready", flush=True)
    sys.stdin.readline()
    # The monotonic clock is the machine's: the parent compares it with its own.
    cpu, began = cpu_seconds(), time.monotonic()
    _log(run.log_metric, itertools.islice(itertools.cycle(values), spec["metrics"]))
    logged = time.monotonic()
    rss = me.memory_info().rss
    run.finish(timeout=280)
    acknowledged = time.monotonic()
    leave_result(
        {
            "began": began,
            "logged": logged,
            "acknowledged": acknowledged,
            "cpu": cpu_seconds() - cpu,
            "rss_imported": bare,
            "rss_logged": rss,
            "rss_finished": me.memory_info().rss,
            "rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
        }
    )


def _log(log_metric: Any, values: Any) -> None:
    for step, value in enumerate(values):
        log_metric("loss", value, step)


if __name__ == "__main__":
    main()
