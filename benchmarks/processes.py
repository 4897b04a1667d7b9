"""The processes that a benchmark consists of: measuring ones, a daemon, an MLflow server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml

from zmqtrack.control import ControlClient
from zmqtrack.errors import ControlError

__all__ = ["Broken", "Child", "Daemon", "Workshop", "cpu_seconds", "leave_result"]

ROOT = Path(__file__).resolve().parent.parent

#: Seconds after which a process is taken for hung.
PATIENCE = 300.0
#: Seconds for an adapter or a server to start.
START = 120.0

#: Nobody's telemetry or console belongs in a measurement.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}


class Broken(Exception):
    """A row that could not be measured; the message says why."""


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZMQTRACK_", "WANDB_"))}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, **QUIET, "PYTHONPATH": os.pathsep.join(paths), **more}


class Child:
    """``python -m MODULE`` with a spec as JSON; it leaves its result in a file.

    It works in, and may fill, a folder of its own.
    """

    def __init__(self, folder: Path, module: str, spec: dict[str, Any], **env: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._log = folder / "stderr.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(spec)],
                cwd=folder,
                env=_environment(ZMQTRACK_SPOOL_DIR=str(folder / "spool"), **env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Until it has said so."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        raise Broken(self._complaint())

    def go(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then `result` says what happened
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Broken(f"no end after {PATIENCE:g} s") from None
        finally:
            self.close()
        path = self.folder / "result.json"
        if self._process.returncode or not path.exists():
            raise Broken(self._complaint())
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _complaint(self) -> str:
        return _last_line(self._log) or f"exit code {self._process.poll()}"


def leave_result(result: dict[str, Any]) -> None:
    """For a child: its answer."""
    Path("result.json").write_text(json.dumps(result))


def cpu_seconds(pid: int | None = None) -> float:
    """CPU time of a process (default: this one) and all below it: what no busy neighbour adds to.

    Those that have ended count if they were waited for.
    """
    me = psutil.Process(pid)
    times = me.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return float(total)


class Daemon:
    """``zmqtrackd`` on free ports; started by ``with``."""

    def __init__(self, folder: Path, adapters: list[dict[str, Any]] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._config = folder / "zmqtrack.yaml"
        self._adapters = adapters or []
        self._config.write_text(
            yaml.safe_dump(
                {
                    "daemon": {
                        "control": "tcp://127.0.0.1:0",
                        "state_dir": str(folder / "state"),
                        "stop_timeout": 10,
                    },
                    "adapters": self._adapters,
                }
            )
        )

    def __enter__(self) -> Daemon:
        with (self.folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zmqtrack.daemon", "--config", str(self._config)],
                cwd=self.folder,
                env=_environment(),
                stderr=log,
                start_new_session=True,
            )
        try:
            self.address = self._await_address()
            self._client = ControlClient(self.address)
            for adapter in self._adapters:
                self._await_adapter(str(adapter["type"]))
        except BaseException:
            self._end()
            raise
        return self

    def _await_address(self) -> str:
        told = self.folder / "state" / "address"
        while self.process.poll() is None:
            if told.exists() and (address := told.read_text().strip()):
                return address
            time.sleep(0.02)
        raise Broken(f"the daemon ended: {_last_line(self.folder / 'log.txt')}")

    def _await_adapter(self, name: str) -> None:
        """Its start, an import of seconds, is no part of a rate."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.status()["adapters"].get(name, {}).get("state") == "running":
                return
            time.sleep(0.05)
        raise Broken(f"adapter {name} did not start: {_last_line(self.folder / 'log.txt')}")

    def status(self) -> dict[str, Any]:
        return self._request("status")

    def drain(self) -> None:
        """Wait until the adapters have committed all that is journalled now."""
        self._request("drain")

    def _request(self, op: str) -> dict[str, Any]:
        try:
            return self._client.request(op, timeout=PATIENCE)
        except ControlError as error:
            code = self.process.poll()
            ended = "" if code is None else f" (it has ended with exit code {code})"
            raise Broken(f"{error}{ended}") from None

    def cpu_seconds(self) -> float:
        """Its own and its adapters'."""
        return cpu_seconds(self.process.pid)

    def rss(self) -> int:
        memory: int = psutil.Process(self.process.pid).memory_info().rss
        return memory

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        self._end()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:  # urllib's own errors are among them
        return False
    return True


class Workshop:
    """The folder that all is measured in, on the disk of ``out``; and what is made but once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0
        self._stack = contextlib.ExitStack()
        self._mlflow: Path | None = None
        self._server = ""

    def new(self, name: str) -> Path:
        """An empty folder."""
        self._made += 1
        path = self.folder / f"{self._made:03d}-{name.replace('/', '-')}"
        path.mkdir(parents=True)
        return path

    def mlflow_database(self, folder: Path) -> str:
        """The URI of a new database; its tables, an affair of seconds, are made once only."""
        if self._mlflow is None:
            made = self.new("mlflow-template")
            Child(made, "benchmarks.empty_mlflow", {}).result()
            self._mlflow = made / "mlflow.db"
        shutil.copy(self._mlflow, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    def mlflow_server(self) -> str:
        """The URI of an ``mlflow server`` of one worker on SQLite; runs until :meth:`close`."""
        if not self._server:
            self._server = self._stack.enter_context(self._serve())
        return self._server

    @contextlib.contextmanager
    def _serve(self) -> Iterator[str]:
        folder = self.new("mlflow-server")
        database = self.mlflow_database(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server"),
                    *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
                    *("--backend-store-uri", database),
                    *("--default-artifact-root", str(folder / "artifacts")),
                ],
                cwd=folder,
                env=_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            uri = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START
            while not _answers(f"{uri}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Broken(f"mlflow server does not start: {_last_line(folder / 'log.txt')}")
                time.sleep(0.1)
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def close(self) -> None:
        self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)
