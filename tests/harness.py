"""A real daemon in a process of its own, for tests, on free ports."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from zmqtrack.control import ControlClient
from zmqtrack.keys import Key

#: Generous: these machines are shared.
PATIENCE = 60.0


class Daemon:
    """``zmqtrackd`` with a configuration; started by ``with``, stopped in order at its end."""

    module = "zmqtrack.daemon"

    def __init__(
        self,
        folder: Path,
        adapters: list[dict[str, Any]] | None = None,
        *,
        control: str = "tcp://127.0.0.1:0",
        env: dict[str, str] | None = None,
        operator: Key | None = None,
        **daemon: Any,
    ) -> None:
        self.operator = operator
        self.folder = folder
        self.state_dir = folder / "state"
        self.config = folder / "zmqtrack.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            yaml.safe_dump(
                {
                    "daemon": {"control": control, "state_dir": str(self.state_dir), **daemon},
                    "adapters": adapters or [],
                }
            )
        )
        self._env = {**os.environ, **(env or {})}
        self.lines: list[str] = []
        self.address = ""

    def start(self) -> Daemon:
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, "--config", str(self.config)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self._env,
            start_new_session=True,
        )
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(
            target=self._read, args=(self.process, self._queue), daemon=True
        )
        self._reader.start()
        line = self.wait_for(r"listening at \S+")
        self.address = re.search(r"listening at (\S+),", line)[1]  # type: ignore[index]
        return self

    def _read(self, process: subprocess.Popen[str], said: queue.Queue[str | None]) -> None:
        # Adapters of a daemon that was killed may write on while its successor runs already.
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line.rstrip())
            said.put(line.rstrip())
        said.put(None)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> str:
        """The next line of the log that matches."""
        while True:
            try:
                line = self._queue.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in the log:\n{self.log}") from None
            if line is None:
                raise AssertionError(f"the daemon ended without {pattern!r}:\n{self.log}")
            if re.search(pattern, line):
                return line

    def request(self, op: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        client = ControlClient(self.address, self.operator)
        try:
            return client.request(op, timeout=timeout, **fields)
        finally:
            client.close()

    def status(self) -> dict[str, Any]:
        return self.request("status")

    def drain(self, timeout: float = PATIENCE) -> None:
        """Wait until every adapter has committed all that is journalled now."""
        self.request("drain", timeout=timeout)

    def stop(self) -> None:
        """SIGTERM; it must end by itself with exit code 0."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert code == 0, f"exit code {code}:\n{self.log}"

    def kill(self) -> None:
        """SIGKILL to the daemon alone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
            print(self.log, file=sys.stderr)


def read_jsonl(folder: Path, experiment: str, run: str, site: str) -> list[dict[str, Any]]:
    """The lines that the jsonl adapter has written for one run key."""
    path = folder / experiment / run / f"{site}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def jsonl(folder: Path, **more: Any) -> dict[str, Any]:
    """An adapter of the configuration that writes to ``folder`` at once."""
    return {"type": "jsonl", "flush_interval": 0, "options": {"dir": str(folder)}, **more}
