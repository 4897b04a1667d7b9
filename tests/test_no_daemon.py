"""G1: never in the way. Without a daemon the training runs to its end, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import zmqtrack
from harness import Daemon, jsonl, read_jsonl

Make = Callable[..., Daemon]

TRAIN = """
import sys, zmqtrack
run = zmqtrack.init("e", "r", "s", sys.argv[1], exit_timeout=0.5)
for i in range(1000):
    run.log_metric("a", i, step=i)
print("trained")
"""


def _train(address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAIN, address], capture_output=True, text=True, timeout=60
    )


def test_without_a_daemon_training_ends_and_one_line_says_what_was_not_sent(nobody: str) -> None:
    done = _train(nobody)
    assert (done.returncode, done.stdout) == (0, "trained\n")
    (line,) = done.stderr.splitlines()
    assert "1002 records of run 'r'" in line
    assert nobody in line and "spool send --dir" in line


def test_what_one_process_left_is_sent_by_the_next_run_on_the_machine(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    _train(nobody)
    out = tmp_path / "out"
    with daemon([jsonl(out)], control=nobody) as served:
        with zmqtrack.init("e", "other", "s", nobody) as run:
            run.log_metric("b", 1)
        assert not list((tmp_path / "spool").iterdir())
        served.drain()
    lines = read_jsonl(out, "e", "r", "s")
    assert [r["step"] for r in lines if r["type"] == "metric"] == list(range(1000))
    assert read_jsonl(out, "e", "other", "s")


def test_a_daemon_that_is_started_later_than_the_writer_gets_everything(
    daemon: Make, tmp_path: Path, nobody: str
) -> None:
    out = tmp_path / "out"
    run = zmqtrack.init("e", "r", "s", nobody)
    for i in range(1000):
        run.log_metric("a", i, step=i)
    assert run.flush()
    with daemon([jsonl(out)], control=nobody) as served:
        run.finish(timeout=30)
        served.drain()
    steps = [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "metric"]
    assert steps == list(range(1000))
    assert not list((tmp_path / "spool").iterdir())


def test_finish_keeps_its_deadline_and_leaves_the_records_in_the_spool(
    nobody: str, tmp_path: Path
) -> None:
    run = zmqtrack.init("e", "r", "s", nobody)
    run.log_metric("a", 1)
    run.finish(timeout=0)
    assert list((tmp_path / "spool").glob("*.spool"))


def test_a_second_run_in_one_process_does_not_take_the_first_ones_spool(
    daemon: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)]) as served:
        first = zmqtrack.init("e", "r", "one", served.address)
        second = zmqtrack.init("e", "r", "two", served.address)
        for i in range(100):
            first.log_metric("a", i, step=i)
            second.log_metric("a", i, step=i)
        first.finish()
        second.finish()
        served.drain()
    for site in ("one", "two"):
        steps = [r["step"] for r in read_jsonl(out, "e", "r", site) if r["type"] == "metric"]
        assert steps == list(range(100))
