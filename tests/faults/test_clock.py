"""A clock that jumps a year, both ways: order and identity do not depend on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Daemon, jsonl
from oracle import Site, check, check_order, read_jsonl, read_tensorboard

Make = Callable[..., Daemon]

YEAR = 365 * 86400
HERE = Path(__file__).parent


def _off_by(file: Path, seconds: int) -> dict[str, str]:
    """An environment whose wall clock is off by what stands in ``file``."""
    file.write_text(str(seconds))
    return {
        "PYTHONPATH": os.pathsep.join([str(HERE / "clock"), str(HERE.parent)]),
        "CLOCK_OFFSET_FILE": str(file),
    }


@pytest.mark.parametrize(("before", "after"), [(YEAR, 0), (-YEAR, YEAR)])
def test_a_clock_that_jumps_a_year_loses_and_doubles_nothing(
    daemon: Make, tmp_path: Path, before: int, after: int
) -> None:
    daemons, writers = tmp_path / "daemon-clock", tmp_path / "writer-clock"
    lines, events = tmp_path / "lines", tmp_path / "events"
    adapters = [
        jsonl(lines),
        {"type": "tensorboard", "flush_interval": "50ms", "options": {"logdir": str(events)}},
    ]
    site = Site("site", tmp_path / "ledgers")
    with daemon(adapters, env=_off_by(daemons, before), retain_time="1h") as served:
        process = site.start(served.address, 1500, pause=0.05, env=_off_by(writers, before))
        ledger = site.started[-1]
        while not ledger.exists() or ledger.read_text().count("kept") < 5:
            served.status()
        daemons.write_text(str(after))  # while all of them run
        writers.write_text(str(after))
        _, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr
        served.drain()
        _, stderr = site.start(served.address, 100).communicate(timeout=60)
        served.drain()
        status = served.status()
        assert status["losses"] == []
        streams = status["streams"]
    for shown in (read_jsonl(lines), read_tensorboard(events)):
        check([site], shown)
        assert len(shown) == 1600
    check_order(read_jsonl(lines))
    seen = [stream["first_seen"] for stream in streams]
    assert abs(seen[1] - seen[0]) > YEAR / 2  # the clock did jump
