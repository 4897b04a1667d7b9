"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import zmqtrack
from harness import Daemon
from zmqtrack.writers import wandb_real

# Some tests use the real package, or an adapter that does, beside the writer.
wandb_real.leave_alone()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell; what we start would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own settings and spools."""
    for name in [name for name in os.environ if name.startswith("ZMQTRACK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZMQTRACK_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("ZMQTRACK_EXPERIMENT", "experiment")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Make daemons; what a failed test leaves running is ended here."""
    made: list[Daemon] = []

    def make(
        adapters: list[dict[str, Any]] | None = None, *, folder: str = "daemon", **more: Any
    ) -> Daemon:
        made.append(Daemon(tmp_path / folder, adapters, **more))
        return made[-1]

    yield make
    for one in made:
        process: subprocess.Popen[str] | None = getattr(one, "process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens, with two free ports behind it.

    Below the range from which the system chooses: it stays free until the test wants it.
    """
    import random
    import socket

    while True:
        first = random.randrange(10_000, 30_000)
        try:
            for port in range(first, first + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return f"tcp://127.0.0.1:{first}"


@pytest.fixture(autouse=True)
def _no_run_left_open() -> Iterator[None]:
    """A run that a test forgot must not reach into the next one."""
    yield
    from zmqtrack.ending import live

    for run in list(live):
        run.finish(timeout=0)
    assert zmqtrack.__version__
