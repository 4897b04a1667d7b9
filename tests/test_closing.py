"""A program that opens and closes many writers stands still for none of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmqtrack
from harness import Daemon, jsonl, read_jsonl

Make = Callable[..., Daemon]

#: Seconds that the first close may wait for an answer.
WAIT = 3.0

MANY = f"""
import os, sys, time
os.environ["ZMQTRACK_ADDRESS"] = sys.argv[1]
os.environ["ZMQTRACK_EXIT_TIMEOUT"] = "{WAIT}"
from zmqtrack.writers.tensorboard import SummaryWriter
for number in range(10):
    begun = time.monotonic()
    with SummaryWriter(f"runs/r{{number}}") as writer:
        writer.add_scalar("x", number, 1)
    print(time.monotonic() - begun)
"""


def test_where_nobody_answers_the_first_close_waits_and_the_next_do_not(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY, nobody],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=True,
    )
    first, *others = map(float, done.stdout.split())
    assert first >= WAIT
    assert sum(others) < WAIT, others
    told, rest = done.stderr.splitlines()
    assert "3 records of run 'r0'" in told
    assert "27 records of 9 more runs" in rest
    command = re.search(r"`(zmqtrack spool send [^`]*)`", rest)
    assert command is not None and f"`{command[1]}`" in told

    out = tmp_path / "out"
    with daemon([jsonl(out)], control=nobody) as served:
        with zmqtrack.init("default", "later", "s", nobody) as run:
            run.log_metric("y", 1)
        assert not list((tmp_path / "spool").iterdir())
        served.drain()
    assert len(list(out.rglob("*.jsonl"))) >= 11


def test_a_run_that_waits_in_vain_is_soon_forgotten_where_a_daemon_answers(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    zmqtrack.init("e", "alone", "s", nobody, exit_timeout=0.2).finish()
    run = zmqtrack.init("e", "r", "s", nobody)
    run.log_metric("a", 1)
    with daemon([jsonl(tmp_path / "out")], control=nobody) as served:
        run.finish(timeout=30)
        begun = time.monotonic()
        with zmqtrack.init("e", "next", "s", nobody) as last:
            last.log_metric("a", 2)
        assert time.monotonic() - begun < 30
        assert not list((tmp_path / "spool").iterdir())
        served.drain()
    assert [r["value"] for r in read_jsonl(tmp_path / "out", "e", "next", "s") if r["key"] == "a"]
