"""Many writers in one process, each with a run, a spool and a ledger of its own.

``python many_sites.py FOLDER ADDRESS FIRST COUNT`` makes the sites ``FIRST`` to before
``FIRST + COUNT``, says ``ready`` on stdout when each has logged its first block, and logs a
block of each in turn until its stdin ends. Then the process ends as any other does: all runs
are finished at exit. Ledgers are those of ``logging_site.py``.
"""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import zmqtrack
from oracle import BLOCK, record

#: Seconds between two rounds.
PAUSE = 1.0


def name(number: int) -> str:
    return f"site-{number:04}"


def main() -> None:
    folder, address, first, count = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sites = [name(number) for number in range(int(first), int(first) + int(count))]
    runs = [
        (zmqtrack.init("faults", "run", site, address, exit_timeout=120), Path(folder, site))
        for site in sites
    ]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    begin = 0
    while not ended.is_set():
        for run, ledger in runs:
            log_block(run, ledger, begin)
        if not begin:
            print("ready", flush=True)
        begin += BLOCK
        ended.wait(PAUSE)
    print(f"logged {begin}", flush=True)


def log_block(run: zmqtrack.Run, ledger: Path, begin: int) -> None:
    with ledger.open("a") as file:
        file.write(f"tried {begin + BLOCK - 1}\n")
        file.flush()
        for ident in range(begin, begin + BLOCK):
            key, value, step, when = record(ident)
            run.log_metric(key, value, step, when)
        if run.flush(60):
            file.write(f"kept {begin + BLOCK - 1}\n")


if __name__ == "__main__":
    main()
