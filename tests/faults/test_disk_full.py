"""A disk that is full, under the daemon and under the spool, and has room again later."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zmqtrack
from harness import Daemon, jsonl, read_jsonl
from zmqtrack.cli import findings

Make = Callable[..., Daemon]


class SmallDisk:
    """A tmpfs of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)],
            check=True, capture_output=True,
        )  # fmt: skip

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=100m", str(self.path)], check=True)

    def gone(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        made = SmallDisk(tmp_path / "small")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield made
    made.gone()


def _shown(served: Daemon) -> str:
    command = [sys.executable, "-m", "zmqtrack.cli", "status", "--address", served.address]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _steps(out: Path) -> list[int]:
    return [r["step"] for r in read_jsonl(out, "e", "r", "s") if r["type"] == "text"]


def test_a_daemon_whose_disk_is_full_acknowledges_nothing_and_recovers_by_itself(
    daemon: Make, tmp_path: Path, disk: SmallDisk
) -> None:
    out = tmp_path / "out"
    with daemon([jsonl(out)], state_dir=str(disk.path / "state")) as served:
        run = zmqtrack.init("e", "r", "s", served.address)
        for step in range(600):
            run.log_text("note", "x" * 10_000, step=step)
        assert run.flush()
        while "disk_full" not in served.status()["daemon"]["refused"]:
            time.sleep(0.05)
        held = served.status()["streams"][0]["seq"] if served.status()["streams"] else 0
        assert run._sender._spool.acked <= held
        assert list((tmp_path / "spool").glob("*.spool"))
        before = len(_steps(out))
        assert before < 600  # replay goes on: what was committed is delivered
        disk.grow()
        run.log_text("note", "after", step=600)
        run.finish(timeout=60)
        served.drain()
        # It is told for a while, for whoever looks between two attempts; so do /ready and metrics.
        status = served.status()
        assert (status["daemon"]["accepting"], status["daemon"]["disk_full"]) == (True, True)
        assert next(findings.of_daemon(status)).code == "disk_full"
        assert "the disk is full, or was in the last 30 s: sites" in _shown(served)
    assert _steps(out) == list(range(601))
    assert "writers keep their records" in served.log


def test_a_spool_whose_disk_is_full_blocks_no_call_for_long_and_recovers_by_itself(
    daemon: Make, tmp_path: Path, disk: SmallDisk, nobody: str
) -> None:
    out = tmp_path / "out"
    run = zmqtrack.init("e", "r", "s", nobody, spool_dir=disk.path / "spool")
    for step in range(600):
        run.log_text("note", "x" * 10_000, step=step)
    assert not run.flush(timeout=1)  # it does not claim what it could not keep
    run.log_text("note", "still taken", step=600)
    disk.grow()
    assert run.flush(timeout=30)
    with daemon([jsonl(out)], control=nobody) as served:
        run.finish(timeout=60)
        served.drain()
        assert served.status()["losses"] == []
    assert _steps(out) == list(range(601))


def test_a_spool_whose_disk_stays_full_keeps_memory_bounded_and_counts_what_it_gives_up(
    daemon: Make, tmp_path: Path, disk: SmallDisk, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zmqtrack import run as module
    from zmqtrack import sender

    monkeypatch.setattr(module, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(module, "STALL", 0.1)
    monkeypatch.setattr(sender, "UNSPOOLED_BYTES", 1 << 20)
    out = tmp_path / "out"
    run = zmqtrack.init("e", "r", "s", nobody, spool_dir=disk.path / "spool")
    for step in range(3000):
        run.log_text("note", "x" * 10_000, step=step)
    held = sum(len(entry[1]) for entry in list(run._buffer) if isinstance(entry[1], str))
    held += sum(len(each.body) for each in run._sender._unspooled)
    assert held < 8 << 20  # of 30 MB that were logged
    disk.grow()
    with daemon([jsonl(out)], control=nobody) as served:
        run.finish(timeout=60)
        served.drain()
        losses = {loss["reason"]: loss["n"] for loss in served.status()["losses"]}
    steps = _steps(out)
    assert steps == sorted(set(steps))
    assert len(steps) + losses["buffer_full"] == 3000
    assert 100 < len(steps) < 3000
