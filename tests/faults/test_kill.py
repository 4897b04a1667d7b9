"""``kill -9`` at random: writer, daemon, adapters."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Daemon, jsonl
from oracle import Site, check, check_order, read_jsonl, read_tensorboard

Make = Callable[..., Daemon]

CYCLES = int(os.environ.get("ZMQTRACK_FAULT_CYCLES", "6"))
#: Read here: no test sees the user's own settings.
SEED = int(os.environ.get("ZMQTRACK_FAULT_SEED", random.randrange(10**6)))


@pytest.mark.timeout(60 + 40 * CYCLES)
def test_random_kills_of_daemon_writers_and_adapters_lose_and_double_nothing(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    print(f"ZMQTRACK_FAULT_SEED={SEED}")
    chance = random.Random(SEED)
    lines, events = tmp_path / "lines", tmp_path / "events"
    adapters = [
        jsonl(lines),
        {"type": "tensorboard", "flush_interval": "50ms", "options": {"logdir": str(events)}},
    ]
    served = daemon(adapters, control=nobody)
    served.start()
    sites = [Site(f"site-{n}", tmp_path / "ledgers") for n in range(2)]
    writers = {site.name: site.start(nobody, 2000, pause=0.02) for site in sites}
    for _ in range(CYCLES):
        victim = chance.choice(["daemon", "adapter", "adapter", "writer"])
        with contextlib.suppress(subprocess.TimeoutExpired):  # a wait of random length
            served.process.wait(chance.uniform(0.2, 1.0))
        if victim == "daemon":
            served.kill()
            served.start()
        elif victim == "adapter":
            pids = [m[1] for m in re.finditer(r"runs as process (\d+)", served.log)]
            try:
                os.kill(int(chance.choice(pids[-4:])), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it had been killed before
        else:
            site = chance.choice(sites)
            writers[site.name].kill()
            writers[site.name].communicate()
            writers[site.name] = site.start(nobody, 2000, pause=0.02)
    for process in writers.values():
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    _send_what_is_left(served)
    served.drain()
    fresh = Site("fresh", tmp_path / "ledgers")  # I4: it still works
    _, stderr = fresh.start(nobody, 100).communicate(timeout=60)
    served.drain()
    status = served.status()
    served.stop()
    assert status["losses"] == [] and status["daemon"]["refused"] == {}
    for shown in (read_jsonl(lines), read_tensorboard(events)):
        check([*sites, fresh], shown)
    assert sorted(read_jsonl(lines)) == sorted(read_tensorboard(events))
    check_order([seen for seen in read_jsonl(lines) if seen.site == "fresh"])


def _send_what_is_left(served: Daemon) -> None:
    """Spools of killed writers that nobody has adopted yet."""
    from zmqtrack.cli.spools import send

    _, left = send(Path(os.environ["ZMQTRACK_SPOOL_DIR"]), 60, None)
    assert left == 0
