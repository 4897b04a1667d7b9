"""``zmqtrackd`` comes back by itself where no systemd starts it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import zmqtrack
from harness import PATIENCE, Daemon, jsonl, read_jsonl


class Kept(Daemon):
    """A daemon that its keeper runs; ``process`` is the keeper."""

    module = "zmqtrack.daemon.keeper"

    @property
    def inner(self) -> psutil.Process:
        """The daemon itself."""
        (found,) = psutil.Process(self.process.pid).children()
        return found


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    served = Kept(tmp_path / "daemon", [jsonl(tmp_path / "lines")], control=_address(tmp_path))
    with served:
        yield served


def _address(folder: Path) -> str:
    return f"ipc://{folder}/control"


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_daemon_that_is_killed_starts_again_and_nothing_is_lost(
    kept: Kept, tmp_path: Path, number: signal.Signals
) -> None:
    run = zmqtrack.init("e", "r", "s", kept.address, spool_dir=tmp_path / "spool")
    run.log_metric("x", 1.0, 1)
    kept.inner.send_signal(number)
    kept.wait_for(f"ended by {number.name}: nothing that was acknowledged is lost")
    run.log_metric("x", 2.0, 2)
    kept.wait_for("listening at")
    run.log_metric("x", 3.0, 3)
    run.finish(timeout=PATIENCE)
    kept.drain()
    lines = read_jsonl(tmp_path / "lines", "e", "r", "s")
    assert [each["step"] for each in lines if each["type"] == "metric"] == [1, 2, 3]


def test_a_signal_to_the_keeper_reaches_the_daemon(kept: Kept) -> None:
    kept.process.send_signal(signal.SIGHUP)
    kept.wait_for("reloaded")
    inner = kept.inner
    kept.stop()  # it ends in order, with exit code 0
    assert not inner.is_running()


def test_a_keeper_that_is_killed_leaves_no_daemon_behind(kept: Kept) -> None:
    inner = kept.inner
    kept.process.kill()
    inner.wait(PATIENCE)
    kept.start()


def test_what_ends_by_itself_is_not_started_again(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("daemon: {nonsense: 1}")
    done = subprocess.run(
        [sys.executable, "-m", "zmqtrack.daemon.keeper", "--config", str(bad)],
        timeout=PATIENCE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 78
    assert "nonsense" in done.stderr


def test_where_systemd_keeps_the_daemon_no_keeper_stands_between(tmp_path: Path) -> None:
    served = Kept(
        tmp_path / "daemon", env={"NOTIFY_SOCKET": str(tmp_path / "nobody"), **os.environ}
    )
    with served:
        assert psutil.Process(served.process.pid).children() == []
