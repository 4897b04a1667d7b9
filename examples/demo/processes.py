"""The demo's processes: started with a log file each, watched, and ended for sure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from .plan import PEER_GONE

__all__ = ["DemoFailed", "Process", "first_failure", "stop_all"]

#: Lines of a log that are shown when its process has failed.
TAIL = 15


class DemoFailed(Exception):
    """The demo cannot go on; the text says why, with the end of a log."""


class Process:
    """``python -m MODULE ARGUMENTS``, its output in a log file."""

    def __init__(
        self,
        name: str,
        module: str,
        *arguments: object,
        logs: Path,
        env: dict[str, str],
        keeps_open: int,
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), **env},
                pass_fds=[keeps_open],
            )

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()

    def terminate(self) -> None:
        if self.exit_code is None:
            self._popen.terminate()

    def wait(self, timeout: float) -> int:
        """Its exit code, after SIGKILL if it takes longer than ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()

    def describe_end(self) -> str:
        code = self.exit_code
        if code is None:
            how = "is still running"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        return f"{self.name} {how}. The end of {self.log}:\n{tail}"


def _environment() -> dict[str, str]:
    """The user's own, without what is meant for other runs of the same tools."""
    others = ("ZMQTRACK_", "WANDB_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


def first_failure(processes: Iterable[Process]) -> Process | None:
    """One that has failed, if any; one that only followed another into its end is named last."""
    failed = [process for process in processes if process.exit_code]
    return min(failed, key=lambda process: process.exit_code == PEER_GONE, default=None)


def stop_all(processes: Iterable[Process], timeout: float = 10.0) -> None:
    """End all that still run: politely, and after ``timeout`` seconds for sure."""
    processes = list(processes)
    deadline = time.monotonic() + timeout
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(max(0.0, deadline - time.monotonic()))
