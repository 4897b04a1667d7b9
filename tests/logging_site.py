"""A training process for fault tests: logs records that can be told apart, and keeps a ledger.

``python logging_site.py LEDGER SITE FIRST COUNT PAUSE`` logs ``COUNT`` metrics with the ids
``FIRST`` and on, pauses ``PAUSE`` seconds after each 50, then finishes. The ledger is a file of
lines: ``tried N`` before the ids up to N are logged, ``kept N`` when flush() has returned for all
ids up to N. It is written with plain appends: what a killed process had written stays.

Where and as whom it logs is told by ZMQTRACK_* in the environment.
"""

from __future__ import annotations

import os
import sys
import time

import zmqtrack
from oracle import record

BLOCK = 50


def main() -> None:
    ledger, site, first, count, pause = sys.argv[1:6]
    begin, end = int(first), int(first) + int(count)
    fd = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    run = zmqtrack.init(site=site, exit_timeout=float(os.environ.get("EXIT_TIMEOUT", "60")))
    for start in range(begin, end, BLOCK):
        stop = min(start + BLOCK, end)
        os.write(fd, b"tried %d\n" % (stop - 1))
        for ident in range(start, stop):
            key, value, step, when = record(ident)
            run.log_metric(key, value, step, when)
        if run.flush(30):
            os.write(fd, b"kept %d\n" % (stop - 1))
        if float(pause):
            time.sleep(float(pause))
    run.finish()


if __name__ == "__main__":
    main()
