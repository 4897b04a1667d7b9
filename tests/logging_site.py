"""A training process for fault tests: logs records that can be told apart, and keeps a ledger.

``python logging_site.py LEDGER SITE FIRST COUNT PAUSE`` logs ``COUNT`` metrics with the ids
``FIRST`` and on, pauses ``PAUSE`` seconds after each 50, then finishes. The ledger is a file of
lines: ``tried N`` before the ids up to N are logged, ``kept N`` when flush() has returned for all
ids up to N, and between them ``cost N`` with what each of those calls took, in nanoseconds. It is
written with plain appends: what a killed process had written stays.

With LOG_MORE in the environment each 50 metrics are followed by a text, and each 500 by a file.
Where and as whom it logs is told by ZMQTRACK_* in the environment.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import zmqtrack
from oracle import BLOCK, content, has_file, record, text


def main() -> None:
    ledger, site, first, count, pause = sys.argv[1:6]
    begin, end = int(first), int(first) + int(count)
    fd = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    run = zmqtrack.init(site=site, exit_timeout=float(os.environ.get("EXIT_TIMEOUT", "60")))
    for start in range(begin, end, BLOCK):
        stop = min(start + BLOCK, end)
        os.write(fd, b"tried %d\n" % (stop - 1))
        costs = []
        for ident in range(start, stop):
            key, value, step, when = record(ident)
            before = time.perf_counter_ns()
            run.log_metric(key, value, step, when)
            costs.append(time.perf_counter_ns() - before)
        os.write(fd, b"cost %d %s\n" % (stop - 1, " ".join(map(str, costs)).encode()))
        if os.environ.get("LOG_MORE"):
            log_more(run, site, stop - 1, Path(f"{ledger}.file"))
        if run.flush(30):
            os.write(fd, b"kept %d\n" % (stop - 1))
        if float(pause):
            time.sleep(float(pause))
    run.finish()


def log_more(run: zmqtrack.Run, site: str, ident: int, file: Path) -> None:
    run.log_text("note", text(ident))
    if has_file(ident):
        file.write_bytes(content(site, ident))
        run.log_artifact(file, f"file-{ident}.bin")


if __name__ == "__main__":
    main()
